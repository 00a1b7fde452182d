"""Hand-tuned learning-rate schedules: the rivals of a learned one.

An open-loop schedule is a table of factors, one per update, by which the peak learning rate is
multiplied. The tables are not formulas of ours: each is recorded from the scheduler that
`torch.optim.lr_scheduler` ships, so that a comparison is with what people use. Reduce-on-plateau
listens to the loss, so it is an object that is stepped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer, lr_scheduler

from rlrate.errors import ConfigError, unknown_name

__all__ = ["PLATEAU", "Factors", "ReduceOnPlateau", "factor_table", "schedule_names"]

Factors: TypeAlias = npt.NDArray[np.float64]
_Maker: TypeAlias = Callable[[Optimizer, int], lr_scheduler.LRScheduler]

PLATEAU = "reduce-on-plateau"


def constant(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """The peak rate throughout."""
    return lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=total_steps)


def step(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """A tenth at 50 % of the updates and again at 75 %, as in He et al. (2016) on CIFAR-10."""
    milestones = [-(-total_steps // 2), -(-3 * total_steps // 4)]
    return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def exponential(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """A constant ratio per update that makes the last one a hundredth of the peak."""
    return lr_scheduler.ExponentialLR(optimizer, gamma=0.01 ** (1 / max(total_steps - 1, 1)))


def cosine(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """Half a cosine from the peak towards 0, without restarts (Loshchilov & Hutter, 2017)."""
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=total_steps)


def warmup_cosine(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """A linear rise over the first 5 % of the updates, then `cosine` over the rest.

    The rise takes W = round(total_steps / 20) updates, from 1/(W + 1) of the peak; with W = 0 there
    is none.
    """
    warmup = round(0.05 * total_steps)
    if warmup == 0:
        return cosine(optimizer, total_steps)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, cosine(optimizer, total_steps - warmup)], milestones=[warmup])


def one_cycle(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """Cosine from 1/25 of the peak to the peak at 30 %, then to 4e-6 of it (Smith & Topin, 2018).

    The settings are torch's defaults. Only the learning rate cycles: the momentum is the
    optimizer's own, as under every other schedule here.
    """
    return lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total_steps, cycle_momentum=False)


def linear(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """A straight line from the peak, which would reach 0 just after the last update."""
    return lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=total_steps)


_OPEN_LOOP: dict[str, _Maker] = {
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "cosine": cosine,
    "warmup-cosine": warmup_cosine,
    "one-cycle": one_cycle,
    "linear": linear,
}


def schedule_names() -> list[str]:
    """Returns the names of the schedules; all but ``PLATEAU`` have a `factor_table`."""
    return [*_OPEN_LOOP, PLATEAU]


@lru_cache(maxsize=64, typed=True)
def factor_table(name: str, total_steps: int) -> Factors:
    """Returns the factors of the peak learning rate, one per update.

    Args:
        name: One of `schedule_names`, except ``PLATEAU``, which depends on the loss.
        total_steps: The number of updates, at least 1.

    Returns:
        A read-only array of shape (total_steps,).

    Raises:
        ConfigError: The name is unknown or ``PLATEAU``, or ``total_steps`` is not 1 or more.
    """
    if name == PLATEAU:
        raise ConfigError(f"{PLATEAU!r} follows the loss and has no table: use ReduceOnPlateau")
    if name not in _OPEN_LOOP:
        raise ConfigError(unknown_name("schedule", name, schedule_names()))
    _check_count("total_steps", total_steps)
    optimizer = _unit_optimizer()
    scheduler = _OPEN_LOOP[name](optimizer, total_steps)
    table = np.empty(total_steps)
    for update in range(total_steps):
        table[update] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if update + 1 < total_steps:
            scheduler.step()
    table.setflags(write=False)
    return table


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
            _check_count(name, value)
        if not 0 < factor < 1:
            raise ConfigError(f"factor is {factor!r}, but must lie between 0 and 1")
        self._total_steps = total_steps
        self._intervals = min(intervals, total_steps)
        self._optimizers = [_unit_optimizer() for _ in range(runs)]
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

    def step(self, losses: npt.ArrayLike | torch.Tensor) -> Factors:
        """Takes the losses of one update and returns the `factors` of the next.

        Args:
            losses: The training losses, of shape (N,). A loss that is not finite makes its
                interval one without improvement.

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


def _unit_optimizer() -> Optimizer:
    """An optimizer with peak rate 1 and nothing to optimise: a scheduler's rate is its factor."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}, but must be a whole number of at least 1")
