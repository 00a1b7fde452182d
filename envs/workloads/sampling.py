"""Draws that several workload families share; each reads only the generator it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

__all__ = ["batch_size", "log_integer", "log_uniform", "pick", "style"]

T = TypeVar("T")

ACTIVATIONS = {
    "relu": 4,
    "gelu": 2,
    "silu": 2,
    "tanh": 3,
    "elu": 1,
    "leaky-relu": 1,
    "sigmoid": 0.5,
}
NORMS = {"none": 6, "layer": 3, "rms": 1}
INITS = {"default": 5, "kaiming": 2, "xavier": 2, "orthogonal": 1}


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform between those of ``low`` and ``high``."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def log_integer(rng: np.random.Generator, low: int, high: int) -> int:
    """An integer from ``low`` to ``high`` inclusive, log-uniform; ``low`` if ``high < low``."""
    return min(int(log_uniform(rng, low, max(high, low) + 1)), max(high, low))


def pick(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """One of the keys, with a probability proportional to its weight."""
    keys, values = list(weights), np.array(list(weights.values()), dtype=np.float64)
    return keys[int(rng.choice(len(keys), p=values / values.sum()))]


def batch_size(rng: np.random.Generator, examples: int, high: int = 128) -> int:
    """A batch size, log-uniform from 8 to ``high``, at most a quarter of the training examples."""
    return log_integer(rng, 8, min(high, examples // 4))


def style(rng: np.random.Generator, norms: Mapping[str, float] | None = None) -> dict[str, Any]:
    """How a network is built apart from its size: keyword arguments of `MLP` and `ConvNet`."""
    return {
        "activation": pick(rng, ACTIVATIONS),
        "norm": pick(rng, NORMS if norms is None else norms),
        "residual": bool(rng.random() < 0.3),
        "init": pick(rng, INITS),
        "gain": log_uniform(rng, 0.4, 2.0) if rng.random() < 0.4 else 1.0,
    }
