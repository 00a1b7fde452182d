"""Small networks of many kinds, for the tests of populations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workload import Workload

CLASSES = 4


class Recurrent(nn.Module):
    """The last output of a recurrent layer, then a linear layer."""

    def __init__(self, kind: Callable[..., nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.core = kind(5, 6, **{"batch_first": True, **settings})
        self.head = nn.Linear(6 * (2 if self.core.bidirectional else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if not self.core.batch_first:
            return self.head(self.core(x.transpose(0, 1))[0][-1])
        return self.head(self.core(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(5, 24, bias=False), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(F.layer_norm(y.transpose(1, 2).flatten(2), (8,)).mean(1))


class Odd(nn.Module):
    """A tied weight, a frozen weight, an unused one, and buffers that are replaced."""

    steps: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(5, CLASSES), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.tanh(self.first(x[:, 0])))
        if self.training:
            self.steps = self.steps + 1
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return (h - self.mean) @ self.frozen


class DataDependent(nn.Module):
    """Control flow that reads its data, which vmap cannot follow, and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.norm(x[:, 0]))
        return y if y[0, 0].item() > 0 else 2 * y


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0] + 0.1 * torch.randn_like(x[:, 0]))


class SecretlyNoisy(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0] + 0.1 * torch.empty(5, dtype=x.dtype).normal_())


PICTURES, SEQUENCES = (1, 8, 8), (6, 5)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)),
        PICTURES,
    ),
    # One parameter is large enough to be treated apart; here, and where all of them are.
    "wide": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 36), nn.ReLU(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 4)),
        PICTURES,
    ),
    "all-wide": (
        lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 36, bias=False),
            nn.ReLU(),
            nn.Linear(36, 64, bias=False),
            nn.ReLU(),
            nn.Linear(64, 36, bias=False),
        ),
        PICTURES,
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 4),
        ),
        PICTURES,
    ),
    "cnn-batchnorm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 4),
        ),
        PICTURES,
    ),
    "gru": (lambda: Recurrent(nn.GRU), (3, 5)),
    "lstm": (lambda: Recurrent(nn.LSTM), (3, 5)),
    "layers-of-lstm": (lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.3), SEQUENCES),
    "gru-both-ways": (
        lambda: Recurrent(nn.GRU, bidirectional=True, bias=False, batch_first=False),
        SEQUENCES,
    ),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), SEQUENCES),
    "attention": (Attention, SEQUENCES),
    "dropout": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 9), nn.Dropout(0.3), nn.Linear(9, 4)),
        SEQUENCES,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(6, 3, 3, padding=2, dilation=2), nn.GELU(), nn.Flatten(), nn.Linear(15, 4)),
        SEQUENCES,
    ),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv1d(6, 4, 3, groups=2, padding="same"),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
        SEQUENCES,
    ),
    "odd": (Odd, SEQUENCES),
    "noise": (Noisy, SEQUENCES),
}


def make_workload(make: Callable[[], nn.Module], shape: tuple[int, ...], **more: Any) -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(170, *shape, generator=generator)
    inputs[:, ..., 0] = 0.0  # equal neighbours, where pooling must break ties as torch does
    targets = torch.randint(CLASSES, (170,), generator=generator)
    settings = {"loss": F.cross_entropy, "batch_size": 16, "accuracy": True, **more}
    return Workload(
        "a workload", "test", make, (inputs[:70], targets[:70]), (inputs[70:], targets[70:]),
        **settings,
    )  # fmt: skip


def workload_of(name: str) -> Workload:
    return make_workload(*MODELS[name])


def rates_of(optimizer: str, size: int) -> Tensor:
    top = -1.5 if optimizer in ("sgd", "momentum", "nesterov", "adagrad") else -2.5
    return torch.logspace(top - 2, top, size, dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    scale = b.abs().max().item()
    return (a - b).abs().max().item() / scale if scale > 0 else a.abs().max().item()
