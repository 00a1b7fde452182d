"""One run under a controller: takes note of updates and losses, and asks the controller when it is time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlrate.control import RateControl
from rlrate.control.control import WINDOW
from rlrate.controller import Controller
from rlrate.report import Recorder, Report
from rlrate.watch import UpdateWatch

Loss = Tensor | float


class Driver:
    """Everything about a run but torch's groups and scheduler interface.

    Losses are passed on in blocks, when a block may change the rates: until then an update costs next to nothing, and
    an accelerator is not made to wait.

    Args:
        controller: Decides.
        total_steps: Budget in updates, or None.
        min_rate: Lowest rate.
        max_rate: Highest rate.
    """

    def __init__(self, controller: Controller, total_steps: int | None, min_rate: float, max_rate: float) -> None:
        self.controller = controller
        self.control = RateControl(
            controller.spec, 1, total_steps, given=np.ones(1), min_rate=min_rate, max_rate=max_rate
        )
        self.watch = UpdateWatch()
        self.recorder = Recorder()
        self.position = 0  # updates that were noted
        self._losses: list[Loss] = []
        # Updates that may have been skipped: index of their loss or -1, and how many of them were.
        self._doubts: list[tuple[int, Tensor]] = []
        self.refresh()

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        return float(self.control.rates_at(self.position)[0])

    @property
    def left(self) -> int | None:
        """Updates left in the budget; None when it is not known."""
        total = self.control.total_steps
        return None if total is None else total - self.position

    def quiet(self) -> bool:
        """Whether one more update, of known loss or not, decides nothing; see :meth:`pass_by`."""
        return self.position < self._last_quiet and len(self._losses) < self._room

    def pass_by(self, loss: Loss | None, doubt: Tensor | None = None) -> None:
        """Takes note of an update that :meth:`quiet` allows."""
        if doubt is not None:
            self._doubts.append((-1 if loss is None else len(self._losses), doubt))
        self.position += 1
        if loss is not None:
            self._losses.append(loss)

    def note(self, count: int, loss: Loss | None, doubt: Tensor | None = None) -> None:
        """Takes note of ``count`` updates, of which the last one's loss is known or not.

        Args:
            count: At least 1.
            loss: Of the last one.
            doubt: How many of them a GradScaler skipped, as a tensor that is looked at later.
        """
        if doubt is not None:
            self._doubts.append((-1 if loss is None else len(self._losses), doubt))
        self.position += count
        if loss is not None:
            self._losses.append(loss)
        # Nothing changes until then, and looking at a loss makes an accelerator wait.
        if self._closes():
            self._settle()
            if self._closes():
                self.tell()

    def tell(self) -> None:
        """Passes on what the control does not know yet, and its questions to the controller."""
        control = self.control
        self._settle()
        losses, count = numbers(self._losses), self.position - control.updates
        self._losses = []
        samples = self.watch.collect() if control.wants_samples(count) else None
        control.advance(np.array(losses)[:, None] if losses else None, samples, count)
        if control.decision_due:
            observation = control.observe()
            action = self.controller.act(observation)
            control.act(action)
            self.recorder.add(control.updates, float(control.rates[0]), observation[0], float(action[0]))
        self.refresh()

    def refresh(self) -> None:
        """Works out how long nothing will happen; call after any change to the control."""
        control = self.control
        end = control.next_event
        self._last_quiet = -1 if end is None else end - 1
        self._room = control.room - 1
        level = control.horizon.level_until()
        self.level_until = math.inf if level is None else level
        # From when on updates are to be measured.
        self.wake = 0 if control.probing else (math.inf if end is None else end - WINDOW)

    def report(self) -> Report:
        """What was decided so far."""
        interventions = {name: int(count[0]) for name, count in self.control.interventions.items()}
        return self.recorder.report(self.controller.spec.signals, interventions["cut"], interventions["cap"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run."""
        self._settle()
        return {
            "position": self.position,
            "losses": numbers(self._losses),
            "control": self.control.state_dict(),
            "watch": self.watch.state_dict(),
            "decisions": self.recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Continues from what :meth:`state_dict` returned."""
        self.control.load_state_dict(state["control"])
        self.watch.load_state_dict(state["watch"], optimizer)
        self.recorder.load_state_dict(state["decisions"])
        self.position, self._losses, self._doubts = state["position"], list(state["losses"]), []
        self.refresh()

    def _closes(self) -> bool:
        return self.control.closes(len(self._losses), self.position - self.control.updates)

    def _settle(self) -> None:
        """Takes back the updates that turn out to have been skipped, and their losses."""
        if not self._doubts:
            return
        skipped = torch.stack([doubt.reshape(()) for _, doubt in self._doubts]).tolist()
        gone = {index for (index, _), count in zip(self._doubts, skipped, strict=True) if count}
        self.position -= int(sum(skipped))
        self._losses = [loss for index, loss in enumerate(self._losses) if index not in gone]
        self._doubts = []


def numbers(losses: Sequence[Loss]) -> list[float]:
    """The losses as floats; those on an accelerator are fetched together."""
    if losses and all(isinstance(loss, Tensor) for loss in losses):
        stacked = torch.stack([loss.reshape(()) for loss in losses if isinstance(loss, Tensor)])
        return [float(loss) for loss in stacked.cpu()]
    return [float(loss) for loss in losses]
