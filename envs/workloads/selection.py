"""Fixed workloads by which one of several trained controllers is chosen: networks and data of other kinds again."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workloads.data import Array, Examples, iris
from rlrate.envs.workloads.fixed import drawn, first, fixed
from rlrate.envs.workloads.models import MLP

__all__ = ["Factorisation", "Gated", "Mixer", "SetNetwork", "VariationalAutoencoder", "evidence_loss"]

SIZE = 2250  # 2000 to train on, 250 held out


class Gated(nn.Module):
    """Layers half of whose outputs gate the other half."""

    def __init__(self, inputs: int, outputs: int, width: int, depth: int) -> None:
        super().__init__()
        widths = [inputs, *[width] * depth]
        self.layers = nn.ModuleList(nn.Linear(before, 2 * after) for before, after in pairwise(widths))
        self.head = nn.Linear(width, outputs)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        for layer in self.layers:
            hidden = self.combine(*layer(hidden).chunk(2, dim=-1))
        return cast(Tensor, self.head(hidden))

    def combine(self, value: Tensor, gate: Tensor) -> Tensor:
        """What both halves of a layer's outputs become."""
        return value * gate.sigmoid()


class SetNetwork(nn.Module):
    """The mean over a set's members of what one network says of each, read by another (Zaheer et al. 2017)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.member = nn.Sequential(nn.Linear(inputs, width), nn.ELU(), nn.Linear(width, width), nn.ELU())
        self.head = nn.Sequential(nn.Linear(width, width), nn.ELU(), nn.Linear(width, 1))

    def forward(self, sets: Tensor) -> Tensor:
        """(batch, members, inputs) -> (batch, 1)."""
        return cast(Tensor, self.head(self.member(sets).mean(dim=1)))


class Factorisation(nn.Module):
    """A table's entry as the product of a vector for its row and one for its column."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.row, self.column = nn.Embedding(rows, rank), nn.Embedding(columns, rank)
        for table in (self.row, self.column):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, places: Tensor) -> Tensor:
        """(batch, 2) int64 -> (batch, 1)."""
        return cast(Tensor, (self.row(places[:, 0]) * self.column(places[:, 1])).sum(dim=1, keepdim=True))


