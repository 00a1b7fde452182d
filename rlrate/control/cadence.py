"""Which updates of a training run are decisions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlrate.errors import ConfigError


@dataclass(frozen=True)
class Cadence:
    """Splits a budget of updates into intervals; a decision falls at the end of each.

    A budget of at least ``decisions * first`` updates gets exactly ``decisions`` intervals: ``ramp``
    intervals that grow geometrically from ``first`` updates, then equal ones. The growth factor is the
    one that makes them add up, so the ramp from a negligible rate takes a few percent of any budget.
    A smaller budget gets equal intervals of about ``first`` updates.

    Attributes:
        decisions: Number of intervals of a run.
        first: Length of the first interval, in updates.
        ramp: Number of growing intervals.
        probe: Updates at the beginning made with a negligible rate, to measure the update's size.
    """

    decisions: int = 40
    first: int = 5
    ramp: int = 12
    probe: int = 3

    def __post_init__(self) -> None:
        for name in ("decisions", "first", "ramp", "probe"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"cadence.{name} must be a positive integer, got {value!r}")
        if self.ramp >= self.decisions:
            raise ConfigError(f"cadence.ramp ({self.ramp}) must be smaller than cadence.decisions ({self.decisions})")

    def boundaries(self, total_steps: int) -> NDArray[np.int64]:
        """Numbers of completed updates at which intervals end.

        Args:
            total_steps: Budget in optimizer updates, at least 1.

        Returns:
            Strictly increasing integers, shape (intervals,); the last one is ``total_steps``. A policy
            decides at all of them but the last, where the run is over.
        """
        if total_steps < self.first * self.decisions:
            count = max(1, total_steps // self.first)
            return _integers(np.linspace(0, total_steps, count + 1)[1:])
        growth = self._growth(total_steps)
        lengths = self.first * growth ** np.minimum(np.arange(self.decisions), self.ramp)
        ends = np.cumsum(lengths)
        return _integers(ends * (total_steps / ends[-1]))

    def _growth(self, total_steps: int) -> float:
        exponents = np.minimum(np.arange(self.decisions), self.ramp).astype(np.float64)

        def total(log_growth: float) -> float:
            return float(self.first * np.exp(log_growth * exponents).sum())

        low, high = 0.0, 1.0
        while total(high) < total_steps:
            high *= 2.0
        for _ in range(80):  # bisection: the sum grows monotonically with the factor
            middle = 0.5 * (low + high)
            low, high = (middle, high) if total(middle) < total_steps else (low, middle)
        return float(np.exp(0.5 * (low + high)))


def _integers(ends: NDArray[np.float64]) -> NDArray[np.int64]:
    nearest: NDArray[np.int64] = np.rint(ends).astype(np.int64)
    return nearest
