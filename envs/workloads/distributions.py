"""Fixed workloads that choose among controllers: networks that learn a distribution, an order or a part of one."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workloads.data import Array
from rlrate.envs.workloads.fixed import first, fixed
from rlrate.envs.workloads.models import MLP

__all__ = [
    "CouplingFlow",
    "Ordinal",
    "density_loss",
    "hazard_loss",
    "mixture_loss",
    "ordinal_loss",
    "pinball_loss",
]

QUANTILES = (0.1, 0.5, 0.9)


class CouplingFlow(nn.Module):
    """Log-density of points of the plane, through affine couplings to a normal distribution (Dinh et al. 2017)."""

    def __init__(self, couplings: int, width: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(MLP(1, 2, [width, width], activation="tanh") for _ in range(couplings))

    def forward(self, points: Tensor) -> Tensor:
        """(batch, 2) -> (batch, 1)."""
        kept, moved = points[:, :1], points[:, 1:]
        stretched = torch.zeros_like(kept)
        for coupling in self.couplings:
            scale, shift = coupling(kept).chunk(2, dim=1)
            scale = torch.tanh(scale)
            kept, moved = moved * scale.exp() + shift, kept
            stretched = stretched + scale
        return stretched - 0.5 * (kept.square() + moved.square()) - math.log(2 * math.pi)


class Ordinal(nn.Module):
    """One score, and rising thresholds that it is compared with (McCullagh 1980)."""

    def __init__(self, inputs: int, width: int, grades: int) -> None:
        super().__init__()
        self.score = MLP(inputs, 1, [width], activation="silu")
        self.lowest, self.steps = nn.Parameter(-torch.ones(1)), nn.Parameter(torch.zeros(grades - 2))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, grades - 1): logits of a grade above each threshold."""
        thresholds = torch.cat([self.lowest, self.lowest + F.softplus(self.steps).cumsum(dim=0)])
        return cast(Tensor, self.score(inputs)) - thresholds


def density_loss(output: Tensor, target: Tensor) -> Tensor:
    """The mean negative log-density; the targets are unused."""
    return -output.mean()


