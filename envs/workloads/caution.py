"""Fixed workloads that choose among controllers as well: on these, a rate that is too high for long costs most."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workload import Split
from rlrate.envs.workloads.data import Array, Examples, split
from rlrate.envs.workloads.fixed import drawn, first, fixed
from rlrate.envs.workloads.selection import Gated

__all__ = ["ConvolutionalAutoencoder", "FactorisationMachine", "Maxout", "RadialBasis", "SpatialGating"]


class Maxout(Gated):
    """Layers of which each output is the largest of two linear maps (Goodfellow et al. 2013)."""

    def combine(self, value: Tensor, gate: Tensor) -> Tensor:
        """The larger of both, element by element."""
        return torch.maximum(value, gate)


class ConvolutionalAutoencoder(nn.Module):
    """Convolutions along time down to a code, and a linear map back from it."""

    def __init__(self, length: int, channels: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv1d(1, channels, 5, stride=2, padding=2),
            nn.ELU(),
            nn.Conv1d(channels, channels, 5, stride=2, padding=2),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(channels * (length // 4), code),
        )
        self.decoder = nn.Sequential(nn.Linear(code, length), nn.ELU(), nn.Linear(length, length))

    def forward(self, waves: Tensor) -> Tensor:
        """(batch, length) -> (batch, length)."""
        return cast(Tensor, self.decoder(self.encoder(waves[:, None])))


class SpatialGating(nn.Module):
    """Symbols embedded, and half of their features gated by what a linear map over places makes of the other half.

    One block of gMLP (Liu et al. 2021) that predicts the symbol after the last place.
    """

    def __init__(self, symbols: int, places: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, width)
        self.norm, self.enter = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.across = nn.Linear(places, places)
        nn.init.normal_(self.across.weight, std=0.01)
        nn.init.ones_(self.across.bias)
        self.leave, self.head = nn.Linear(width, width), nn.Linear(width, symbols)

    def forward(self, symbols: Tensor) -> Tensor:
        """(batch, places) int64 -> (batch, symbols)."""
        hidden = self.embedding(symbols)
        value, gate = F.gelu(self.enter(self.norm(hidden))).chunk(2, dim=-1)
        gated = value * self.across(gate.transpose(1, 2)).transpose(1, 2)
        return cast(Tensor, self.head((hidden + self.leave(gated))[:, -1]))


class FactorisationMachine(nn.Module):
    """Linear terms, and products of all pairs of inputs through vectors of each input (Rendle 2010); two classes."""

    def __init__(self, inputs: int, rank: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, 1)
        self.vectors = nn.Parameter(0.1 * torch.randn(inputs, rank))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, 2), the first class's score being 0."""
        whole, own = inputs @ self.vectors, inputs.square() @ self.vectors.square()
        score = self.linear(inputs) + 0.5 * (whole.square() - own).sum(dim=1, keepdim=True)
        return torch.cat([torch.zeros_like(score), score], dim=1)


class RadialBasis(nn.Module):
    """A linear function of bumps around centres that are learnt, and so are their widths."""

    def __init__(self, inputs: int, bumps: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(bumps, inputs))
        self.log_width = nn.Parameter(torch.zeros(bumps))
        self.head = nn.Linear(bumps, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, 1)."""
        distance = (inputs[:, None] - self.centres).square().sum(dim=2)
        return cast(Tensor, self.head(torch.exp(-distance * torch.exp(-self.log_width))))


def rings(rng: np.random.Generator) -> Examples:
    """Which of 4 concentric rings a point of the plane lies on, with four more inputs that tell nothing."""
    labels, angle = rng.integers(4, size=1500), rng.uniform(0, 2 * np.pi, 1500)
    radius = 1.0 + labels + 0.2 * rng.normal(size=1500)
    plane = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    inputs = np.concatenate([plane, rng.normal(size=(1500, 4))], axis=1)
    return Examples("rings", inputs.astype(np.float32), labels.astype(np.int64), 4)


def dampings(rng: np.random.Generator) -> Examples:
    """Damped oscillations, 32 samples in a little noise; the targets are unused."""
    time, size = np.linspace(0, 1, 32), (2250, 1)
    frequency, phase, decay = rng.uniform(1, 4, size), rng.uniform(0, 2 * np.pi, size), rng.uniform(0, 4, size)
    waves = np.exp(-decay * time) * np.sin(2 * np.pi * frequency * time + phase) + 0.03 * rng.normal(size=(2250, 32))
    return Examples("dampings", waves.astype(np.float32), np.zeros(size, np.float32), unit_scale=True)


def wiggles(rng: np.random.Generator) -> Examples:
    """A smooth function of three inputs in noise, few examples of it."""
    x = rng.uniform(-2, 2, (400, 3))
    values = np.sin(2 * x[:, 0]) * x[:, 1] + np.cos(x[:, 2]) + 0.5 * rng.normal(size=400)
    return Examples("wiggles", x.astype(np.float32), values[:, None].astype(np.float32))


def votes(rng: np.random.Generator) -> Examples:
    """Which way 40 bits vote, by their pairs as well, with much luck; few examples of it."""
    bits = (rng.random((600, 40)) < 0.3).astype(np.float32)
    vectors = rng.normal(size=(40, 3)) / 3
    score = bits @ rng.normal(size=40) + 0.5 * np.square(bits @ vectors).sum(axis=1)
    labels = (score - np.median(score) + rng.logistic(size=600) > 0).astype(np.int64)
    return Examples("votes", bits, labels, 2, unit_scale=True)


def symbols(rng: np.random.Generator) -> tuple[Array, Array]:
    """Ten symbols, each drawn by the two before it; predicted from eight."""
    chances = rng.dirichlet(np.full(10, 0.3), size=(10, 10)).cumsum(axis=2)
    text = [0, 1]
    for draw in rng.random(18_000):
        text.append(min(int((chances[text[-2], text[-1]] < draw).sum()), 9))
    windows = np.array(text[: 9 * 2000], np.int64).reshape(2000, 9)
    return windows[:, :8], windows[:, 8]


def _reconstructed(rng: np.random.Generator) -> tuple[Split, Split]:
    train, heldout = (part[0] for part in split(rng, dampings(rng), 2000, 250))
    return (train, train), (heldout, heldout)


fixed(
    "rings-maxout",
    "Maxout network on rings of which four in ten labels are drawn at random",
    drawn(rings, 1000, 500, label_noise=0.4),
    partial(Maxout, 6, 4, 48, 2),
)
fixed(
    "dampings-autoencoder",
    "Convolutional autoencoder of damped oscillations",
    _reconstructed,
    partial(ConvolutionalAutoencoder, 32, 8, 6),
)
fixed(
    "symbols-gating",
    "Spatially gated network that predicts the next of ten symbols",
    first(1500, symbols),
    partial(SpatialGating, 10, 8, 32),
)
fixed(
    "votes-factorisation-machine",
    "Factorisation machine on 200 rows of 40 bits: it overfits",
    drawn(votes, 200, 400),
    partial(FactorisationMachine, 40, 6),
)
fixed(
    "wiggles-radial",
    "Radial basis functions on 120 noisy values: they overfit",
    drawn(wiggles, 120, 280),
    partial(RadialBasis, 3, 48),
)
