"""Copies of some of the runs of a :class:`RateControl`, which go on by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlrate.control.control import RateControl


def copies(control: RateControl, runs: NDArray[np.int_]) -> RateControl:
    """Copies of ``runs`` of ``control``, by their number; each may be copied several times."""
    other = RateControl(
        control.spec,
        len(runs),
        control.total_steps,
        given=control.rates[runs],
        start=None if control.start is None else control.start[runs],
        min_rate=control.min_rate,
        max_rate=control.max_rate,
        blind=control.blind[runs],
        traits=control.traits,
        epoch=None if control.epoch is None else control.epoch[runs],
    )
    other.load_state_dict(_select(control.state_dict(), torch.from_numpy(runs)))
    return other


def _select(value: Any, runs: Tensor) -> Any:
    """The state of ``runs`` alone: its tensors have the runs as their last axis."""
    if isinstance(value, Tensor):
        return value[..., runs]
    if isinstance(value, dict):
        return {key: _select(entry, runs) for key, entry in value.items()}
    return [_select(entry, runs) for entry in value] if isinstance(value, list) else value
