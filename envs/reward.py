"""What training runs are paid: by how much their loss fell, at the end or at its lowest."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Reward = Literal["heldout", "train", "final"]
REWARDS: tuple[Reward, ...] = ("heldout", "train", "final")

#: Least log improvement; also the value of a run that diverged.
WORST = -2.0


class Improvement:
    """By how much the losses of N runs have fallen, as a log ratio, and what that pays at each decision.

    Args:
        runs: N.
        floor: Share of the first loss below which a fall counts for next to nothing.
        best: Share of the pay that is for the lowest loss so far instead of the last one.
        signed: Whether the loss is no ratio scale: its fall is then a difference.
    """

    def __init__(self, runs: int, *, floor: float, best: float, signed: bool) -> None:
        self.floor, self.share, self.signed = floor, best, signed
        self._first = np.full(runs, np.nan)
        #: Log improvement of the last loss and of the lowest one so far, shape (N,).
        self.last, self.best = np.zeros(runs), np.zeros(runs)
        self._highest = np.full(runs, -np.inf)

    @property
    def paid(self) -> Array:
        """What the runs have been paid so far if each decision is paid, shape (N,)."""
        return (1.0 - self.share) * self.last + self.share * self.best

    def begin(self, losses: Array) -> None:
        """Takes the losses, shape (N,), that the others are compared with."""
        self._first = losses

    def update(self, losses: Array, diverged: NDArray[np.bool_], sample: Array | None = None) -> None:
        """Takes note of a decision.

        Args:
            losses: The losses there, shape (N,).
            diverged: Which runs have diverged, shape (N,).
            sample: Losses there on the examples of all decisions so far, shape (N,), where ``losses`` are on others.
        """
        self.last = self._of(losses, diverged)
        now = self.last if sample is None else self._of(sample, diverged)
        self._highest = np.maximum(self._highest, now)
        # Nobody keeps anything of a run that diverged.
        self.best = np.where(diverged, WORST, self._highest + (self.last - now))

    def take(self, rows: Sequence[int] | NDArray[np.int_]) -> Improvement:
        """That of ``rows``, which goes on by itself."""
        other = copy.copy(self)
        for name in ("_first", "_highest", "last", "best"):
            setattr(other, name, getattr(self, name)[rows])
        return other

    def _of(self, losses: Array, diverged: NDArray[np.bool_]) -> Array:
        """log(first / now), floored; continued linearly below zero; for a signed loss the difference."""
        first = self._first
        with np.errstate(all="ignore"):
            floor = self.floor * np.abs(first)
            # Below zero it must go on from where it was at zero: a lower loss always earns more.
            value = np.log(first + floor) - np.log(np.maximum(losses, 0.0) + floor) - np.minimum(losses, 0.0) / first
            value = np.where(first > 0, value, (first - losses) / np.abs(first))
            if self.signed:
                value = first - losses
        value = np.where(diverged | ~np.isfinite(value), WORST, value)
        # About a nat more than a positive loss can earn, for losses that go below zero.
        return np.clip(value, WORST, 8.0 - math.log(self.floor / 1e-3))