def mixture_loss(output: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of (batch, 1) under (batch, 3 k): logits, means and log-deviations (Bishop 1994)."""
    logits, mean, log_deviation = output.chunk(3, dim=1)
    away = (target - mean) * torch.exp(-log_deviation)
    log_density = -0.5 * away.square() - log_deviation - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(logits.log_softmax(dim=1) + log_density, dim=1).mean()


def hazard_loss(output: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of an end (Gensheimer and Narasimhan 2019).

    Args:
        output: Logits that it ends in each interval, if not before: (batch, intervals).
        target: Of each interval whether it was lived through, then of each whether it ended there: (batch,
            2 * intervals).
    """
    lived, ended = target.chunk(2, dim=1)
    return (lived * F.softplus(output) + ended * F.softplus(-output)).sum(dim=1).mean()


def pinball_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over `QUANTILES` of what missing (batch, 1) costs (Koenker and Bassett 1978)."""
    missed = target - output
    return torch.stack(
        [torch.maximum(q * missed[:, i], (q - 1) * missed[:, i]) for i, q in enumerate(QUANTILES)]
    ).mean()


def ordinal_loss(output: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of grades (batch,) under an `Ordinal`."""
    above = torch.cat([torch.ones_like(output[:, :1]), output.sigmoid(), torch.zeros_like(output[:, :1])], dim=1)
    chances = above[:, :-1] - above[:, 1:]
    return -torch.log(chances.gather(1, target[:, None]) + 1e-6).mean()


def branches(rng: np.random.Generator) -> tuple[Array, Array]:
    """One number of which another is a function; to be told the other way round, where it has several values."""
    y = rng.uniform(0, 1, (1800, 1))
    x = y + 0.3 * np.sin(2 * np.pi * y) + 0.1 * rng.normal(size=y.shape)
    return 2 * x - 1, 4 * y - 2


def crescents(rng: np.random.Generator) -> tuple[Array, Array]:
    """Points of the plane on two crescents, in noise."""
    angle, which = rng.uniform(0, np.pi, 2300), rng.integers(2, size=2300)
    points = np.stack([np.cos(angle) - 0.5 + which, np.where(which, -1, 1) * np.sin(angle) + 0.25 - which / 2], axis=1)
    points = 1.5 * points + 0.3 * rng.normal(size=points.shape)
    return points, points


def lifetimes(rng: np.random.Generator) -> tuple[Array, Array]:
    """Eight numbers of each of 900, and in which of ten intervals it ended; a quarter are lost from sight before."""
    x = rng.normal(size=(900, 8))
    risk = np.exp(0.8 * x[:, 0] - 0.8 * x[:, 1] * x[:, 2] + 0.5 * np.abs(x[:, 3]))
    end, lost = (np.minimum(rng.exponential(scale, 900) * 10, 9.5) for scale in (1.5 / risk, 1.5))
    time, intervals = np.minimum(end, lost), np.arange(10)
    lived = intervals < np.floor(time)[:, None]
    ended = (intervals == np.floor(time)[:, None]) & ((end <= lost) & (end < 9.5))[:, None]
    return x, np.concatenate([lived, ended], axis=1).astype(np.float64)


def demand(rng: np.random.Generator) -> tuple[Array, Array]:
    """A function of five numbers in noise that is skewed, and larger where the first one is."""
    x = rng.uniform(-1.5, 1.5, (1600, 5))
    noise = np.exp(0.5 * x[:, 0]) * (rng.gamma(2.0, 0.5, 1600) - 1.0)
    values = np.sin(2 * x[:, 1]) * x[:, 2] + x[:, 3] ** 2 + noise
    return x, (values / values.std())[:, None]


def knots(rng: np.random.Generator) -> tuple[Array, Array]:
    """Points of a knot's shadow in noise of a size that is told, and that noise."""
    angle = rng.uniform(0, 2 * np.pi, 2300)
    clean = np.stack([np.sin(angle) + 2 * np.sin(2 * angle), np.cos(angle) - 2 * np.cos(2 * angle)], axis=1) / 2
    share, noise = rng.uniform(0.02, 0.98, (2300, 1)), rng.normal(size=(2300, 2))
    return np.concatenate([np.sqrt(1 - share) * clean + np.sqrt(share) * noise, 2 * share - 1], axis=1), noise


def tags(rng: np.random.Generator) -> tuple[Array, Array]:
    """Thirty numbers, and which of twelve tags apply, four in a hundred of them wrongly."""
    x = rng.normal(size=(1200, 30))
    told = np.tanh(x @ rng.normal(size=(30, 6)) / 3) @ rng.normal(size=(6, 12))
    applied = told > 0.5 + 0.2 * rng.normal(size=told.shape)
    return x, (applied ^ (rng.random(applied.shape) < 0.04)).astype(np.float64)


def grades(rng: np.random.Generator) -> tuple[Array, Array]:
    """Ten numbers, and a grade of five that rises with a function of them, with luck."""
    x = rng.normal(size=(1200, 10))
    merit = x[:, :4].sum(axis=1) + 1.5 * np.maximum(x[:, 4], x[:, 5]) + 0.8 * rng.logistic(size=1200)
    return x, np.searchsorted(np.quantile(merit, [0.1, 0.3, 0.6, 0.85]), merit).astype(np.int64)


def _dropout_network() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((30, 96), (96, 96)):
        layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(0.3)]
    return nn.Sequential(*layers, nn.Linear(96, 12))


fixed(
    "branches-mixture",
    "Mixture density network on a relation with branches",
    first(1400, branches),
    partial(MLP, 1, 12, [32]),
    loss=mixture_loss,
)
fixed(
    "crescents-flow",
    "Affine couplings that learn a density of the plane",
    first(1800, crescents),
    partial(CouplingFlow, 6, 16),
    loss=density_loss,
)
fixed(
    "lifetimes-hazard",
    "Hazards of ten intervals, half of the ends unseen",
    first(600, lifetimes),
    partial(MLP, 8, 10, [48, 48]),
    loss=hazard_loss,
)
fixed(
    "demand-quantiles",
    "Three quantiles of a skewed value",
    first(1200, demand),
    partial(MLP, 5, 3, [48, 48], activation="leaky-relu"),
    loss=pinball_loss,
)
fixed(
    "knots-denoising",
    "Network that tells the noise of noisy points",
    first(1800, knots),
    partial(MLP, 3, 2, [64, 64, 64], activation="silu"),
)
fixed(
    "tags-dropout",
    "MLP with dropout, twelve tags at once",
    first(900, tags),
    _dropout_network,
    loss=F.binary_cross_entropy_with_logits,
)
fixed(
    "grades-ordinal",
    "Grades by one score and its thresholds",
    first(900, grades),
    partial(Ordinal, 10, 32, 5),
    loss=ordinal_loss,
    accuracy=False,
)
