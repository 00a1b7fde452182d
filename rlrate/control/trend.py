"""Mean, noise and trend of the losses of an interval, from running sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.control.state import dump, restore

Array = NDArray[np.float64]

_STATE = ("_sums", "_noise")


class LossTrend:
    """Least-squares trend of N runs' losses over the updates of one interval; losses that are not finite are left out.

    Args:
        runs: N, the number of runs.
    """

    def __init__(self, runs: int) -> None:
        self._sums = np.zeros((6, runs))
        self._noise = np.zeros((2, runs))

    def add(self, block: Array, first: int) -> None:
        """Adds losses, shape (updates, N), of which the first belongs to update ``first`` of the interval."""
        finite = np.isfinite(block)
        values = np.where(finite, block, 0.0)
        count = finite.sum(axis=0)
        times = (first + np.arange(len(block)))[:, None] * finite
        with np.errstate(all="ignore"):
            self._sums += np.stack(
                [
                    count,
                    times.sum(axis=0),
                    (times * times).sum(axis=0),
                    values.sum(axis=0),
                    (times * values).sum(axis=0),
                    (values * values).sum(axis=0),
                ]
            )
            centre = values.sum(axis=0) / np.maximum(count, 1)
            squares = (np.where(finite, block - centre, 0.0) ** 2).sum(axis=0)
            self._noise += np.stack([np.maximum(count - 1.0, 0.0), squares])

    def accumulate(self, sums: Sequence[float], noise: Sequence[float]) -> None:
        """Adds sums that were taken elsewhere, for one run: six, and two of the noise."""
        with np.errstate(all="ignore"):  # losses near the largest float add up to infinity
            self._sums[:, 0] += sums
            self._noise[:, 0] += noise

    def summary(self) -> tuple[Array, Array, Array]:
        """Mean loss, noise within blocks and t statistic of the trend, each (N,) and NaN where there is none."""
        n, t, tt, y, ty, yy = self._sums
        with np.errstate(all="ignore"):
            mean = y / n
            stt, sty, syy = tt - t * t / n, ty - t * y / n, yy - y * y / n
            residual = np.sqrt(np.maximum(syy - sty * sty / stt, 0.0) / np.maximum(n - 2, 1))
            slope = sty / np.sqrt(stt) / np.maximum(residual, 1e-12 + 1e-6 * np.abs(mean))
            noise = np.sqrt(self._noise[1] / self._noise[0])
        return mean, noise, np.where(n >= 3, slope, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The sums, as torch tensors."""
        return dump(self, _STATE)

    def load_state_dict(self, state: object) -> None:
        """Continues from what :meth:`state_dict` returned."""
        restore(self, _STATE, state)
