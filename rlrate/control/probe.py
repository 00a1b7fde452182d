"""The rate of the first updates, before anything is known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: The first probing update aims at this relative size: negligible, yet far above float32 rounding.
PROBE_RATIO = 1e-5


def probing_rate(gradient_norm: Array, weight_norm: Array, size: int) -> Array:
    """A negligible rate for the very first update, shape (N,).

    The update of any optimizer with a linear rate is, at its first step, about rate * gradient (SGD) or about rate per
    coordinate (adaptive ones; ten times that for RMSprop). The rate makes the larger of the two a tiny share
    (:data:`PROBE_RATIO`) of the weights.

    Args:
        gradient_norm: Norm of the first gradient, shape (N,).
        weight_norm: Norm of the weights, shape (N,).
        size: Number of parameters of one run.
    """
    with np.errstate(all="ignore"):
        floor = math.sqrt(max(size, 1)) * 1e-3
        scale = np.maximum(np.nan_to_num(gradient_norm, posinf=1e30), math.sqrt(max(size, 1)))
        rate: Array = PROBE_RATIO * np.maximum(np.nan_to_num(weight_norm, posinf=1.0), floor) / scale
    return rate
