"""Small Transformers on synthetic sequences of symbols: copying, sums, recall, chains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlrate.envs.workload import Split, Workload
from rlrate.envs.workloads.data import Array, choose_source
from rlrate.envs.workloads.models import CharTransformer
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick

__all__ = ["attention", "tail_loss"]

SIZE = 2500


@dataclass(frozen=True)
class Task:
    """Sequences of symbols and what is to be answered at their last positions.

    Attributes:
        name: What a workload's name says about its data.
        inputs: (sequences, steps) symbols.
        targets: (sequences, answers) symbols, for the last ``answers`` steps.
        symbols: Size of the alphabet.
    """

    name: str
    inputs: Array
    targets: Array
    symbols: int


def tail_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the last positions.

    Args:
        output: (batch, steps, symbols) logits.
        target: (batch, answers) symbols, for the last ``answers`` steps.
    """
    return F.cross_entropy(output[:, -target.shape[1] :].flatten(0, 1), target.flatten())


def copying(rng: np.random.Generator) -> Task:
    """Say a random word of 3 to 5 symbols again, forwards or backwards."""
    symbols, length = int(rng.integers(3, 9)), int(rng.integers(3, 6))
    words = rng.integers(symbols, size=(SIZE, length))
    answer = words[:, ::-1] if rng.random() < 0.3 else words
    mark = np.full((SIZE, 1), symbols)
    sequence = np.concatenate([words, mark, answer], axis=1)
    return Task("copying", sequence[:, :-1], answer, symbols + 1)


def modular_sum(rng: np.random.Generator) -> Task:
    """The sum of two numbers modulo 2 to 6; the examples are pairs of up to 31, so that residues can be learnt."""
    modulus, numbers = int(rng.integers(2, 7)), int(rng.integers(16, 33))
    first, second = np.divmod(rng.permutation(numbers**2), numbers)
    mark = np.full(len(first), numbers)
    answer = (first + second) % modulus
    return Task("modular-sum", np.stack([first, second, mark], axis=1), answer[:, None], numbers + 1)


def associative_recall(rng: np.random.Generator) -> Task:
    """Pairs of key and value, then a key: what was its value? (after Graves et al. 2014)."""
    keys, values, pairs = int(rng.integers(4, 9)), int(rng.integers(2, 7)), int(rng.integers(2, 5))
    order = rng.permuted(np.tile(np.arange(keys), (SIZE, 1)), axis=1)[:, :pairs]
    told = rng.integers(values, size=(SIZE, pairs))
    asked = rng.integers(pairs, size=SIZE)
    rows = np.arange(SIZE)
    pairwise = np.stack([order, keys + told], axis=2).reshape(SIZE, 2 * pairs)
    inputs = np.concatenate([pairwise, order[rows, asked][:, None]], axis=1)
    return Task("recall", inputs, (keys + told[rows, asked])[:, None], keys + values)


def markov(rng: np.random.Generator) -> Task:
    """Sequences of one chain whose next symbol depends on the last; the loss ends at the chain's entropy."""
    symbols, steps = int(rng.integers(4, 17)), int(rng.integers(5, 11))
    chances = rng.dirichlet(np.full(symbols, rng.uniform(0.05, 0.5)), symbols).cumsum(axis=1)
    sequence = np.zeros((SIZE, steps + 1), dtype=np.int64)
    sequence[:, 0] = rng.integers(symbols, size=SIZE)
    for step in range(steps):
        reached = chances[sequence[:, step]] < rng.random((SIZE, 1))
        sequence[:, step + 1] = np.minimum(reached.sum(axis=1), symbols - 1)
    return Task("markov", sequence[:, :-1], sequence[:, 1:], symbols)


TASKS: dict[str, Callable[[np.random.Generator], Task]] = {
    "copying": copying,
    "modular-sum": modular_sum,
    "recall": associative_recall,
    "markov": markov,
}


def _split(rng: np.random.Generator, task: Task, train_size: int, heldout_size: int) -> tuple[Split, Split]:
    rows = rng.permutation(len(task.inputs))
    heldout_size = min(heldout_size, len(rows) // 3)
    parts = rows[heldout_size:][:train_size], rows[:heldout_size]
    inputs, targets = (np.ascontiguousarray(values, dtype=np.int64) for values in (task.inputs, task.targets))
    train, heldout = ((torch.from_numpy(inputs[part]), torch.from_numpy(targets[part])) for part in parts)
    return train, heldout


@register_workload("attention", description="1-2 Transformer blocks on copying, sums, recall, chains")
def attention(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A small causal Transformer; ``only`` restricts the task to names of `TASKS`."""
    task = choose_source(rng, TASKS, only)
    heads = pick(rng, {1: 1, 2: 2, 4: 1})
    train, heldout = _split(rng, task, log_integer(rng, 300, 2000), 192)
    return Workload(
        name=f"attention/{task.name}",
        family="attention",
        make_model=partial(
            CharTransformer,
            task.symbols,
            train[0].shape[1],
            width=heads * log_integer(rng, 8 // heads, 20 // heads),
            heads=heads,
            blocks=pick(rng, {1: 3, 2: 1}),
            expansion=int(rng.integers(1, 4)),
            pre_norm=bool(rng.random() < 0.5),
            activation=pick(rng, {"gelu": 2, "relu": 2, "silu": 1, "tanh": 0.5}),
            norm=pick(rng, {"layer": 4, "none": 3, "rms": 1}),
            gain=log_uniform(rng, 0.5, 2.5) if rng.random() < 0.5 else 1.0,
        ),
        train=train,
        heldout=heldout,
        loss=tail_loss,
        batch_size=batch_size(rng, len(train[0]), 24),
    )
