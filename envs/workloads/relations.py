"""Fixed workloads that choose among controllers: networks that compare, or look things up."""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workloads.data import Array
from rlrate.envs.workloads.fixed import first, fixed

__all__ = ["Bag", "BradleyTerry", "GraphConvolution", "Operator", "Triplets", "margin_loss"]


class Triplets(nn.Module):
    """How much nearer a point is to its like than to another, as one network embeds them (Schroff et al. 2015)."""

    def __init__(self, inputs: int, width: int, code: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, code))

    def forward(self, triplets: Tensor) -> Tensor:
        """(batch, 3, inputs), a point, its like and another -> (batch, 1)."""
        point, like, other = self.embed(triplets).unbind(dim=1)
        return cast(Tensor, ((point - other).square() - (point - like).square()).sum(dim=1, keepdim=True))


def margin_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean of log(1 + exp(-margin)); the targets are unused."""
    return F.softplus(-output).mean()


class BradleyTerry(nn.Module):
    """Who of two wins, by the strength of each and by how one's play answers the other's (Chen and Joachims 2016)."""

    def __init__(self, players: int, rank: int) -> None:
        super().__init__()
        self.strength, self.play, self.answer = (nn.Embedding(players, size) for size in (1, rank, rank))
        for table in (self.strength, self.play, self.answer):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, pairs: Tensor) -> Tensor:
        """(batch, 2) int64 -> (batch, 2), the second's score being 0."""
        strength, play, answer = (table(pairs) for table in (self.strength, self.play, self.answer))
        met = (play[:, 0] * answer[:, 1] - play[:, 1] * answer[:, 0]).sum(dim=1, keepdim=True)
        score = strength[:, 0] - strength[:, 1] + met
        return torch.cat([score, torch.zeros_like(score)], dim=1)


class GraphConvolution(nn.Module):
    """Two layers that average over neighbours in a graph (Kipf and Welling 2017)."""

    def __init__(self, neighbours: Array, features: Array, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("neighbours", torch.from_numpy(neighbours.astype(np.float32)))
        self.register_buffer("features", torch.from_numpy(features.astype(np.float32)))
        self.first, self.second = nn.Linear(features.shape[1], width), nn.Linear(width, classes)

    def forward(self, nodes: Tensor) -> Tensor:
        """(batch,) int64 -> (batch, classes)."""
        average = cast(Tensor, self.neighbours)
        hidden = F.relu(self.first(average @ cast(Tensor, self.features)))
        return cast(Tensor, self.second(average @ hidden)[nodes])


class Bag(nn.Module):
    """A linear map of the mean of the words' vectors (Joulin et al. 2017)."""

    def __init__(self, words: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(words, width), nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        """(batch, words) int64 -> (batch, classes)."""
        return cast(Tensor, self.head(self.embedding(words).mean(dim=1)))


class Operator(nn.Module):
    """The inner product of what one network makes of a function's samples and another of a place (Lu et al. 2021)."""

    def __init__(self, samples: int, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(samples, width), nn.Tanh(), nn.Linear(width, width))
        self.trunk = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, samples + 1), the place last -> (batch, 1)."""
        return cast(Tensor, (self.branch(inputs[:, :-1]) * self.trunk(inputs[:, -1:])).sum(dim=1, keepdim=True))


def kin(rng: np.random.Generator) -> tuple[Array, Array]:
    """Triplets of points that random curves make of eight numbers, of which three tell who is whose like."""
    curve = rng.normal(size=(8, 16))
    nature = rng.normal(size=(3400, 2, 3))
    hidden = np.concatenate([nature[:, [0, 0, 1]], 0.5 * rng.normal(size=(3400, 3, 5))], axis=2)
    points = np.sin(hidden @ curve / 2) + 0.2 * rng.normal(size=(3400, 3, 16))
    return points, np.ones((3400, 1))


def matches(rng: np.random.Generator) -> tuple[Array, Array]:
    """1,500 matches of 50 players, whom strength, style and luck decide."""
    strength, style = rng.normal(size=50), rng.normal(size=(50, 2))
    pairs = np.stack([rng.permutation(50)[:2] for _ in range(1500)])
    first, second = pairs.T
    score = strength[first] - strength[second]
    score += 1.5 * (style[first, 0] * style[second, 1] - style[first, 1] * style[second, 0])
    return pairs, (score + rng.logistic(size=1500) < 0).astype(np.int64)


def communities(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """A graph of 320 nodes in five communities, with twelve numbers of each that tell little."""
    labels = rng.integers(5, size=320)
    chance = np.where(labels[:, None] == labels, 0.05, 0.012)
    linked = np.triu(rng.random((320, 320)) < chance, 1)
    linked = (linked | linked.T | np.eye(320, dtype=bool)).astype(np.float64)
    degree = linked.sum(axis=1)
    features = rng.normal(size=(5, 12))[labels] / 2 + rng.normal(size=(320, 12))
    return linked / np.sqrt(degree[:, None] * degree), features, labels


def phrases(rng: np.random.Generator) -> tuple[Array, Array]:
    """Phrases of 12 words out of 400 about one of six topics, half of them about none."""
    topics, common = rng.dirichlet(np.full(400, 0.1), size=6), rng.dirichlet(np.full(400, 0.5))
    labels = rng.integers(6, size=2000)
    words = np.stack([rng.choice(400, size=12, p=(topics[label] + common) / 2) for label in labels])
    return words, labels


def integrals(rng: np.random.Generator) -> tuple[Array, Array]:
    """Smooth functions, 20 samples each, a place, and the integral up to there."""
    time, waves = np.linspace(0, 1, 200), rng.normal(size=(2250, 4, 2)) / np.arange(1, 5)[:, None]
    angle = np.pi * np.arange(1, 5)[:, None] * time
    functions = waves[:, :, 0] @ np.sin(angle) + waves[:, :, 1] @ np.cos(angle)
    places = rng.integers(200, size=2250)
    integrals = functions.cumsum(axis=1)[np.arange(2250), places] / 200
    inputs = np.concatenate([functions[:, ::10], 2 * time[places, None] - 1], axis=1)
    return inputs, (integrals / integrals.std())[:, None]


def _community_network() -> nn.Module:
    neighbours, features, _ = communities(np.random.default_rng(0))
    return GraphConvolution(neighbours, features, 16, 5)


def _members(rng: np.random.Generator) -> tuple[Array, Array]:
    return np.arange(320), communities(rng)[2]


fixed(
    "kin-triplets",
    "Points embedded so that like ones are near",
    first(3000, kin),
    partial(Triplets, 16, 32, 4),
    loss=margin_loss,
)
fixed(
    "matches-strengths",
    "Who wins, by strengths and styles of 50 players",
    first(1000, matches),
    partial(BradleyTerry, 50, 2),
)
fixed(
    "communities-graph",
    "Convolutions on a graph of which a third is labelled",
    first(110, _members),
    _community_network,
)
fixed(
    "phrases-bag", "Mean of the words' vectors of phrases, six topics", first(1500, phrases), partial(Bag, 400, 16, 6)
)
fixed("integrals-operator", "Two networks that integrate functions", first(2000, integrals), partial(Operator, 20, 32))
