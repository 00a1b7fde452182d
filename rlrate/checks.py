"""Arguments of the scheduler: what is refused, and with which words."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer

from rlrate.errors import SchedulerError


def check_optimizer(optimizer: object) -> None:
    """Raises SchedulerError for what LearnedLR cannot drive."""
    if not isinstance(optimizer, Optimizer):
        raise SchedulerError(f"LearnedLR needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, LBFGS | torch.optim.Rprop):
        raise SchedulerError(
            f"{type(optimizer).__name__} chooses its own step sizes; use LearnedLR with a first-order optimizer "
            "such as SGD or Adam"
        )
    if not all("lr" in group for group in optimizer.param_groups):
        raise SchedulerError(
            f"{type(optimizer).__name__} has no learning rate to set: its parameter groups have no entry 'lr'"
        )
    if not any(group["params"] for group in optimizer.param_groups):
        raise SchedulerError("the optimizer has no parameters; pass model.parameters() to it")
    if not hasattr(optimizer.step, "__func__") and not hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise SchedulerError(
            "optimizer.step was replaced by a function; create the scheduler before compiling or wrapping it"
        )


def check_budget(total_steps: object, name: str = "total_steps") -> int:
    """The budget as an int; raises SchedulerError unless it is an integer of at least 1."""
    try:
        if isinstance(total_steps, bool | np.bool_):
            raise TypeError
        budget = operator.index(total_steps)  # type: ignore[arg-type]
    except TypeError:
        raise SchedulerError(f"{name} must be an integer number of optimizer updates, got {total_steps!r}") from None
    if budget < 1:
        raise SchedulerError(f"{name} must be at least 1, got {budget}")
    return budget


def check_bounds(min_lr: object, max_lr: object, groups: int) -> tuple[float, float | list[float]]:
    """Both bounds as floats, the upper one for each group if it is a list.

    Raises SchedulerError unless 0 < min_lr < max_lr < infinity, for each of the groups.
    """
    lowest = _rate("min_lr", min_lr)
    if isinstance(max_lr, Tensor | np.ndarray):
        max_lr = max_lr.tolist()
    several = isinstance(max_lr, list | tuple)
    highest = [_rate("max_lr", bound) for bound in (max_lr if isinstance(max_lr, list | tuple) else [max_lr])]
    if several and len(highest) != groups:
        raise SchedulerError(
            f"max_lr has {len(highest)} entries and the optimizer {groups} parameter groups; give one number, or one "
            "for each group"
        )
    for bound in highest:
        if not 0.0 < lowest < bound < math.inf:
            raise SchedulerError(f"need 0 < min_lr < max_lr, both finite; got min_lr={lowest!r} and max_lr={bound!r}")
    return lowest, highest if several else highest[0]


def _rate(name: str, value: object) -> float:
    try:
        if isinstance(value, str | bytes | bool):
            raise TypeError
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise SchedulerError(f"{name} must be a learning rate, a positive number, got {value!r}") from None


def check_loss(loss: object, call: str = "step(loss)") -> Tensor | float | None:
    """The loss without its graph; raises SchedulerError unless it is one real number."""
    if loss is None:
        return None
    if isinstance(loss, Tensor | np.ndarray):
        size = loss.numel() if isinstance(loss, Tensor) else loss.size
        if size != 1:
            raise SchedulerError(
                f"{call} needs one number per update, got shape {tuple(loss.shape)}; pass the mean, e.g. loss.mean()"
            )
        if isinstance(loss, Tensor) and not loss.is_complex() and loss.device.type != "cpu":
            # A copy: captured graphs write every loss into the same memory.
            return loss.detach().clone()
        loss = loss.item()
    try:
        if isinstance(loss, str | bytes):
            raise TypeError
        return float(loss)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise SchedulerError(f"{call} needs a scalar tensor or a number, got {type(loss).__name__}") from None


def check_state(state: object, version: int, identity: str, budget: int | None, epoch: int | None) -> None:
    """Raises SchedulerError unless ``state`` is that of a LearnedLR with this controller, budget and epoch."""
    if (
        not isinstance(state, Mapping)
        or state.get("version") != version
        or not {"controller", "total_steps", "control", "watch"} <= set(state)
    ):
        raise SchedulerError(
            "this is not the state of a LearnedLR of this version of rlrate; resume from a checkpoint that "
            "LearnedLR.state_dict() made"
        )
    if state["controller"] != identity:
        raise SchedulerError(
            f"the run was saved with controller {state['controller'][:12]}, this scheduler has {identity[:12]}; "
            "create it with the controller that the run began with"
        )
    if state["total_steps"] != budget:
        raise SchedulerError(
            f"the run was saved with total_steps={state['total_steps']}, this scheduler has {budget}; "
            "create it with the budget that the run began with"
        )
    saved = state.get("steps_per_epoch", epoch)  # not in states written before it was kept
    if saved != epoch:
        raise SchedulerError(
            f"the run was saved with steps_per_epoch={saved}, this scheduler has {epoch}; create it with what the run "
            "began with"
        )
