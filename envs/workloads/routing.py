"""Fixed workloads that choose among controllers: networks whose parts decide what other parts do."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workloads.data import Array
from rlrate.envs.workloads.fixed import first, fixed

__all__ = ["Depthwise", "Experts", "Highway", "SoftTree"]


class Experts(nn.Module):
    """Small networks, each weighted by what a gate says of it (Jacobs et al. 1991)."""

    def __init__(self, inputs: int, experts: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, experts)
        self.enter, self.leave = nn.Linear(inputs, experts * width), nn.Parameter(torch.randn(experts, width))
        self.experts, self.width = experts, width

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, 1)."""
        hidden = torch.tanh(self.enter(inputs)).reshape(len(inputs), self.experts, self.width)
        said = (hidden * self.leave).sum(dim=2) / self.width**0.5
        return cast(Tensor, (self.gate(inputs).softmax(dim=1) * said).sum(dim=1, keepdim=True))


class SoftTree(nn.Module):
    """A complete tree in which each example goes both ways, by oblique splits (Frosst and Hinton 2017)."""

    def __init__(self, inputs: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.splits, self.depth = nn.Linear(inputs, 2**depth - 1), depth
        self.leaves = nn.Parameter(torch.randn(2**depth, outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, outputs)."""
        right = self.splits(inputs).sigmoid()
        reached = torch.ones_like(right[:, :1])
        for level in range(self.depth):
            here = right[:, 2**level - 1 : 2 ** (level + 1) - 1]
            reached = torch.stack([reached * (1 - here), reached * here], dim=2).flatten(1)
        return reached @ self.leaves


class Highway(nn.Module):
    """Layers that pass on what they do not change (Srivastava et al. 2015); at first they change a ninth."""

    def __init__(self, inputs: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(inputs, width), nn.Linear(width, classes)
        self.changes = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            nn.init.constant_(cast(nn.Linear, gate).bias, -2.0)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, classes)."""
        hidden = self.enter(inputs)
        for change, gate in zip(self.changes, self.gates, strict=True):
            hidden = hidden + gate(hidden).sigmoid() * (F.elu(change(hidden)) - hidden)
        return cast(Tensor, self.head(hidden))


class Depthwise(nn.Module):
    """Residual blocks of a convolution in each channel alone and a small network across them (Liu et al. 2022)."""

    def __init__(self, channels: int, blocks: int, classes: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, channels, 2, stride=2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
                nn.GroupNorm(1, channels),
                nn.Conv2d(channels, 2 * channels, 1),
                nn.GELU(),
                nn.Conv2d(2 * channels, channels, 1),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """(batch, 1, height, width) -> (batch, classes)."""
        hidden = self.enter(pictures)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return cast(Tensor, self.head(hidden.mean(dim=(2, 3))))


def regions(rng: np.random.Generator) -> tuple[Array, Array]:
    """A linear function in each of six regions of five numbers, in noise."""
    x = rng.normal(size=(1800, 5))
    nearest = np.square(x[:, None] - rng.normal(size=(6, 5))).sum(axis=2).argmin(axis=1)
    values = (x * rng.normal(size=(6, 5))[nearest]).sum(axis=1) + rng.normal(size=6)[nearest]
    values += 0.3 * rng.normal(size=1800)
    return x, (values / values.std())[:, None]


def ledges(rng: np.random.Generator) -> tuple[Array, Array]:
    """A value for each of the cells that eight oblique cuts leave of six numbers, in noise."""
    x = rng.normal(size=(1800, 6))
    sides = x @ rng.normal(size=(6, 8)) > rng.normal(size=8)
    values = sides @ rng.normal(size=8) + (sides[:, :4] & sides[:, 4:]) @ rng.normal(size=4)
    values += 0.2 * rng.normal(size=1800)
    return x, (values / values.std())[:, None]


def keys(rng: np.random.Generator) -> tuple[Array, Array]:
    """Twenty-four loudnesses of one of eight chords in a random key, in noise."""
    chords = rng.random((8, 24)) < 0.2
    labels, shift = rng.integers(8, size=1700), rng.integers(4, size=1700)
    places = (np.arange(24) + shift[:, None]) % 24
    return chords[labels[:, None], places] + 0.35 * rng.normal(size=(1700, 24)), labels


def shapes(rng: np.random.Generator) -> tuple[Array, Array]:
    """Pictures (1, 12, 12) of a disc, a ring, a square, a cross or a bar, of some size at some place, in noise."""
    labels, size = rng.integers(5, size=1800), rng.uniform(2.5, 4.5, (1800, 1, 1))
    centre = rng.uniform(4.0, 7.0, (2, 1800, 1, 1))
    down, across = np.arange(12)[:, None] - centre[0], np.arange(12)[None] - centre[1]
    far, corner = np.hypot(down, across), np.maximum(abs(down), abs(across))
    narrow = np.minimum(abs(down), abs(across))
    drawn = np.stack(
        [
            far < size,
            abs(far - size) < 0.8,
            corner < size,
            (narrow < 0.9) & (corner < size),
            (abs(down) < 0.9) & (abs(across) < size),
        ]
    )
    pictures = drawn[labels, np.arange(1800)] + 0.3 * rng.normal(size=(1800, 12, 12))
    return pictures[:, None], labels


fixed(
    "regions-experts",
    "Gated experts, a linear function in each region",
    first(1400, regions),
    partial(Experts, 5, 8, 12),
)
fixed("ledges-tree", "Soft tree of depth 5 on a function of steps", first(1400, ledges), partial(SoftTree, 6, 5, 1))
fixed("keys-highway", "Highway network of ten layers on chords", first(1300, keys), partial(Highway, 24, 32, 10, 8))
fixed(
    "shapes-depthwise",
    "Depthwise convolutions on pictures of shapes",
    first(1400, shapes),
    partial(Depthwise, 16, 2, 5),
)
