"""Small controllers and training loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlrate import Controller
from rlrate.control import Action, Cadence, ControlSpec
from rlrate.controller import Head

SMALL = Cadence(decisions=8, first=3, ramp=3, probe=2)

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop": (torch.optim.RMSprop, {}),
    "adam": (torch.optim.Adam, {}),
    "adam-fused": (torch.optim.Adam, {"fused": True}),
    "adamw": (torch.optim.AdamW, {}),
    "adamw-foreach": (torch.optim.AdamW, {"foreach": True}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adamax": (torch.optim.Adamax, {}),
}


def random_controller(
    spec: ControlSpec | None = None, *, seed: int = 0, head: Head = "clip", activation: str = "tanh"
) -> Controller:
    """A policy of two layers with random weights: it reacts to everything."""
    spec = spec or ControlSpec(cadence=SMALL, action=Action(alarm=6.0))
    generator = torch.Generator().manual_seed(seed)
    choices = spec.action.choices
    sizes = [len(spec.signals), 16, 1 if choices is None else len(choices)]
    layers = tuple(
        (torch.randn(b, a, generator=generator) * a**-0.5, 0.1 * torch.randn(b, generator=generator))
        for a, b in pairwise(sizes)
    )
    return Controller(layers, spec, activation=activation, head=head, provenance={"seed": seed, "kind": "random"})


@pytest.fixture(scope="session")
def make_controller() -> Callable[..., Controller]:
    return random_controller


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ControlSpec]:
    """A specification in which every structural rule is off unless it is named."""

    def make(**rules: Any) -> ControlSpec:
        off: dict[str, Any] = {"start": None, "cap": None, "cut": None, "anneal": 0.0}
        return ControlSpec(cadence=SMALL, action=Action(**{**off, **rules}))

    return make


@dataclass
class Loop:
    """A regression by a small network; batches depend on the step only, so that a run can be cut anywhere."""

    make: Callable[..., Optimizer] = torch.optim.SGD
    lr: Any = 0.1
    kwargs: dict[str, Any] = field(default_factory=dict)
    groups: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        parameters = list(self.model.parameters())
        if self.groups == 1:
            self.optimizer = self.make(parameters, lr=self.lr, **self.kwargs)
        else:
            groups = [{"params": parameters[:2], "lr": self.lr[0]}, {"params": parameters[2:], "lr": self.lr[1]}]
            self.optimizer = self.make(groups, **self.kwargs)

    def backward(self) -> Tensor:
        generator = torch.Generator().manual_seed(1000 + self.step)
        inputs = torch.randn(16, 6, generator=generator)
        targets = torch.stack([inputs[:, 0] * inputs[:, 1], inputs[:, 2].sin()], 1)
        loss = nn.functional.mse_loss(self.model(inputs), targets)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.step += 1
        return loss

    def run(self, scheduler: Any, steps: int, loss: Callable[[int, Tensor], Any] = lambda _, loss: loss) -> list[Any]:
        """Trains; returns the rates after each step, one list for each group if there are several."""
        rates = []
        for _ in range(steps):
            value = self.backward()
            self.optimizer.step()
            scheduler.step(loss(self.step - 1, value))
            now = [float(group["lr"]) for group in self.optimizer.param_groups]
            rates.append(now[0] if len(now) == 1 else now)
        return rates

    @property
    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


@pytest.fixture(scope="session")
def make_loop() -> type[Loop]:
    return Loop


@pytest.fixture(params=OPTIMIZERS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    """An optimizer, as keywords of `make_loop`."""
    make, kwargs = OPTIMIZERS[request.param]
    return {"make": make, "kwargs": kwargs}
