"""Schedules that listen to the training: factors of the peak rate for N runs at once.

A rule is told the loss (and the gradient's norm) of every update and says by what the peak is multiplied at the next.
All of them cut the budget into equal intervals, as epochs would, and judge each run by its own mean over an interval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import lr_scheduler

from rlrate.errors import ConfigError
from rlrate.experiments.schedules import GRADIENT_NORM, GREEDY, PLATEAU, Factors, check_count, unit_optimizer

__all__ = ["RULES", "GradientNorm", "Greedy", "ReduceOnPlateau", "Rule"]


class Rule(Protocol):
    """What a schedule that listens must offer."""

    @property
    def factors(self) -> Factors:
        """Multipliers of the peak learning rate for the next update, of shape (N,)."""

    def step(self, losses: npt.ArrayLike | torch.Tensor, norms: Factors | None = None) -> Factors:
        """Takes the losses and gradient norms of one update, each (N,), and returns the next factors."""


class ReduceOnPlateau:
    """Torch's ``ReduceLROnPlateau`` for N runs at once, each judged by its own training loss.

    The budget is cut into equal intervals, as epochs would; after each, a run's mean loss over it
    is what its scheduler is told. The factor is halved when the mean has not fallen for three
    intervals in a row (``patience=2``). Torch's own defaults, a tenth after eleven bad intervals,
    suit hundreds of epochs and would hardly ever act within forty.

    Args:
        runs: How many runs, N.
        total_steps: The number of updates of the budget, at least 1.
        intervals: How many intervals; at most one per update is used.
        factor: What a reduction multiplies the rate by, in (0, 1).
        patience: How many intervals without improvement are forgiven.

    Raises:
        ConfigError: A count is too small, or ``factor`` is outside (0, 1).
    """

    def __init__(
        self,
        runs: int,
        total_steps: int,
        *,
        intervals: int = 40,
        factor: float = 0.5,
        patience: int = 2,
    ) -> None:
        for name, value in (("runs", runs), ("total_steps", total_steps), ("intervals", intervals)):
            check_count(name, value)
        if not 0 < factor < 1:
            raise ConfigError(f"factor is {factor!r}, but must lie between 0 and 1")
        self._total_steps = total_steps
        self._intervals = min(intervals, total_steps)
        self._optimizers = [unit_optimizer() for _ in range(runs)]
        # eps is an absolute difference of rates below which torch keeps the old one; the factor
        # is relative, so 0 makes the schedule the same at every peak.
        self._schedulers = [
            lr_scheduler.ReduceLROnPlateau(optimizer, mode="min", factor=factor, patience=patience, eps=0.0)
            for optimizer in self._optimizers
        ]
        self._updates = 0
        self._interval_updates = 0
        self._loss_sum: Factors = np.zeros(runs)

    @property
    def factors(self) -> Factors:
        """Multipliers of the peak learning rate for the next update, of shape (N,)."""
        return np.array([optimizer.param_groups[0]["lr"] for optimizer in self._optimizers])

    def step(self, losses: npt.ArrayLike | torch.Tensor, norms: Factors | None = None) -> Factors:
        """Takes the losses of one update and returns the `factors` of the next.

        Args:
            losses: The training losses, of shape (N,). A loss that is not finite makes its
                interval one without improvement.
            norms: Ignored.

        Raises:
            ConfigError: ``losses`` has another shape.
        """
        values = losses.detach().cpu().numpy() if isinstance(losses, torch.Tensor) else losses
        values = np.asarray(values, dtype=np.float64)
        if values.shape != self._loss_sum.shape:
            raise ConfigError(
                f"losses has shape {values.shape}, but one loss per run is needed: {self._loss_sum.shape}"
            )
        self._loss_sum += values
        self._updates += 1
        self._interval_updates += 1
        done = self._updates * self._intervals // self._total_steps
        if done > (self._updates - 1) * self._intervals // self._total_steps:
            means = self._loss_sum / self._interval_updates
            for scheduler, mean in zip(self._schedulers, means, strict=True):
                scheduler.step(float(mean))
            self._loss_sum[:] = 0.0
            self._interval_updates = 0
        return self.factors


class _UpAndDown:
    """Raises or lowers the factor at the end of each interval, by the interval's mean of some quantity.

    Args:
        runs: How many runs, N.
        total_steps: The number of updates of the budget, at least 1.
        intervals: How many intervals; at most one per update is used.
        factor: What a reduction multiplies the rate by, in (0, 1); a raise divides by it.
        bounds: Lowest and highest factor.
    """

    def __init__(
        self,
        runs: int,
        total_steps: int,
        *,
        intervals: int = 60,
        factor: float = 0.8,
        bounds: tuple[float, float] = (1e-4, 10.0),
    ) -> None:
        for name, value in (("runs", runs), ("total_steps", total_steps), ("intervals", intervals)):
            check_count(name, value)
        if not 0 < factor < 1:
            raise ConfigError(f"factor is {factor!r}, but must lie between 0 and 1")
        self._total_steps = total_steps
        self._intervals = min(intervals, total_steps)
        self._factor, self._bounds = factor, bounds
        self._factors: Factors = np.ones(runs)
        self._sum: Factors = np.zeros(runs)
        self._updates = self._interval_updates = 0

    @property
    def factors(self) -> Factors:
        """Multipliers of the peak learning rate for the next update, of shape (N,)."""
        return self._factors.copy()

    def step(self, losses: npt.ArrayLike | torch.Tensor, norms: Factors | None = None) -> Factors:
        """Takes the losses and gradient norms of one update, each (N,), and returns the next factors."""
        with np.errstate(all="ignore"):
            self._sum = self._sum + self._quantity(np.asarray(losses, np.float64), norms)
        self._updates += 1
        self._interval_updates += 1
        done = self._updates * self._intervals // self._total_steps
        if done > (self._updates - 1) * self._intervals // self._total_steps:
            raised = self._judge(self._sum / self._interval_updates)
            moved = self._factors * np.where(raised, 1.0 / self._factor, self._factor)
            self._factors = np.clip(moved, *self._bounds)
            self._sum, self._interval_updates = np.zeros_like(self._sum), 0
        return self.factors

    def _quantity(self, losses: Factors, norms: Factors | None) -> Factors:
        raise NotImplementedError

    def _judge(self, means: Factors) -> npt.NDArray[np.bool_]:
        raise NotImplementedError


class Greedy(_UpAndDown):
    """Raises the rate while the loss improves on its best, lowers it while it does not (GreedyLR's rule)."""

    _best: Factors | None = None

    def _quantity(self, losses: Factors, norms: Factors | None) -> Factors:
        return losses

    def _judge(self, means: Factors) -> npt.NDArray[np.bool_]:
        best = np.full_like(means, np.inf) if self._best is None else self._best
        better: npt.NDArray[np.bool_] = means < best
        self._best = np.where(better, means, best)
        return better


class GradientNorm(_UpAndDown):
    """Lowers the rate while the gradient's norm is above its slow moving average, raises it while below."""

    _slow: Factors | None = None

    def _quantity(self, losses: Factors, norms: Factors | None) -> Factors:
        if norms is None:
            raise ConfigError("the gradient-norm rule needs the norms of the gradients")
        return norms

    def _judge(self, means: Factors) -> npt.NDArray[np.bool_]:
        slow = means if self._slow is None else self._slow
        with np.errstate(all="ignore"):
            small: npt.NDArray[np.bool_] = means < slow
            self._slow = 0.9 * slow + 0.1 * means
        return small


#: The rules by the name of their schedule: ``RULES[name](runs, total_steps)``.
RULES: dict[str, Callable[[int, int], Rule]] = {
    PLATEAU: ReduceOnPlateau,
    GREEDY: Greedy,
    GRADIENT_NORM: GradientNorm,
}
