"""Modules of every kind in a population: vectorised or not, none is trained silently wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.optimizers import make_optimizer
from rlrate.envs.plain import plain_run
from rlrate.envs.population import Population
from rlrate.envs.workload import Workload

from networks import CLASSES, PICTURES, SEQUENCES, make_workload, rates_of, relative


class Applied(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(5, 8), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)).flatten(1))


class Begun(nn.Module):
    """A recurrent layer that begins in a state of its own."""

    def __init__(self, kind: Callable[..., nn.RNNBase], states: int) -> None:
        super().__init__()
        self.core, self.head = kind(5, 6, batch_first=True), nn.Linear(6, CLASSES)
        self.state = nn.Parameter(torch.randn(states, 1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        states = [state.expand(1, len(x), 6).contiguous() for state in self.state]
        return self.head(self.core(x, states[0] if len(states) == 1 else tuple(states))[0][:, -1])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.arange(len(x)) % x.shape[1] + 1
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.core(packed)[1][0])


class Frozen(nn.Module):
    """Layers that are not trained, and others that see what is the same for all networks."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3)).requires_grad_(False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x).flatten(1))


def attend(**settings: Any) -> Callable[[], nn.Module]:
    def function(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, **settings)

    return lambda: Applied(function, 48)


def pictures(*layers: Callable[[], nn.Module], width: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), *(make() for make in layers), nn.Flatten(), nn.Linear(width, CLASSES)
    )


ALLOWED = torch.ones(6, 6).tril().bool()

VECTORISED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mask": (attend(attn_mask=ALLOWED, scale=0.3), SEQUENCES),
    "additive-mask": (attend(attn_mask=torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6)), SEQUENCES),
    "rnn-tanh": (lambda: Begun(nn.RNN, 1), SEQUENCES),
    "gru-begun": (lambda: Begun(nn.GRU, 1), SEQUENCES),
    "lstm-begun": (lambda: Begun(nn.LSTM, 2), SEQUENCES),
    "max-pools": (pictures(lambda: nn.MaxPool2d(3, 2, 1), lambda: nn.MaxPool2d(2, 1, dilation=2), width=12), PICTURES),
    "avg-pools": (
        pictures(lambda: nn.AvgPool2d(3, 3, ceil_mode=True), lambda: nn.AvgPool2d(2, divisor_override=3), width=3),
        PICTURES,
    ),
    "adaptive-pool": (pictures(lambda: nn.AdaptiveAvgPool2d(2), width=12), PICTURES),
    "batchnorm-bare": (
        pictures(lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False), width=192),
        PICTURES,
    ),
    "groupnorm": (pictures(lambda: nn.GroupNorm(3, 3), width=192), PICTURES),
    "strided": (
        pictures(lambda: nn.Conv2d(3, 6, 3, 2, padding_mode="circular", padding=1, groups=3), width=96),
        PICTURES,
    ),
    "transposed": (pictures(lambda: nn.ConvTranspose2d(3, 2, 2, 2), width=512), PICTURES),
    "frozen": (Frozen, PICTURES),
    "dropout-whole": (lambda: Applied(lambda x: F.dropout(x, 1.0), 48), SEQUENCES),
    "rand": (lambda: Applied(lambda x: x + 0.1 * torch.rand(8, dtype=x.dtype), 48), SEQUENCES),
}


ONE_BY_ONE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batchnorm-cumulative": (pictures(lambda: nn.BatchNorm2d(3, momentum=None), width=192), PICTURES),
    "bernoulli": (lambda: Applied(lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)), 48), SEQUENCES),
    "bernoulli-number": (lambda: Applied(lambda x: x * torch.empty_like(x).bernoulli_(0.5), 48), SEQUENCES),
    "randperm": (lambda: Applied(lambda x: x + x[:, torch.randperm(6)], 48), SEQUENCES),
    "multinomial": (lambda: Applied(lambda x: x + x[:, torch.multinomial(torch.ones(6), 6)], 48), SEQUENCES),
    "normal": (lambda: Applied(lambda x: torch.normal(x, 0.1), 48), SEQUENCES),
    "dropout-in-place": (lambda: Applied(lambda x: F.dropout(x, 0.3, inplace=True), 48), SEQUENCES),
    "dropout-of-channels": (lambda: Applied(lambda x: F.dropout1d(x, 0.3), 48), SEQUENCES),
    "dropout-alpha": (lambda: Applied(lambda x: F.alpha_dropout(x, 0.3, True), 48), SEQUENCES),
    "dropout-attention": (attend(dropout_p=0.3), SEQUENCES),
    "rrelu": (lambda: Applied(lambda x: F.rrelu(x, training=True), 48), SEQUENCES),
    "gumbel": (lambda: Applied(lambda x: F.gumbel_softmax(x), 48), SEQUENCES),
    "packed": (Packed, SEQUENCES),
}


@pytest.mark.parametrize("model", VECTORISED)
def test_what_is_vectorised_is_what_it_is_alone(model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(make_workload(*VECTORISED[model]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, once in a process
@pytest.mark.parametrize("model", ONE_BY_ONE)
def test_what_cannot_be_is_trained_one_by_one(model: str) -> None:
    with pytest.warns(UserWarning, match=r"run one by one.*cannot be vectorised"):
        check(make_workload(*ONE_BY_ONE[model]))


def check(workload: Workload) -> None:
    """Each network has the losses of a plain loop."""
    spec, rates = make_optimizer("momentum"), rates_of("momentum", 3)
    population = Population(workload, spec, range(3), dtype=torch.float64)
    plain = [plain_run(workload, spec, seed, torch.float64) for seed in range(3)]
    for _ in range(5):
        losses = population.backward()
        population.update(rates)
        expected = [run.step(rate) for run, rate in zip(plain, rates.tolist(), strict=True)]
        assert relative(losses, torch.stack(expected)) <= 1e-9
