"""Sequences of at most 16 steps: recurrent networks, and a Transformer on characters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Split, Workload
from rlrate.envs.workloads.data import (
    ALPHABET,
    Array,
    Examples,
    Source,
    choose_source,
    digits,
    encode_text,
    split,
    text,
)
from rlrate.envs.workloads.fixed import drawn, fixed
from rlrate.envs.workloads.models import CharTransformer, Recurrent
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, pick

__all__ = ["char_transformer", "next_character_loss", "recurrent"]

SIZE = 2500


def digit_rows(rng: np.random.Generator) -> Examples:
    """The digits read by 8 rows of 8 pixels, or by 16 half rows of 4."""
    steps = int(rng.choice([8, 16]))
    pictures = digits()
    return Examples(
        "digit-rows",
        pictures.inputs.reshape(len(pictures), steps, -1),
        pictures.targets,
        pictures.classes,
        unit_scale=True,
    )


def adding(rng: np.random.Generator) -> Examples:
    """Add the two numbers of 8 to 16 that are marked (Hochreiter and Schmidhuber 1997)."""
    steps = int(rng.integers(8, 17))
    numbers, marks = rng.uniform(size=(SIZE, steps)), np.zeros((SIZE, steps))
    half = steps // 2
    for low, high in ((0, half), (half, steps)):
        marks[np.arange(SIZE), rng.integers(low, high, size=SIZE)] = 1
    values = (numbers * marks).sum(axis=1, keepdims=True).astype(np.float32)
    return Examples("adding", np.stack([numbers, marks], axis=2).astype(np.float32), values)


def recall(rng: np.random.Generator) -> Examples:
    """Name the symbol that came first, after 5 to 15 steps of noise."""
    steps, symbols = int(rng.integers(6, 17)), int(rng.integers(2, 9))
    which = rng.integers(symbols, size=SIZE)
    inputs = rng.uniform(0.1, 0.5) * rng.normal(size=(SIZE, steps, symbols))
    inputs[np.arange(SIZE), 0, which] += 1
    return Examples("recall", inputs.astype(np.float32), which, symbols, unit_scale=True)


def waves(rng: np.random.Generator) -> Examples:
    """Forecast the next value of a sum of two waves of random frequency, in noise."""
    steps = int(rng.integers(8, 17))
    time = np.arange(steps + 1)
    frequency, phase = rng.uniform(0.1, 1.5, (2, SIZE, 1)), rng.uniform(0, 6.3, (2, SIZE, 1))
    series = np.sin(frequency * time + phase).sum(axis=0)
    series += rng.uniform(0, 0.3) * rng.normal(size=series.shape)
    series = series.astype(np.float32)
    return Examples("waves", series[:, :-1, None], series[:, -1:])


RECURRENT: dict[str, Source] = {
    "digit-rows": digit_rows,
    "adding": adding,
    "recall": recall,
    "waves": waves,
}


@register_workload("recurrent", description="GRU or LSTM on digit rows, adding, recall, forecasts")
def recurrent(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A recurrent network; ``only`` restricts the data to names of `RECURRENT`."""
    examples = choose_source(rng, RECURRENT, only)
    train, heldout = split(rng, examples, log_integer(rng, 150, 2000))
    loss: Loss = F.cross_entropy
    if not examples.classes:
        loss = F.mse_loss if rng.random() < 2 / 3 else F.huber_loss
    return Workload(
        name=f"recurrent/{examples.name}",
        family="recurrent",
        make_model=partial(
            Recurrent,
            train[0].shape[2],
            examples.classes or train[1].shape[1],
            log_integer(rng, 8, 40),
            cell=pick(rng, {"gru": 1, "lstm": 1}),
            layers=pick(rng, {1: 5, 2: 1}),
        ),
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0]), 64),
        accuracy=bool(examples.classes),
    )


def next_character_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over all positions.

    Args:
        output: (batch, steps, characters) logits.
        target: (batch, steps) the character that follows at each position.
    """
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def descriptions(_: np.random.Generator) -> tuple[str, Array, int]:
    """Name, characters and size of the alphabet of scikit-learn's descriptions of data sets."""
    return "descriptions", encode_text(text()), len(ALPHABET)


def chain(rng: np.random.Generator) -> tuple[str, Array, int]:
    """8000 characters of a random chain in which the last two decide the next's chances."""
    characters, length = int(rng.integers(4, 17)), 8000
    chances = rng.dirichlet(np.full(characters, rng.uniform(0.05, 0.5)), (characters, characters))
    cumulative, dice = chances.cumsum(axis=-1), rng.random(length)
    sequence = np.zeros(length, dtype=np.int64)
    for step in range(2, length):
        row = cumulative[sequence[step - 2], sequence[step - 1]]
        sequence[step] = min(int(np.searchsorted(row, dice[step])), characters - 1)
    return "chain", sequence, characters


TEXTS = {"descriptions": descriptions, "chain": chain}


def _windows(
    rng: np.random.Generator, sequence: Array, context: int, train_size: int, heldout_size: int
) -> tuple[Split, Split]:
    """Windows of the sequence and what follows each character; the last fifth is held out."""
    border = len(sequence) * 4 // 5

    def windows(low: int, high: int, count: int) -> Split:
        starts = np.arange(low, high - context)
        starts = rng.choice(starts, size=min(count, len(starts)), replace=False)
        rows = torch.from_numpy(sequence[starts[:, None] + np.arange(context + 1)])
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    return windows(0, border, train_size), windows(border, len(sequence), heldout_size)


@register_workload("char-transformer", description="Tiny causal Transformer, next character")
def char_transformer(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A causal Transformer; ``only`` restricts the text to names of `TEXTS`."""
    source, sequence, characters = choose_source(rng, TEXTS, only)
    context, heads = log_integer(rng, 6, 16), pick(rng, {1: 1, 2: 2, 4: 1})
    width = heads * log_integer(rng, 8 // heads + 1, 32 // heads)
    train, heldout = _windows(rng, sequence, context, log_integer(rng, 300, 4000), 128)
    return Workload(
        name=f"char-transformer/{source}",
        family="char-transformer",
        make_model=partial(
            CharTransformer,
            characters,
            context,
            width=width,
            heads=heads,
            blocks=pick(rng, {1: 3, 2: 1}),
            expansion=int(rng.integers(1, 5)),
            pre_norm=bool(rng.random() < 0.75),
            activation=pick(rng, {"gelu": 2, "relu": 1, "silu": 1}),
        ),
        train=train,
        heldout=heldout,
        loss=next_character_loss,
        batch_size=batch_size(rng, len(train[0]), 32),
    )


def _digit_rows(_: np.random.Generator) -> Examples:
    pictures = digits()
    return Examples("rows", pictures.inputs.reshape(-1, 8, 8), pictures.targets, 10, True)


fixed(
    "digits-gru",
    "GRU of 32 on digits row by row",
    drawn(_digit_rows, 2000),
    partial(Recurrent, 8, 10, 32),
    family="recurrent",
)
fixed(
    "char-transformer-small",
    "One block of width 32, 16 characters of scikit-learn's descriptions",
    lambda rng: _windows(rng, encode_text(text()), 16, 4000, 128),
    partial(CharTransformer, len(ALPHABET), 16),
    family="char-transformer",
    loss=next_character_loss,
    batch_size=16,
    accuracy=False,
)
