"""Workloads that are the same for every seed, from their data and a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from rlrate.envs.workload import Split, Workload
from rlrate.envs.workloads.data import Array, Source, split
from rlrate.envs.workloads.registry import register_workload

__all__ = ["Parts", "drawn", "first", "fixed"]

#: Draws (inputs, targets) to train on, and the same held out.
Parts: TypeAlias = Callable[[np.random.Generator], tuple[Split, Split]]


def fixed(
    name: str, description: str, parts: Parts, make_model: Callable[[], nn.Module], *, family: str = "", **settings: Any
) -> None:
    """Register a workload that is the same for every seed.

    Args:
        name: Of the workload.
        description: What a list of workloads says of it.
        parts: Draws the data; a vector of integers as targets is taken for classes.
        make_model: Returns a fresh module.
        family: That it is counted with (default: one of its own).
        settings: Fields of the workload that are not as usual.
    """

    def make(_: np.random.Generator) -> Workload:
        train, heldout = parts(np.random.default_rng(0))
        classes = train[1].ndim == 1 and train[1].dtype == torch.int64
        usual = {"loss": F.cross_entropy if classes else F.mse_loss, "batch_size": 32, "accuracy": classes}
        own: dict[str, Any] = {"train": train, "heldout": heldout, **usual, **settings}
        return Workload(name=name, family=family or name, make_model=make_model, **own)

    register_workload(name, make, description=description, kind="fixed")


def first(train: int, data: Callable[[np.random.Generator], tuple[Array, Array]]) -> Parts:
    """So many of the first rows that ``data`` makes are trained on, all others held out; as they are."""

    def parts(rng: np.random.Generator) -> tuple[Split, Split]:
        x, y = (torch.from_numpy(a if a.dtype == np.int64 else a.astype(np.float32)) for a in data(rng))
        return (x[:train], y[:train]), (x[train:], y[train:])

    return parts


def drawn(source: Source, train: int, heldout: int = 256, *, label_noise: float = 0.0) -> Parts:
    """Rows of a source, drawn and standardised as :func:`~rlrate.envs.workloads.data.split` does."""

    def parts(rng: np.random.Generator) -> tuple[Split, Split]:
        return split(rng, source(rng), train, heldout, label_noise=label_noise)

    return parts
