"""Networks that look up vectors of symbols: of words, of categories, and of things that are related."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Split, Workload
from rlrate.envs.workloads.data import Array, standardise
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick

__all__ = ["Columns", "Pooled", "Triples", "embedded"]

SIZE = 2500


def _table(symbols: int, width: int, deviation: float) -> nn.Embedding:
    table = nn.Embedding(symbols, width)
    nn.init.normal_(table.weight, std=deviation)
    return table


class Columns(nn.Module):
    """A vector for each symbol, side by side, and a network that reads them (Bengio et al. 2003).

    Args:
        symbols: Of all columns together.
        columns: Symbols of an example.
        width: Of a vector.
        deviation: Of a fresh vector's numbers.
        outputs: Numbers that come out.
        network: How the `MLP` is built; a linear map by default.
    """

    def __init__(
        self, symbols: int, columns: int, width: int, deviation: float, outputs: int, network: dict[str, Any]
    ) -> None:
        super().__init__()
        self.vectors = _table(symbols, width, deviation)
        self.network = MLP(columns * width, outputs, **network)

    def forward(self, symbols: Tensor) -> Tensor:
        """(batch, columns) int64 -> (batch, outputs)."""
        return cast(Tensor, self.network(self.vectors(symbols).flatten(1)))


class Pooled(nn.Module):
    """The vectors of a sequence's symbols, each weighted by what it says of itself, and a network that reads the sum.

    Args:
        symbols: How many there are.
        width: Of a vector.
        deviation: Of a fresh vector's numbers.
        outputs: Numbers that come out.
        network: How the `MLP` is built.
    """

    def __init__(self, symbols: int, width: int, deviation: float, outputs: int, network: dict[str, Any]) -> None:
        super().__init__()
        self.vectors, self.weight = _table(symbols, width, deviation), _table(symbols, 1, deviation)
        self.network = MLP(width, outputs, **network)

    def forward(self, symbols: Tensor) -> Tensor:
        """(batch, steps) int64 -> (batch, outputs)."""
        weights = self.weight(symbols).softmax(dim=1)
        return cast(Tensor, self.network((weights * self.vectors(symbols)).sum(dim=1)))


class Triples(nn.Module):
    """The sum of the products of three vectors, and a number of each of the three (Yang et al. 2015).

    Args:
        symbols: Of all three kinds together.
        width: Of a vector.
        deviation: Of a fresh vector's numbers.
        outputs: 1, or 2 where the first is always 0.
    """

    def __init__(self, symbols: int, width: int, deviation: float, outputs: int) -> None:
        super().__init__()
        self.vectors, self.own = _table(symbols, width, deviation), _table(symbols, 1, 0.0)
        self.outputs = outputs

    def forward(self, symbols: Tensor) -> Tensor:
        """(batch, 3) int64 -> (batch, outputs)."""
        vectors = self.vectors(symbols)
        product = vectors[:, 0] * vectors[:, 1] * vectors[:, 2]
        score = product.sum(dim=1, keepdim=True) + self.own(symbols).sum(dim=1)
        return score if self.outputs == 1 else torch.cat([torch.zeros_like(score), score], dim=1)


@dataclass(frozen=True)
class Task:
    """Symbols and what is to be told by them.

    Attributes:
        name: What a workload's name says about its data.
        symbols: (examples, columns), each column with numbers of its own unless all share them.
        scores: (examples, outputs) of which classes are drawn, or values.
        count: How many symbols there are.
    """

    name: str
    symbols: Array
    scores: Array
    count: int


def _unit(values: Array) -> Array:
    return np.asarray((values - values.mean()) / (values.std() + 1e-9))


def categories(rng: np.random.Generator) -> Task:
    """Three to eight columns of 3 to 60 categories: what each adds, and what pairs of columns do together."""
    levels = np.array([log_integer(rng, 3, 60) for _ in range(int(rng.integers(3, 9)))])
    outputs, first = int(rng.integers(1, 7)), np.concatenate([[0], levels.cumsum()[:-1]])
    skew = rng.uniform(1.0, 2.5)
    symbols = (levels * rng.random((SIZE, len(levels))) ** skew).astype(np.int64) + first
    alone, rank = rng.normal(size=(levels.sum(), outputs)), int(rng.integers(1, 4))
    together = rng.normal(size=(levels.sum(), outputs, rank)) / np.sqrt(rank)
    added = _unit(alone[symbols].sum(axis=1))
    met = together[symbols].sum(axis=1) ** 2 - (together[symbols] ** 2).sum(axis=1)
    return Task("categories", symbols, added + rng.uniform(0, 1) * _unit(met.sum(axis=2)), int(levels.sum()))


def following(rng: np.random.Generator) -> Task:
    """Symbols that hidden states give off, two to five in a row: scores of what follows (12 to 50 symbols)."""
    count, states, seen = log_integer(rng, 12, 50), int(rng.integers(3, 9)), int(rng.integers(2, 6))
    moves = rng.dirichlet(np.full(states, 0.2), states).cumsum(axis=1)
    given = rng.dirichlet(np.full(count, rng.uniform(0.03, 0.3)), states)
    state, symbols, dice = rng.integers(states, size=SIZE), np.zeros((SIZE, seen), np.int64), rng.random
    for step in range(seen):
        symbols[:, step] = np.minimum((given.cumsum(axis=1)[state] < dice((SIZE, 1))).sum(axis=1), count - 1)
        state = np.minimum((moves[state] < dice((SIZE, 1))).sum(axis=1), states - 1)
    return Task("following", symbols, np.log(given[state] + 1e-9), count)


def companions(rng: np.random.Generator) -> Task:
    """Which of 10 to 60 things goes with one of 40 to 250, by a few numbers of each (Mikolov et al. 2013)."""
    count, others, rank = log_integer(rng, 40, 250), log_integer(rng, 10, 60), int(rng.integers(2, 7))
    frequency = np.arange(1, count + 1) ** -rng.uniform(0.0, 1.1)
    symbols = rng.choice(count, size=(SIZE, 1), p=frequency / frequency.sum())
    scores = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, others))
    return Task("companions", symbols, _unit(scores)[symbols[:, 0]], count)


def verdicts(rng: np.random.Generator) -> Task:
    """Six to twenty of 50 to 400 symbols, a few of which speak for or against one to five things."""
    count, steps, outputs = log_integer(rng, 50, 400), int(rng.integers(6, 21)), int(rng.integers(1, 6))
    frequency = np.arange(1, count + 1) ** -rng.uniform(0.0, 1.1)
    symbols = rng.choice(count, size=(SIZE, steps), p=frequency / frequency.sum())
    worth = rng.normal(size=(count, outputs)) * (rng.random((count, 1)) < rng.uniform(0.1, 0.6))
    scores = worth[symbols]
    # The loudest symbol decides more or less.
    scores = scores.sum(axis=1) + rng.uniform(0, 4) * (scores.max(axis=1) + scores.min(axis=1))
    return Task("verdicts", symbols, _unit(scores), count)


def relations(rng: np.random.Generator) -> Task:
    """Whether, or how much, one of 15 to 80 things stands in one of 2 to 10 relations to another."""
    things, kinds, rank = log_integer(rng, 15, 80), int(rng.integers(2, 11)), int(rng.integers(1, 5))
    symbols = np.stack([rng.integers(size, size=SIZE) for size in (things, kinds, things)], axis=1)
    symbols += np.array([0, things, things + kinds])
    vectors = rng.normal(size=(2 * things + kinds, rank))
    scores = vectors[symbols].prod(axis=1).sum(axis=1, keepdims=True)
    alone = rng.normal(size=(2 * things + kinds, 1))[symbols].sum(axis=1)
    scores = _unit(scores) + rng.uniform(0, 1) * _unit(alone)
    return Task("relations", symbols, scores, 2 * things + kinds)


TASKS: dict[Callable[[np.random.Generator], Task], float] = {
    categories: 3,
    following: 2,
    companions: 1,
    verdicts: 3,
    relations: 2,
}


def _targets(rng: np.random.Generator, task: Task) -> tuple[str, Array, int]:
    """Name, targets and the number of classes: drawn by the scores' logistic chances, or 0 of scores in noise."""
    outputs, listed = task.scores.shape[1], task.name in ("following", "companions")
    scores = task.scores if task.name == "following" else log_uniform(rng, 1.0, 30.0) * task.scores
    if listed or (outputs > 1 and rng.random() < 0.7):
        return task.name, (scores + rng.gumbel(size=scores.shape)).argmax(axis=1), outputs
    if outputs == 1 and rng.random() < 0.6:
        return task.name, (scores[:, 0] + rng.logistic(size=SIZE) > 0).astype(np.int64), 2
    noise = 0.0 if rng.random() < 0.25 else log_uniform(rng, 0.01, 1.0)
    return f"{task.name}-values", task.scores + noise * rng.normal(size=scores.shape), 0


