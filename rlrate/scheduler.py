"""LearnedLR: a torch learning-rate scheduler driven by a controller."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlrate.checks import check_bounds, check_budget, check_loss, check_optimizer, check_state
from rlrate.control import RateControl
from rlrate.controller import Controller
from rlrate.errors import ConfigError, SchedulerError
from rlrate.report import Recorder, Report
from rlrate.watch import UpdateWatch, attach

#: Version of what :meth:`LearnedLR.state_dict` returns.
STATE_VERSION = 1

Rate = float | Tensor


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

    Several parameter groups keep the ratios of the learning rates that they were given, groups that are added later
    too. A rate that is a tensor is filled in place. As the second part of a ``SequentialLR`` it starts when its turn
    comes, and its budget counts from there.

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
        controller: Controller | str | os.PathLike[str] = "default",
        *,
        min_lr: float = 1e-10,
        max_lr: float = 1e4,
    ) -> None:
        check_optimizer(optimizer)
        check_bounds(min_lr, max_lr)
        self.budget = check_budget(total_steps)
        self.controller = controller if isinstance(controller, Controller) else Controller.load(controller)
        self._control = RateControl(
            self.controller.spec, 1, self.budget, given=np.ones(1), min_rate=min_lr, max_rate=max_lr
        )
        self._take(group["lr"] for group in optimizer.param_groups)
        self._watch = UpdateWatch()
        self._recorder = Recorder()
        self._pending = 0  # updates since the last step()
        self._count = 0  # updates that the control does not know of yet, and their losses
        self._losses: list[Tensor | float] = []
        self._loss: Tensor | float | None = None
        self._warned: set[str] = set()
        super().__init__(optimizer)
        attach(optimizer, self, LearnedLR._before_update, LearnedLR._after_update)

    # torch's interface --------------------------------------------------------------------------------

    def step(self, loss: Tensor | SupportsFloat | None = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """Call after each ``optimizer.step()``.

        Args:
            loss: Training loss of the update: a scalar tensor (it is detached) or a number. Without it the controller
                goes by the gradients alone. A loss that is not finite cuts the rate.
            epoch: Ignored; for callers that pass one.

        Raises:
            SchedulerError: for a loss that is not a scalar.
        """
        del epoch
        self._loss = check_loss(loss)
        super().step()

    def get_lr(self) -> list[Rate]:
        """The learning rate of each group for the next update; torch calls this, see :meth:`get_last_lr`."""
        if not self._get_lr_called_within_step:
            self._warn("get_lr", "to get the last learning rates, please use get_last_lr()")
        elif self._is_initial:
            pass
        elif self.last_epoch == 0:  # our turn in a SequentialLR begins
            self._take(self.base_lrs)
            self._pending, self._loss = 0, None
            return list(self._group_rates())
        else:
            self._advance()
            if self._control.updates + self._count > 0:
                return list(self._group_rates())
        return _copies(group["lr"] for group in self.optimizer.param_groups)

    def report(self) -> Report:
        """What was decided so far, as arrays, and how often the guard stepped in."""
        interventions = {name: int(count[0]) for name, count in self._control.interventions.items()}
        return self._recorder.report(self.controller.spec.signals, interventions["cut"], interventions["cap"])

    def __repr__(self) -> str:
        name = type(self.optimizer).__name__
        return f"LearnedLR({name}, total_steps={self.budget}, updates={self._control.updates + self._count})"

    # State --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue: numbers, strings, lists, dictionaries and tensors.

        It can be saved by ``torch.save`` and loaded with ``weights_only=True``. The controller is not in it, only its
        identity.
        """
        return {
            "version": STATE_VERSION,
            "controller": self.controller.identity,
            "total_steps": self.budget,
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "base_lrs": _copies(self.base_lrs),
            "last_lr": _copies(self._last_lr),
            "given": list(self._given),
            "largest": self._largest,
            "pending": self._pending,
            "count": self._count,
            "losses": _numbers(self._losses),
            "warned": sorted(self._warned),
            "control": self._control.state_dict(),
            "watch": self._watch.state_dict(),
            "decisions": self._recorder.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues where :meth:`state_dict` was called, before or after the optimizer's state is loaded.

        The rates are written into the optimizer. Bounds are those given to this scheduler.

        Raises:
            SchedulerError: when the state is not that of a LearnedLR with this controller and budget.
        """
        state = state_dict
        check_state(state, STATE_VERSION, self.controller.identity, self.budget)
        try:
            self._control.load_state_dict(state["control"])
            self._watch.load_state_dict(state["watch"], self.optimizer)
            self._recorder.load_state_dict(state["decisions"])
        except (ConfigError, KeyError) as error:
            raise SchedulerError(f"the state does not fit this scheduler: {error}") from None
        self.last_epoch, self._step_count = state["last_epoch"], state["step_count"]
        self.base_lrs, self._last_lr = _copies(state["base_lrs"]), _copies(state["last_lr"])
        self._given, self._largest = list(state["given"]), state["largest"]
        self._pending, self._count, self._losses = state["pending"], state["count"], list(state["losses"])
        self._warned, self._loss = set(state["warned"]), None
        if self.last_epoch >= 0 and self._control.updates + self._count + self._pending > 0:
            self._write_rates()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled schedulers watch their own copy of the optimizer."""
        self.__dict__.update(state)
        attach(self.optimizer, self, LearnedLR._before_update, LearnedLR._after_update)

    # The run, update by update ------------------------------------------------------------------------

    def _before_update(self) -> None:
        control = self._control
        position = control.updates + self._count + self._pending
        if self.last_epoch < 0 or not control.samples_at(position):
            return
        if position == 0 and control.probing:
            control.set_probe(*self._watch.norms(self.optimizer))
            self._write_rates()
        if not self._watch.before(self.optimizer):
            self._warn(
                "no-gradients",
                "optimizer.step() found no gradients: call loss.backward() before it, and check that the optimizer "
                "holds the parameters that the loss depends on",
            )

    def _after_update(self) -> None:
        if self.last_epoch >= 0:  # not while an earlier part of a SequentialLR has its turn
            self._pending += 1
            self._watch.after(self.optimizer)

    def _advance(self) -> None:
        """Takes note of the updates since the last call, and decides when an interval is over."""
        control, count, loss = self._control, self._pending, self._loss
        self._pending, self._loss = 0, None
        if count == 0:
            self._warn(
                "no-update",
                "LearnedLR.step() was called without an optimizer.step() since the last call; such calls change "
                "nothing (a step that a GradScaler skipped is no cause for concern). Call it once after each "
                "optimizer.step()",
            )
            return
        left = self.budget - control.updates - self._count
        if count > left:
            self._warn(
                "budget",
                f"LearnedLR is past its budget of {self.budget} updates and stays at its final rate; create it "
                "with the number of updates that you intend to make",
            )
            if left == 0:
                return
        self._count += min(count, left)
        if loss is not None:
            self._losses.append(loss)
        # Nothing changes until then, and looking at a loss makes an accelerator wait.
        if control.closes(len(self._losses), self._count):
            self._tell()

    def _tell(self) -> None:
        """Passes on what the control does not know yet, and its questions to the controller."""
        control = self._control
        losses, count = _numbers(self._losses), self._count
        self._losses, self._count = [], 0
        samples = self._watch.collect() if control.wants_samples(count) else None
        control.advance(np.array(losses)[:, None] if losses else None, samples, count)
        if control.decision_due:
            observation = control.observe()
            action = self.controller.act(observation)
            control.act(action)
            self._recorder.add(control.updates, float(control.rates[0]), observation[0], float(action[0]))

    # Rates --------------------------------------------------------------------------------------------

    def _take(self, rates: Any) -> None:
        """Notes the given rates: their ratios count, and their size only if the specification starts from it."""
        self._given = [float(rate) for rate in rates]
        self._largest = max(self._given)
        if not (math.isfinite(self._largest) and self._largest > 0.0):
            self._given, self._largest = [1e-3] * len(self._given), 1e-3
        self._control.give(np.array([self._largest]))

    def _group_rates(self) -> list[float]:
        self._take_added()
        control, largest = self._control, self._largest
        rate = float(control.rates_at(control.updates + self._count)[0])
        # The group with the largest rate gets exactly the control's rate, whatever it was given.
        return [rate if given == largest else given * (rate / largest) for given in self._given]

    def _take_added(self) -> None:
        """Groups that were added since the last call join with the rate that they were given."""
        groups = self.optimizer.param_groups
        for group in groups[len(self._given) :]:
            lr = group["lr"]
            # A default that is a tensor is shared by the groups, and already holds the current rate.
            twins = [given for other, given in zip(groups, self._given, strict=False) if other["lr"] is lr]
            given = twins[0] if twins and isinstance(lr, Tensor) else float(lr)
            self._given.append(given if math.isfinite(given) else self._largest)
            group.setdefault("initial_lr", self._given[-1])
            self.base_lrs.append(self._given[-1])

    def _write_rates(self) -> None:
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, self._group_rates(), strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # in place: a compiled optimizer keeps its graph
            else:
                group["lr"] = rate
        self._last_lr = _copies(group["lr"] for group in groups)

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=7)  # the caller of step()


def _copies(rates: Any) -> list[Rate]:
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]


def _numbers(losses: list[Tensor | float]) -> list[float]:
    if all(isinstance(loss, Tensor) and loss.device.type != "cpu" for loss in losses) and losses:
        stacked = torch.stack([loss.reshape(()) for loss in losses if isinstance(loss, Tensor)])
        return [float(loss) for loss in stacked.cpu()]
    return [float(loss) for loss in losses]