class Mixer(nn.Module):
    """One block that mixes places, then features (Tolstikhin et al. 2021), with LayerNorm before each."""

    def __init__(self, places: int, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.enter = nn.Linear(features, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.across = nn.Sequential(nn.Linear(places, 2 * places), nn.GELU(), nn.Linear(2 * places, places))
        self.within = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, places, features) -> (batch, classes)."""
        first, second = self.norms
        hidden = self.enter(inputs)
        hidden = hidden + self.across(first(hidden).transpose(1, 2)).transpose(1, 2)
        hidden = hidden + self.within(second(hidden))
        return cast(Tensor, self.head(hidden.mean(dim=1)))


class VariationalAutoencoder(nn.Module):
    """Mean and log-variance of a code, and the decoder's logits of a code drawn from them (Kingma and Welling 2014)."""

    def __init__(self, inputs: int, width: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 2 * code))
        self.decoder = nn.Sequential(nn.Linear(code, width), nn.Tanh(), nn.Linear(width, inputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, inputs + 2 * code): logits, mean, log-variance."""
        moments = self.encoder(inputs)
        mean, log_variance = moments.chunk(2, dim=1)
        if self.training:
            mean = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return torch.cat([self.decoder(mean), moments], dim=1)


def evidence_loss(output: Tensor, target: Tensor) -> Tensor:
    """The negative evidence lower bound per example, of a `VariationalAutoencoder` on bits."""
    inputs = target.shape[1]
    mean, log_variance = output[:, inputs:].chunk(2, dim=1)
    missed = F.softplus(output[:, :inputs]) - target * output[:, :inputs]
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return (missed.sum(dim=1) + divergence.sum(dim=1)).mean()


def checkerboard(rng: np.random.Generator) -> Examples:
    """Black or white on a board of 3 x 3 squares, with one more input that tells nothing."""
    x = rng.uniform(0, 3, size=(SIZE, 3))
    labels = np.floor(x[:, :2]).sum(axis=1).astype(np.int64) % 2
    return Examples("checkerboard", x.astype(np.float32), labels, 2)


def _chirps(rng: np.random.Generator) -> tuple[Array, Array]:
    labels, time = rng.integers(6, size=SIZE), np.linspace(0, 1, 32)
    start, bend = 1.0 + labels % 3, 4.0 * (labels // 3) - 2.0
    phase = rng.uniform(0, 2 * math.pi, (SIZE, 1))
    wave = np.sin(2 * math.pi * (start[:, None] * time + bend[:, None] * time**2) + phase)
    return wave + 0.7 * rng.normal(size=wave.shape), labels


def chirps(rng: np.random.Generator) -> Examples:
    """Tones that rise or fall, 32 samples (1, 32) in noise; 6 classes."""
    waves, labels = _chirps(rng)
    return Examples("chirps", waves[:, None].astype(np.float32), labels, 6, unit_scale=True)


def chirp_pieces(rng: np.random.Generator) -> Examples:
    """The same cut into 8 pieces of 4 samples."""
    waves, labels = _chirps(rng)
    return Examples("chirps", waves.reshape(SIZE, 8, 4).astype(np.float32), labels, 6, unit_scale=True)


def spreads(rng: np.random.Generator) -> Examples:
    """Logarithm of the deviation of a set of 10 numbers' distribution, each number with one that tells nothing."""
    deviation = rng.uniform(-1, 1, (SIZE, 1))
    members = np.exp(deviation) * rng.normal(size=(SIZE, 10)) + rng.normal(size=(SIZE, 1))
    sets = np.stack([members, rng.normal(size=(SIZE, 10))], axis=2)
    return Examples("spreads", sets.astype(np.float32), deviation.astype(np.float32), unit_scale=True)


def cubic(rng: np.random.Generator) -> Examples:
    """All products of up to three of four inputs, of which the values are a linear function, in a little noise."""
    x = rng.uniform(-1, 1, (SIZE, 4))
    ones = np.concatenate([x, np.ones((SIZE, 1))], axis=1)
    places = [(i, j, k) for i in range(5) for j in range(i, 5) for k in range(j, 5)][:-1]
    features = np.stack([ones[:, i] * ones[:, j] * ones[:, k] for i, j, k in places], axis=1)
    values = features @ rng.normal(size=(features.shape[1], 1))
    values = values / values.std() + 0.01 * rng.normal(size=values.shape)
    return Examples("cubic", features.astype(np.float32), values.astype(np.float32))


def ratings(rng: np.random.Generator) -> tuple[Array, Array]:
    """Entries of a table of rank 4 in noise; the held-out entries are others of the same table."""
    table = rng.normal(size=(60, 4)) @ rng.normal(size=(4, 50)) / 2 + 0.2 * rng.normal(size=(60, 50))
    places = rng.permutation(table.size)[:SIZE]
    return np.stack(np.divmod(places, 50), axis=1), table.ravel()[places][:, None]


def patterns(rng: np.random.Generator) -> tuple[Array, Array]:
    """48 bits, the signs of a random map of 5 numbers, one in twenty of them wrong; the inputs are the targets."""
    bits = rng.normal(size=(SIZE, 5)) @ rng.normal(size=(5, 48)) > rng.normal(size=48)
    bits ^= rng.random(bits.shape) < 0.05
    rows = bits.astype(np.float64)
    return rows, rows


def _signal_network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16)):
        layers += [nn.Conv1d(before, after, 5, stride=2, padding=2), nn.GroupNorm(4, after), nn.SiLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 8, 6))


for _name, _description, _source, _model in (
    ("checkerboard-gated", "Gated layers on a checkerboard", checkerboard, partial(Gated, 3, 2, 48, 2)),
    ("chirps-convolution", "Convolutions along time with GroupNorm on noisy chirps", chirps, _signal_network),
    ("chirps-mixer", "A mixer block on noisy chirps in pieces", chirp_pieces, partial(Mixer, 8, 4, 16, 6)),
    ("spreads-set", "Network of sets: the deviation of ten numbers", spreads, partial(SetNetwork, 2, 24)),
    ("cubic-least-squares", "Least squares on products of inputs, ill-conditioned", cubic, partial(MLP, 34, 1)),
):
    fixed(_name, _description, drawn(_source, 2000, 250), _model)
fixed(
    "iris-mlp",
    "4-24-24-3 MLP with LayerNorm on iris",
    drawn(lambda _: iris(), 2000, 250),
    partial(MLP, 4, 3, [24, 24], activation="silu", norm="layer"),
    batch_size=10,
)
fixed("ratings-factorisation", "Table of rank 4, factorised", first(2000, ratings), partial(Factorisation, 60, 50, 6))
fixed(
    "patterns-vae",
    "Variational autoencoder of 48 bits",
    first(2000, patterns),
    partial(VariationalAutoencoder, 48, 32, 5),
    loss=evidence_loss,
)
