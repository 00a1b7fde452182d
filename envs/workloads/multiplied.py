"""Networks that are multiplied with each other: one scales another's features, gives its weights, or squares it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, cast

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Workload
from rlrate.envs.workloads.data import Array, Examples, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick
from rlrate.envs.workloads.synthetic import SIZE, teacher

__all__ = ["Modulated", "Polynomial", "Weighing", "multiplied"]


class Modulated(nn.Module):
    """Hidden features that a network of the context scales and shifts (Perez et al. 2018).

    Args:
        context: How many of the inputs, the first ones, are the context.
        inputs: Of the context and the others.
        outputs: Numbers that come out.
        width: Hidden features.
        network: How both `MLP` are built.
    """

    def __init__(self, context: int, inputs: int, outputs: int, width: int, network: dict[str, Any]) -> None:
        super().__init__()
        self.context = context
        self.features = MLP(inputs - context, width, **network)
        self.modulation = MLP(context, 2 * width, **network)
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        scale, shift = self.modulation(inputs[:, : self.context]).chunk(2, dim=1)
        return cast(Tensor, self.head(F.relu((1 + scale) * self.features(inputs[:, self.context :]) + shift)))


class Weighing(nn.Module):
    """A linear map of some inputs whose weights a network makes of the others (Ha et al. 2017); arguments as above."""

    def __init__(self, context: int, inputs: int, outputs: int, width: int, network: dict[str, Any]) -> None:
        super().__init__()
        self.context, self.outputs = context, outputs
        self.weights = nn.Sequential(
            MLP(context, width, **network), nn.Tanh(), nn.Linear(width, outputs * (inputs - context + 1))
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        weights = self.weights(inputs[:, : self.context]).unflatten(1, (self.outputs, -1))
        return cast(Tensor, (weights[:, :, :-1] * inputs[:, None, self.context :]).sum(dim=2) + weights[:, :, -1])


class Polynomial(nn.Module):
    """Layers that add the product of two linear maps to a third (Chrysos et al. 2020).

    Args:
        inputs: Numbers per example.
        outputs: Numbers that come out.
        widths: Of the layers.
    """

    def __init__(self, inputs: int, outputs: int, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, 3 * after) for before, after in pairwise([inputs, *widths]))
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        for layer in self.layers:
            first, second, third = layer(hidden).chunk(3, dim=1)
            hidden = first * second + third
        return cast(Tensor, self.head(hidden))


def contexts(rng: np.random.Generator) -> tuple[Array, Array, int]:
    """Inputs, values and how many inputs are context: by these, the others count more, less or the other way round."""
    context, others, outputs = int(rng.integers(1, 9)), log_integer(rng, 2, 24), int(rng.integers(1, 6))
    inputs = rng.normal(size=(SIZE, context + others))
    weights = teacher(rng, inputs[:, :context], outputs * others).reshape(SIZE, outputs, others)
    read = inputs[:, context:]
    if rng.random() < 0.5:
        read = teacher(rng, read, others)
    return inputs, np.einsum("noi,ni->no", weights, read), context


def polynomials(rng: np.random.Generator) -> tuple[Array, Array, int]:
    """Inputs, sums of products of two to four linear functions of them, and half of the inputs as context."""
    size, outputs, terms = log_integer(rng, 2, 24), int(rng.integers(1, 6)), int(rng.integers(1, 6))
    inputs = rng.normal(size=(SIZE, size)) if rng.random() < 0.7 else rng.uniform(-1.7, 1.7, (SIZE, size))
    factors = rng.normal(size=(outputs * terms, int(rng.integers(2, 5)), size)) / np.sqrt(size)
    values = np.einsum("ni,tfi->ntf", inputs, factors).prod(axis=2).reshape(SIZE, outputs, terms).sum(axis=2)
    return inputs, np.arcsinh(2 * values / values.std()), max(1, size // 2)


def _examples(rng: np.random.Generator) -> tuple[Examples, int]:
    task = pick(rng, {contexts: 2, polynomials: 1})
    inputs, values, context = task(rng)
    values = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9)
    noise = 0.0 if rng.random() < 0.25 else log_uniform(rng, 0.01, 1.0)
    values = values + noise * rng.normal(size=values.shape)
    name, outputs = task.__name__, values.shape[1]
    if outputs > 1 and rng.random() < 0.6:
        labels = values.argmax(axis=1).astype(np.int64)
        return Examples(name, inputs.astype(np.float32), labels, outputs), context
    return Examples(f"{name}-values", inputs.astype(np.float32), values.astype(np.float32)), context


@register_workload("multiplied", description="Modulated features, made weights or products of layers, synthetic data")
def multiplied(rng: np.random.Generator) -> Workload:
    """A network that multiplies what it computes, on tasks that ask for it."""
    examples, context = _examples(rng)
    train, heldout = split(rng, examples, log_integer(rng, 150, 2200))
    inputs, outputs, width = train[0].shape[1], examples.classes or train[1].shape[1], log_integer(rng, 8, 64)
    network: dict[str, Any] = {
        "hidden": [width] * pick(rng, {0: 1, 1: 3, 2: 1}),
        "activation": pick(rng, {"relu": 3, "gelu": 1, "silu": 1, "tanh": 2}),
        "norm": pick(rng, {"none": 6, "layer": 1}),
        "gain": log_uniform(rng, 0.5, 1.5) if rng.random() < 0.3 else 1.0,
    }
    kind = pick(rng, {"modulated": 2, "weighing": 2, "polynomial": 2})
    make: Callable[[], nn.Module]
    if kind == "polynomial":
        make = partial(Polynomial, inputs, outputs, [width] * pick(rng, {1: 2, 2: 2, 3: 1}))
    else:
        make = partial(Modulated if kind == "modulated" else Weighing, context, inputs, outputs, width, network)
    loss: Loss = F.cross_entropy if examples.classes else pick(rng, {F.mse_loss: 3, F.smooth_l1_loss: 1})
    return Workload(
        name=f"multiplied/{examples.name}-{kind}",
        family="multiplied",
        make_model=make,
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0]), 64),
        accuracy=bool(examples.classes),
    )
