"""Statistics of a comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def centre(losses: NDArray[np.float64]) -> float:
    """Geometric mean of positive losses; arithmetic mean when one is not positive."""
    if (losses > 0).all():
        with np.errstate(divide="ignore"):
            return float(np.exp(np.log(losses).mean()))
    return float(losses.mean())


def bootstrap(logs: NDArray[np.float64], level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of exp(mean(logs)) (Efron 1979)."""
    if not np.isfinite(logs).all():
        return (float("nan"), float("inf"))
    rng = np.random.default_rng(0)
    means = logs[rng.integers(len(logs), size=(draws, len(logs)))].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.exp(np.quantile(means, [tail, 1.0 - tail]))
    return float(low), float(high)
