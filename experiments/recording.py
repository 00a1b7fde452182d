"""What training runs leave behind: thinned curves and final figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]
Tick = Callable[[int], None]
#: Held-out loss and accuracy of N networks, each of shape (N,).
Evaluate = Callable[[], tuple[Tensor, Tensor]]

#: Points of each curve that are kept, of training and of held-out loss.
POINTS, HELDOUT_POINTS = 60, 20


@dataclass
class Trace:
    """What N training runs left behind.

    Attributes:
        updates: Completed updates at each point of the curves, shape (P,).
        train_loss: Mean training loss since the point before, shape (P, N).
        rate: Learning rate at each point, shape (P, N).
        heldout_updates: Completed updates at each point of the held-out curve, shape (H,).
        heldout_curve: Held-out loss there, shape (H, N).
        heldout_loss: Final held-out loss, shape (N,); infinite for a run that diverged.
        heldout_accuracy: Final held-out accuracy, shape (N,), NaN where undefined.
        diverged: Whether the final loss is not finite, shape (N,).
        spent: Updates made beyond those of the runs themselves, by a search, for each run.
    """

    updates: NDArray[np.int64]
    train_loss: Array
    rate: Array
    heldout_updates: NDArray[np.int64]
    heldout_curve: Array
    heldout_loss: Array
    heldout_accuracy: Array
    diverged: NDArray[np.bool_]
    spent: int = 0

    def take(self, runs: slice | Sequence[int]) -> Trace:
        """The runs that an index selects."""
        return Trace(
            self.updates,
            self.train_loss[:, runs],
            self.rate[:, runs],
            self.heldout_updates,
            self.heldout_curve[:, runs],
            self.heldout_loss[runs],
            self.heldout_accuracy[runs],
            self.diverged[runs],
            self.spent,
        )


def join(parts: Sequence[Trace]) -> Trace:
    """The runs of all ``parts``, which share their budget, in this order."""
    return Trace(
        parts[0].updates,
        np.concatenate([p.train_loss for p in parts], axis=1),
        np.concatenate([p.rate for p in parts], axis=1),
        parts[0].heldout_updates,
        np.concatenate([p.heldout_curve for p in parts], axis=1),
        np.concatenate([p.heldout_loss for p in parts]),
        np.concatenate([p.heldout_accuracy for p in parts]),
        np.concatenate([p.diverged for p in parts]),
        parts[0].spent,
    )


class Recorder:
    """Thins the curves of N runs to about :data:`POINTS` points.

    Args:
        steps: Budget in updates.
        runs: N.
        evaluate: Evaluates the networks as they are.
        heldout: Whether to evaluate about :data:`HELDOUT_POINTS` times instead of at the end only.
    """

    def __init__(self, steps: int, runs: int, evaluate: Evaluate, *, heldout: bool = False) -> None:
        self._steps, self._evaluate = steps, evaluate
        self._ends = _points(steps, POINTS)
        self._looks = _points(steps, HELDOUT_POINTS) - {steps} if heldout else set()
        self._count, self._since = 0, 0
        self._sum = np.zeros(runs)
        self._points: list[tuple[int, Array, Array]] = []
        self._heldout: list[tuple[int, Array]] = []

    def add(self, losses: Array, rates: Array) -> None:
        """Takes note of an update: training losses before it and learning rates, each (N,)."""
        self._count += 1
        self._since += 1
        with np.errstate(all="ignore"):
            self._sum = self._sum + losses
        if self._count in self._ends:
            self._points.append((self._count, self._sum / self._since, np.array(rates, np.float64)))
            self._sum, self._since = np.zeros_like(self._sum), 0
        if self._count in self._looks:
            self._heldout.append((self._count, self._evaluate()[0].double().numpy()))

    def trace(self, spent: int = 0) -> Trace:
        """The curves and the final evaluation."""
        loss, accuracy = self._evaluate()
        values: Array = loss.double().numpy()
        self._heldout.append((self._steps, values))
        finite = np.isfinite(values)
        updates, losses, rates = zip(*self._points, strict=True)
        looks, curve = zip(*self._heldout, strict=True)
        return Trace(
            np.array(updates),
            np.stack(losses),
            np.stack(rates),
            np.array(looks),
            np.stack(curve),
            np.where(finite, values, np.inf),
            accuracy.double().numpy(),
            ~finite,
            spent,
        )


def _points(steps: int, count: int) -> set[int]:
    ends: list[int] = np.unique(np.rint(np.linspace(0, steps, count + 1)[1:])).astype(int).tolist()
    return set(ends)
