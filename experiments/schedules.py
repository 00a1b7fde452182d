"""Hand-tuned learning-rate schedules: the rivals of a learned one.

An open-loop schedule is a table of factors, one per update, by which the peak learning rate is
multiplied. The tables are not formulas of ours: each is recorded from a scheduler that
`torch.optim.lr_scheduler` or `pytorch_optimizer` ships, so that a comparison is with what people
use. Those that listen to the training are objects that are stepped: see `rlrate.experiments.rules`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.optim import Optimizer, lr_scheduler

from rlrate.errors import ConfigError, unknown_name

__all__ = ["GRADIENT_NORM", "GREEDY", "PLATEAU", "Factors", "factor_table", "schedule_help", "schedule_names"]

Factors: TypeAlias = npt.NDArray[np.float64]
_Maker: TypeAlias = Callable[[Optimizer, int], lr_scheduler.LRScheduler]

#: Schedules that listen to the loss or to the gradient.
PLATEAU, GREEDY, GRADIENT_NORM = "reduce-on-plateau", "greedy", "gradient-norm"
REACTIVE = (PLATEAU, GREEDY, GRADIENT_NORM)


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
    warmup = _warmup(total_steps)
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


def polynomial(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """The square of the share of the budget that is left."""
    return lr_scheduler.PolynomialLR(optimizer, total_iters=total_steps, power=2.0)


def warmup_linear(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """The rise of `warmup_cosine`, then `linear` over the rest."""
    warmup = _warmup(total_steps)
    if warmup == 0:
        return linear(optimizer, total_steps)
    rise = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [rise, linear(optimizer, total_steps - warmup)], milestones=[warmup])


def cosine_restarts(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """Cosines of 1/7, 2/7 and 4/7 of the updates, each from the peak towards 0 (Loshchilov & Hutter, 2017)."""
    return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=-(-total_steps // 7), T_mult=2)


def cyclic(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """Four triangles between a tenth of the peak and the peak, each half as high as the last (Smith, 2017)."""
    return lr_scheduler.CyclicLR(
        optimizer,
        base_lr=0.1,
        max_lr=1.0,
        step_size_up=max(total_steps // 8, 1),
        mode="triangular2",
        cycle_momentum=False,
    )


def wsd(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """Warm-up over 5 %, the peak, then a cosine to 0 over the last 20 % (Hu et al., 2024)."""
    from pytorch_optimizer import get_wsd_schedule

    warmup, decay = _warmup(total_steps), max(round(0.2 * total_steps), 1)
    # Counted from 1, so that neither the first nor the last update is at rate 0.
    schedule: lr_scheduler.LRScheduler = get_wsd_schedule(
        optimizer, warmup + 1, total_steps - warmup - decay, decay, cooldown_type="cosine", last_epoch=-1
    )
    schedule.step()
    return schedule


def rex(optimizer: Optimizer, total_steps: int) -> lr_scheduler.LRScheduler:
    """(1 - t) / (1 - t / 2) for the share t of the budget that is spent (Chen et al., 2022)."""
    from pytorch_optimizer import REXScheduler

    schedule: lr_scheduler.LRScheduler = REXScheduler(optimizer, total_steps, max_lr=1.0)
    # Its construction leaves the rate at 0 and counts a step.
    schedule.step_t = 0  # type: ignore[attr-defined]
    schedule.step()
    return schedule


def _warmup(total_steps: int) -> int:
    return round(0.05 * total_steps)


_OPEN_LOOP: dict[str, _Maker] = {
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "cosine": cosine,
    "warmup-cosine": warmup_cosine,
    "one-cycle": one_cycle,
    "linear": linear,
    "polynomial": polynomial,
    "warmup-linear": warmup_linear,
    "cosine-restarts": cosine_restarts,
    "cyclic": cyclic,
    "wsd": wsd,
    "rex": rex,
}


def schedule_names() -> list[str]:
    """Returns the names of the schedules; all but those of ``REACTIVE`` have a `factor_table`."""
    return [*_OPEN_LOOP, *REACTIVE]


def schedule_help(name: str) -> str:
    """One line on the open-loop schedule ``name``."""
    return (_OPEN_LOOP[name].__doc__ or "").splitlines()[0]


@lru_cache(maxsize=64, typed=True)
def factor_table(name: str, total_steps: int) -> Factors:
    """Returns the factors of the peak learning rate, one per update.

    Args:
        name: One of `schedule_names`, except those of ``REACTIVE``, which depend on the run.
        total_steps: The number of updates, at least 1.

    Returns:
        A read-only array of shape (total_steps,).

    Raises:
        ConfigError: The name is unknown or reactive, or ``total_steps`` is not 1 or more.
    """
    if name in REACTIVE:
        raise ConfigError(f"{name!r} follows the training and has no table: use rlrate.experiments.rules")
    if name not in _OPEN_LOOP:
        raise ConfigError(unknown_name("schedule", name, schedule_names()))
    check_count("total_steps", total_steps)
    optimizer = unit_optimizer()
    with warnings.catch_warnings():
        # CosineAnnealingWarmRestarts and others step themselves once before the optimizer does.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        return _record(name, total_steps, optimizer)


def _record(name: str, total_steps: int, optimizer: Optimizer) -> Factors:
    scheduler = _OPEN_LOOP[name](optimizer, total_steps)
    table = np.empty(total_steps)
    for update in range(total_steps):
        table[update] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if update + 1 < total_steps:
            scheduler.step()
    table.setflags(write=False)
    return table


def unit_optimizer() -> Optimizer:
    """An optimizer with peak rate 1 and nothing to optimise: a scheduler's rate is its factor."""
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def check_count(name: str, value: object) -> None:
    """Raises a `ConfigError` unless ``value`` is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}, but must be a whole number of at least 1")
