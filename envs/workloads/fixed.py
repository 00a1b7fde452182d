"""Workloads that are the same for every seed, from a generator of data and a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads.data import Array
from rlrate.envs.workloads.registry import register_workload

__all__ = ["fixed"]


def fixed(
    name: str,
    description: str,
    data: Callable[[np.random.Generator], tuple[Array, Array]],
    make_model: Callable[[], nn.Module],
    train: int,
    **settings: Any,
) -> None:
    """Register a workload that is the same for every seed.

    Args:
        name: Of the workload.
        description: What a list of workloads says of it.
        data: Draws inputs and targets; a vector of integers as targets is taken for classes.
        make_model: Returns a fresh module.
        train: So many of the first examples are trained on; the others are held out.
        settings: Further fields of the workload.
    """

    def make(_: np.random.Generator) -> Workload:
        inputs, targets = data(np.random.default_rng(0))
        classes = targets.ndim == 1 and targets.dtype == np.int64
        x, y = (torch.from_numpy(a if a.dtype == np.int64 else a.astype(np.float32)) for a in (inputs, targets))
        usual: dict[str, Any] = {"loss": F.cross_entropy if classes else F.mse_loss, "accuracy": classes}
        return Workload(
            name=name,
            family=name,
            make_model=make_model,
            train=(x[:train], y[:train]),
            heldout=(x[train:], y[train:]),
            batch_size=32,
            **usual | settings,
        )

    register_workload(name, make, description=description, kind="fixed")