def _split(rng: np.random.Generator, symbols: Array, targets: Array, train_size: int) -> tuple[Split, Split]:
    rows = rng.permutation(SIZE)[: train_size + 256]
    kept, out = rows[256:], rows[:256]
    first, second = targets[kept], targets[out]
    if targets.ndim == 2:
        first, second = standardise(first, second)
    dtype = np.int64 if targets.ndim == 1 else np.float32
    train, heldout = (
        (torch.from_numpy(symbols[part]), torch.from_numpy(told.astype(dtype)))
        for part, told in ((kept, first), (out, second))
    )
    return train, heldout


@register_workload("embedded", description="Vectors of symbols, joined, pooled or multiplied, on categories and words")
def embedded(rng: np.random.Generator) -> Workload:
    """A network whose first layer looks up vectors, on few or many examples of what symbols say."""
    task = pick(rng, TASKS)(rng)
    name, targets, classes = _targets(rng, task)
    train, heldout = _split(rng, task.symbols, targets, log_integer(rng, 150, 2200))
    outputs = classes or targets.shape[1]
    width, deviation = log_integer(rng, 2, 24), pick(rng, {1.0: 3, 0.3: 2, 0.1: 2, 0.02: 1})
    network: dict[str, Any] = {
        "hidden": [log_integer(rng, 12, 96)] * pick(rng, {0: 2, 1: 3, 2: 1}),
        "activation": pick(rng, {"relu": 4, "gelu": 1, "silu": 1, "tanh": 2}),
        "norm": pick(rng, {"none": 6, "layer": 1}),
    }
    columns = train[0].shape[1]
    make: Callable[[], nn.Module]
    if task.name == "relations" and rng.random() < 0.8:
        make = partial(Triples, task.count, width, max(deviation, 0.1), outputs)
    elif task.name == "verdicts":
        make = partial(Pooled, task.count, width, deviation, outputs, network)
    else:
        make = partial(Columns, task.count, columns, width, deviation, outputs, network)
    loss: Loss = F.cross_entropy if classes else pick(rng, {F.mse_loss: 3, F.smooth_l1_loss: 1})
    return Workload(
        name=f"embedded/{name}",
        family="embedded",
        make_model=make,
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0]), 64),
        accuracy=bool(classes),
    )
