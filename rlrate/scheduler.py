"""LearnedLR: a torch learning-rate scheduler driven by a controller."""

from __future__ import annotations

import math
import operator
import warnings
import weakref
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlrate.control import RateControl, UpdateSampler
from rlrate.controller import Controller
from rlrate.errors import SchedulerError

Loss = Tensor | SupportsFloat | None


class LearnedLR(LRScheduler):
    """Sets the learning rate from what it sees of the training run; no rate needs to be chosen.

    The optimizer's own learning rate is not used (it may be anything): the first few updates are made with a
    negligible rate, which measures how large updates are beside the weights, and the controller takes over from
    there. The rate goes to zero over the last part of the budget. Decisions are made once per interval (about
    forty in a run); between them a scheduler step costs next to nothing.

    ::

        scheduler = rlrate.LearnedLR(optimizer, total_steps=10_000)
        for inputs, targets in batches:
            loss = loss_function(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step(loss)

    Several parameter groups keep the ratios of the learning rates that they were given.

    Args:
        optimizer: Any torch optimizer whose update is proportional to its learning rate (all but LBFGS and Rprop).
        total_steps: The budget: number of optimizer updates of the whole run, at least 1.
        controller: A :class:`Controller`, the path of a controller file, or the name of a bundled one.
        min_lr: Lowest rate; the final anneal goes below it.
        max_lr: Highest rate.

    Raises:
        SchedulerError: for a budget that is not a positive integer, bounds that are not ordered, or an optimizer that
            the scheduler cannot drive.
        ControllerError: when the controller cannot be loaded.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        controller: Controller | str = "default",
        *,
        min_lr: float = 1e-10,
        max_lr: float = 1e4,
    ) -> None:
        _check_optimizer(optimizer)
        self.budget = _check_budget(total_steps)
        if not 0.0 < min_lr < max_lr < math.inf:
            raise SchedulerError(f"need 0 < min_lr < max_lr, both finite; got min_lr={min_lr!r} and max_lr={max_lr!r}")
        self.controller = controller if isinstance(controller, Controller) else Controller.load(controller)
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        largest = max(rates)
        self._ratios = [rate / largest if largest > 0 else 1.0 for rate in rates]
        self._control = RateControl(
            self.controller.spec,
            1,
            self.budget,
            given=np.array([largest if math.isfinite(largest) and largest > 0 else 1e-3]),
            min_rate=min_lr,
            max_rate=max_lr,
        )
        self._sampler: UpdateSampler | None = None
        self._pending = 0
        self._loss: Loss = None
        self._warned: set[str] = set()
        self._handles = _attach(self, optimizer)
        super().__init__(optimizer)

    # torch's interface --------------------------------------------------------------------------------

    def step(self, loss: Loss = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """Call after each ``optimizer.step()``.

        Args:
            loss: Training loss of the update: a scalar tensor (it is detached) or a number. Without it the controller
                goes by the gradients alone. A loss that is not finite cuts the rate.
            epoch: Ignored; for callers that pass one.

        Raises:
            SchedulerError: for a loss that is not a scalar.
        """
        del epoch
        self._loss = _check_loss(loss)
        super().step()

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each group for the next update."""
        if self._is_initial:
            return [group["lr"] for group in self.optimizer.param_groups]
        self._advance()
        if self._control.updates == 0:
            return [group["lr"] for group in self.optimizer.param_groups]
        return list(self._group_rates())

    # The run, update by update ------------------------------------------------------------------------

    def _advance(self) -> None:
        """Takes note of the updates since the last call, and decides when an interval is over."""
        control, count, loss = self._control, self._pending, self._loss
        self._pending, self._loss = 0, None
        if count == 0:
            if self._step_count > 1:
                self._warn(
                    "no-update",
                    "LearnedLR.step() was called without an optimizer.step() since the last call; such calls change "
                    "nothing. Call it once after each optimizer.step()",
                )
            return
        if control.updates + count > self.budget:
            self._warn(
                "budget",
                f"LearnedLR is past its budget of {self.budget} updates and stays at its final rate; create it "
                "with the number of updates that you intend to make",
            )
            count = self.budget - control.updates
            if count == 0:
                return
        wanted = self._sampler is not None and control.wants_samples(count)
        samples = self._sampler.collect() if wanted and self._sampler is not None else None
        control.advance(None if loss is None else np.array([float(loss)]), samples, count)
        if control.decision_due:
            control.act(self.controller.act(control.observe()))

    def _group_rates(self) -> list[float]:
        rate = float(self._control.rates[0])
        groups = len(self.optimizer.param_groups)
        self._ratios += [1.0] * (groups - len(self._ratios))
        return [rate * ratio for ratio in self._ratios[:groups]]

    def _before_update(self) -> None:
        control = self._control
        if control.done or not control.sampling:
            return
        parameters, gradients = self._tensors()
        if self._sampler is None:
            first = parameters[0]
            self._sampler = UpdateSampler([p.shape[1:] for p in parameters], 1, device=first.device, dtype=first.dtype)
            if control.probing:
                control.set_probe(
                    self._sampler.norms(gradients).cpu().double().numpy(),
                    self._sampler.norms(parameters).cpu().double().numpy(),
                    sum(p.numel() for p in parameters),
                )
                self._write_rates()
        self._sampler.before(parameters, gradients)

    def _after_update(self) -> None:
        self._pending += 1
        if self._sampler is not None and not self._control.done:
            self._sampler.after(self._tensors()[0])

    def _tensors(self) -> tuple[list[Tensor], list[Tensor | None]]:
        """Parameters and gradients of all groups, with a leading axis of one run."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        gradients = [None if p.grad is None else p.grad for p in parameters]
        if all(gradient is None for gradient in gradients):
            self._warn(
                "no-gradients",
                "optimizer.step() found no gradients: call loss.backward() before it, and check that the optimizer "
                "holds the parameters that the loss depends on",
            )
        return (
            [p.detach().unsqueeze(0) for p in parameters],
            [None if g is None else g.detach().unsqueeze(0) for g in gradients],
        )

    def _write_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._group_rates(), strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in place: a compiled optimizer keeps its graph
            else:
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=4)


def _attach(scheduler: LearnedLR, optimizer: Optimizer) -> tuple[Any, Any]:
    """Hooks the optimizer's step; the hooks hold no strong reference to the scheduler."""
    reference = weakref.ref(scheduler)

    def before(*_: object) -> None:
        alive = reference()
        if alive is not None:
            alive._before_update()

    def after(*_: object) -> None:
        alive = reference()
        if alive is not None:
            alive._after_update()

    return (
        optimizer.register_step_pre_hook(before),
        optimizer.register_step_post_hook(after),
    )


