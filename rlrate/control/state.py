"""State of plain types: what torch.save writes and torch.load(weights_only=True) reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlrate.errors import ConfigError


def dump(owner: object, names: Iterable[str]) -> dict[str, Any]:
    """The attributes ``names`` of ``owner``, arrays as tensors; shares no memory with it."""
    return {name.lstrip("_"): pack(getattr(owner, name)) for name in names}


def restore(owner: object, names: Iterable[str], state: object) -> None:
    """Sets the attributes that :func:`dump` read.

    Raises:
        ConfigError: when an entry is missing or of another kind than the attribute it replaces.
    """
    values = {}
    for name in names:
        key = name.lstrip("_")
        if not isinstance(state, Mapping) or key not in state:
            raise ConfigError(f"the state lacks {key!r}")
        value, present = unpack(state[key]), getattr(owner, name)
        if type(value) is not type(present) or (
            isinstance(value, np.ndarray) and (value.ndim, value.shape[-1:]) != (present.ndim, present.shape[-1:])
        ):
            raise ConfigError(f"{key!r} in the state is not what it was when saved, or from a run of another shape")
        values[name] = value
    for name, value in values.items():
        setattr(owner, name, value)


def pack(value: Any) -> Any:
    """Arrays become tensors, at any depth."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))
    if isinstance(value, dict):
        return {key: pack(entry) for key, entry in value.items()}
    return [pack(entry) for entry in value] if isinstance(value, list) else value


def unpack(value: Any) -> Any:
    """The inverse of :func:`pack`."""
    if isinstance(value, Tensor):
        return np.array(value.detach().cpu().numpy())
    if isinstance(value, dict):
        return {key: unpack(entry) for key, entry in value.items()}
    return [unpack(entry) for entry in value] if isinstance(value, list) else value
