"""LearnedLR: a torch learning-rate scheduler driven by a controller."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rlrate.checks import check_bounds, check_budget, check_loss, check_optimizer, check_state
from rlrate.control import OptimizerTraits
from rlrate.controller import Controller
from rlrate.driver import Driver
from rlrate.errors import ConfigError, SchedulerError
from rlrate.groups import Groups, Rate, changed, copies, write
from rlrate.ranks import Ranks
from rlrate.report import Report
from rlrate.watch import attach, innermost, skipped

#: Version of what :meth:`LearnedLR.state_dict` returns.
STATE_VERSION = 1

#: Updates by which a decision may be late before a warning is due.
LATE = 10


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
        total_steps: The budget: number of optimizer updates of the whole run, at least 1. None when it is not known:
            the rate is then held up until :meth:`anneal` is called.
        controller: A :class:`Controller`, the path of a controller file, or the name of a bundled one.
        min_lr: Lowest rate; the final anneal goes below it.
        max_lr: Highest rate, or that of each parameter group.
        steps_per_epoch: Updates in which the training data are gone through once, such as ``len(loader)``. The bundled
            controller then stops, by bringing the rate down for good, where it finds that the model learns its examples
            by heart (:attr:`Report.stopped`); without it, it never does.
        process_group: The processes that train the model together, when torch.distributed is in use; None for all of
            them, False for this one alone.

    Raises:
        SchedulerError: for a budget or an epoch that is not a positive integer, bounds that are not ordered, or an
            optimizer that the scheduler cannot drive.
        ControllerError: when the controller cannot be loaded.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None,
        controller: Controller | str | os.PathLike[str] = "default",
        *,
        min_lr: float = 1e-10,
        max_lr: float | Sequence[float] = 1e4,
        steps_per_epoch: int | None = None,
        process_group: Any = None,
    ) -> None:
        optimizer = innermost(optimizer)
        check_optimizer(optimizer)
        lowest, highest = check_bounds(min_lr, max_lr, len(optimizer.param_groups))
        self.budget = None if total_steps is None else check_budget(total_steps)
        self.controller = controller if isinstance(controller, Controller) else Controller.load(controller)
        self._groups = Groups([group["lr"] for group in optimizer.param_groups], highest)
        self._driver = Driver(self.controller, self.budget, lowest, self._groups.highest, Ranks(process_group))
        self._driver.control.give(np.array([self._groups.largest]))
        self._driver.control.traits = OptimizerTraits.of(optimizer.param_groups[0])
        self.steps_per_epoch = None if steps_per_epoch is None else check_budget(steps_per_epoch, "steps_per_epoch")
        if self.steps_per_epoch is not None:
            self._driver.control.epoch = np.array([float(self.steps_per_epoch)])
        self._pending = 0  # updates since the last step()
        self._skipped = False  # whether a GradScaler skipped one since
        self._doubt: Tensor | None = None  # the same on an accelerator: how many of the pending ones
        self._loss: Tensor | float | None = None
        self._observed: Tensor | float | None = None
        self._idle = 0  # calls of step() since the last update, beyond the first
        self._warned: set[str] = set()
        super().__init__(optimizer)
        attach(optimizer, self, LearnedLR._before_update, LearnedLR._after_update)

    # torch's interface --------------------------------------------------------------------------------

    def step(self, loss: Tensor | SupportsFloat | None = None, epoch: int | None = None) -> None:  # type: ignore[override]
        """Call after each ``optimizer.step()``.

        Args:
            loss: Training loss of the update: a scalar tensor (it is detached) or a number. Without it the controller
                goes by what :meth:`observe` was told, or by the gradients alone. A loss that is not finite cuts the
                rate.
            epoch: Ignored; for callers that pass one.

        Raises:
            SchedulerError: for a loss that is not a scalar.
        """
        del epoch
        if type(loss) is int:
            self._warn(
                "integer",
                f"LearnedLR.step({loss}) was given an integer, which counts as the training loss; call step(loss) "
                "after each optimizer.step(), without the number of the epoch",
                level=3,
            )
        self._loss = self._observed if loss is None else check_loss(loss)
        if self._pending == 1 and self._step_count > 1 and self._driver.quiet():
            self._pass_by()
        else:
            super().step()

    def observe(self, loss: Tensor | SupportsFloat | None) -> None:
        """Notes the loss for a :meth:`step` that is called without one, as frameworks and composed schedulers do.

        Only the latest counts, and for one step.

        Args:
            loss: As for :meth:`step`.

        Raises:
            SchedulerError: for a loss that is not a scalar.
        """
        self._observed = check_loss(loss)

    def observe_validation(self, loss: Tensor | SupportsFloat | None) -> None:
        """Notes a loss on data that is not trained on, whenever you have measured one, such as after each epoch.

        A controller that looks at validation losses sees the latest at its next decision, as if measured just before;
        it can then tell when the model begins to overfit. Others leave it aside. Of several processes, that of the
        first counts.

        Args:
            loss: As for :meth:`step`, but of the validation data, always of the same ones. One that is not finite is
                left aside.

        Raises:
            SchedulerError: for a loss that is not a scalar.
        """
        self._driver.validation = check_loss(loss, "observe_validation(loss)")

    def get_lr(self) -> list[Rate]:
        """The learning rate of each group for the next update; torch calls this, see :meth:`get_last_lr`."""
        if not self._get_lr_called_within_step:
            self._warn("get_lr", "to get the last learning rates, please use get_last_lr()")
        elif self._is_initial:
            pass
        elif self.last_epoch == 0:  # our turn in a SequentialLR begins
            self._take(self.base_lrs)
            self._forget()
            return list(self._rates())
        else:
            self._advance()
            if self._driver.position > 0:
                return list(self._rates())
        return copies(group["lr"] for group in self.optimizer.param_groups)

    @property
    def pending(self) -> int:
        """Updates that were made since the last :meth:`step`."""
        return self._pending

    @property
    def updates(self) -> int:
        """Updates that were made so far."""
        return self._driver.position + self._pending

    def anneal(self, steps: int) -> None:
        """Brings the rate down to zero over the next ``steps`` updates, and ends the run there.

        For a budget that was not known, or one that is to be ended early or late.

        Raises:
            SchedulerError: unless ``steps`` is an integer of at least 1.
        """
        steps = check_budget(steps, "steps")
        self._driver.tell()
        self._driver.control.anneal(steps)
        self._driver.refresh()

    def report(self) -> Report:
        """What was decided so far, as arrays and as a picture, and how often the guard stepped in."""
        return self._driver.report()

    def __repr__(self) -> str:
        name = type(self.optimizer).__name__
        return f"LearnedLR({name}, total_steps={self.budget}, updates={self._driver.position})"

    # State --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue: numbers, strings, lists, dictionaries and tensors.

        It can be saved by ``torch.save`` and loaded with ``weights_only=True``. The controller is not in it, only its
        identity.
        """
        if self._doubt is not None:
            self._pending -= int(self._doubt)
            self._doubt = None
        return {
            "version": STATE_VERSION,
            "controller": self.controller.identity,
            "total_steps": self.budget,
            "steps_per_epoch": self.steps_per_epoch,
            "last_epoch": self.last_epoch,
            "step_count": self._step_count,
            "base_lrs": copies(self.base_lrs),
            "last_lr": copies(self._last_lr),
            "groups": self._groups.state_dict(),
            "pending": self._pending,
            "skipped": self._skipped,
            "warned": sorted(self._warned),
            **self._driver.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues where :meth:`state_dict` was called, before or after the optimizer's state is loaded.

        The rates are written into the optimizer. Bounds are those given to this scheduler.

        Raises:
            SchedulerError: when the state is not that of a LearnedLR with this controller, budget and epoch.
        """
        state = state_dict
        check_state(state, STATE_VERSION, self.controller.identity, self.budget, self.steps_per_epoch)
        try:
            self._driver.load_state_dict(state, self.optimizer)
            self._groups.load_state_dict(state["groups"])
        except (ConfigError, KeyError) as error:
            raise SchedulerError(f"the state does not fit this scheduler: {error}") from None
        self.last_epoch, self._step_count = state["last_epoch"], state["step_count"]
        self.base_lrs, self._last_lr = copies(state["base_lrs"]), copies(state["last_lr"])
        self._pending, self._skipped = state["pending"], state["skipped"]
        self._warned, self._loss, self._doubt, self._observed, self._idle = set(state["warned"]), None, None, None, 0
        if self.last_epoch >= 0 and self._driver.position + self._pending > 0:
            self._write_rates()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Copies and unpickled schedulers watch their own copy of the optimizer."""
        self.__dict__.update(state)
        attach(self.optimizer, self, LearnedLR._before_update, LearnedLR._after_update)

    # The run, update by update ------------------------------------------------------------------------

    def _before_update(self) -> None:
        driver, position = self._driver, self._driver.position + self._pending
        if position < driver.wake or self.last_epoch < 0 or not driver.control.samples_at(position):
            return
        if skipped(self.optimizer, wait=driver.control.probing) is True:
            return
        if position == 0 and driver.control.probing:
            driver.probe(self.optimizer)
            self._write_rates()
        if not driver.watch.before(self.optimizer):
            self._warn(
                "no-gradients",
                "optimizer.step() found no gradients: call loss.backward() before it, and check that the optimizer "
                "holds the parameters that the loss depends on",
            )

    def _after_update(self) -> None:
        if self.last_epoch < 0:  # an earlier part of a SequentialLR has its turn
            return
        verdict = skipped(self.optimizer, wait=self._driver.control.probing)
        if verdict is True:
            self._skipped = True
            return
        if verdict is not False:
            self._doubt = verdict if self._doubt is None else self._doubt + verdict
        self._pending += 1
        self._idle = 0
        if self._driver.watch.measuring:
            self._driver.watch.after(self.optimizer)

    def _pass_by(self) -> None:
        """The usual step: an update, and nothing to decide. Does what the rest of the class would do, only faster."""
        driver, groups = self._driver, self.optimizer.param_groups
        cut = driver.pass_by(self._loss, self._doubt)
        self._forget()
        self._step_count += 1
        self.last_epoch += 1
        added = len(groups) > len(self._groups)
        if cut or added or driver.position >= driver.level_until or changed(groups, self._last_lr):
            self._write_rates()

    def _advance(self) -> None:
        """Takes note of the updates since the last call, and decides when an interval is over."""
        driver, count, loss = self._driver, self._pending, self._loss
        doubt, known = self._doubt, self._skipped
        self._forget()
        if count == 0:
            self._idle += not known
            # Accelerate calls step() once for each process.
            if self._idle >= max(self._driver.ranks.size, 1) and not known:
                self._warn(
                    "no-update",
                    "LearnedLR.step() was called without an optimizer.step() since the last call; such calls change "
                    "nothing (a step that a GradScaler skipped is no cause for concern). Call it once after each "
                    "optimizer.step()",
                )
            return
        due = driver.control.next_event
        if count > LATE and due is not None and driver.position + count > due + LATE:
            self._warn(
                "late",
                f"LearnedLR.step() was called once for {count} updates, too late for a decision; call it after each "
                "optimizer.step(), not once an epoch",
            )
        left = count if driver.left is None else driver.left
        if count > left:
            self._warn(
                "budget",
                f"LearnedLR is past its budget of {driver.control.total_steps} updates and stays at its final rate; "
                "create it with the number of updates that you intend to make",
            )
            if left == 0:
                return
        decisions = driver.control.decisions
        driver.note(min(count, left), loss, doubt)
        if driver.control.decisions > decisions:
            self._check_heard(loss)

    def _check_heard(self, loss: Tensor | float | None) -> None:
        """Looks at what was told of the loss, after a decision."""
        control = self._driver.control
        if loss is not None and not math.isfinite(loss):
            self._warn(
                "not-finite",
                f"the loss of update {self._driver.position} is {float(loss)}: LearnedLR cuts the rate, which now is "
                f"{self._driver.rate:.3g}, but weights that are not finite stay so; go back to a checkpoint and look "
                "for what the network was given",
                level=8,
            )
        elif control.decisions == 1 and np.isnan(control.signals.first[0]):
            self._warn(
                "no-loss",
                "LearnedLR was told no loss so far: it goes by the gradients alone, and nothing cuts the rate when the "
                "loss spikes. Call step(loss), or observe(loss) before a step() that somebody else calls",
                level=8,
            )

    def _forget(self) -> None:
        self._pending, self._loss, self._skipped, self._doubt, self._observed = 0, None, False, None, None

    # Rates --------------------------------------------------------------------------------------------

    def _take(self, rates: Sequence[Rate]) -> None:
        """Notes the given rates: their ratios count, and their size only if the specification starts from it."""
        control = self._driver.control
        self._groups.take(rates)
        control.max_rate = self._groups.highest
        control.give(np.array([self._groups.largest]))

    def _rates(self) -> list[float]:
        if len(self.optimizer.param_groups) > len(self._groups):
            self.base_lrs.extend(self._groups.join(self.optimizer.param_groups))
        return self._groups.spread(self._driver.rate)

    def _write_rates(self) -> None:
        groups = self.optimizer.param_groups
        write(groups, self._rates())
        self._last_lr = copies(group["lr"] for group in groups)

    def _warn(self, kind: str, message: str, level: int = 7) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, UserWarning, stacklevel=level)  # the caller of step()