def _check_optimizer(optimizer: object) -> None:
    if not isinstance(optimizer, Optimizer):
        raise SchedulerError(f"LearnedLR needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, LBFGS | torch.optim.Rprop):
        raise SchedulerError(
            f"{type(optimizer).__name__} chooses its own step sizes; use LearnedLR with a first-order optimizer "
            "such as SGD or Adam"
        )
    if not any(group["params"] for group in optimizer.param_groups):
        raise SchedulerError("the optimizer has no parameters; pass model.parameters() to it")


def _check_budget(total_steps: object) -> int:
    try:
        if isinstance(total_steps, bool):
            raise TypeError
        budget = operator.index(total_steps)  # type: ignore[arg-type]
    except TypeError:
        raise SchedulerError(
            f"total_steps must be an integer number of optimizer updates, got {total_steps!r}"
        ) from None
    if budget < 1:
        raise SchedulerError(f"total_steps must be at least 1, got {budget}")
    return budget


def _check_loss(loss: Loss) -> Loss:
    if loss is None:
        return None
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise SchedulerError(
                f"step(loss) needs one number per update, got a tensor of shape {tuple(loss.shape)}; "
                "pass the mean, e.g. loss.mean()"
            )
        return loss.detach()
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise SchedulerError(f"step(loss) needs a scalar tensor or a number, got {type(loss).__name__}") from None
