"""One run under a controller: takes note of updates and losses, and asks the controller when it is time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlrate.control import RateControl
from rlrate.control.control import WINDOW
from rlrate.controller import Controller
from rlrate.ranks import Flight, Loss, Ranks
from rlrate.report import Recorder, Report
from rlrate.watch import UpdateWatch


class Driver:
    """Everything about a run but torch's groups and scheduler interface.

    Losses are passed on in blocks, when a block may change the rates: until then an update costs next to nothing, and
    an accelerator is not made to wait.

    Args:
        controller: Decides.
        total_steps: Budget in updates, or None.
        min_rate: Lowest rate.
        max_rate: Highest rate.
        ranks: The processes that train the model together.
    """

    def __init__(
        self, controller: Controller, total_steps: int | None, min_rate: float, max_rate: float, ranks: Ranks
    ) -> None:
        self.controller = controller
        self.ranks = ranks
        self.control = RateControl(
            controller.spec, 1, total_steps, given=np.ones(1), min_rate=min_rate, max_rate=max_rate
        )
        self.watch = UpdateWatch()
        self.recorder = Recorder()
        self.position = 0  # updates that were noted
        self.validation: Loss | None = None  # the latest, since the last decision
        self._losses: list[Loss | None] = []
        self._alarmed = controller.spec.action.alarm is not None
        self._looked = 0  # how many of them, from the first on, the control has looked at for an alarm
        self._flights: list[Flight] = []  # full blocks that have not arrived
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
        """Whether nothing is decided at the next update; see :meth:`pass_by`."""
        return self.position < self._last_quiet

    def pass_by(self, loss: Loss | None, doubt: Tensor | None = None) -> bool:
        """Takes note of an update that :meth:`quiet` allows; whether the guard cut the rate."""
        self._add(1, loss, doubt)
        cut = self._alarmed and self._glance(loss, doubt)
        return (len(self._losses) >= self._room and self._block()) or cut

    def note(self, count: int, loss: Loss | None, doubt: Tensor | None = None) -> None:
        """Takes note of ``count`` updates, of which the last one's loss is known or not.

        Args:
            count: At least 1.
            loss: Of the last one.
            doubt: How many of them a GradScaler skipped, as a tensor that is looked at later.
        """
        self._add(count, loss, doubt)
        if self._alarmed:
            self._glance(loss, doubt)
        if self.control.wants_samples(self.position - self.control.updates):
            self.tell()
        elif len(self._losses) >= self._room:
            self._block()

    def tell(self) -> None:
        """Passes on what the control does not know yet, and its questions to the controller."""
        control = self.control
        self._land(everything=True)
        flight = self._take_off()
        losses, skipped = flight.land()
        self._look(losses[flight.looked :])
        self.position -= skipped
        count = self.position - control.updates
        samples = self._samples() if control.wants_samples(count) else None
        control.advance(np.array(losses)[:, None] if losses else None, samples, count)
        if control.decision_due:
            if self.validation is not None:
                control.validate(np.array([float(self.validation)]))
                self.validation = None
            observation = control.observe()
            control.act(*self.controller.answer(observation))
            if self._shared:  # equal already, unless the processes' hardware differs
                control.log_rate = np.array([self.ranks.agree(float(control.log_rate[0]), self.watch.device)])
            self.recorder.add(control.updates, float(control.rates[0]), observation[0], float(control.action[0]))
        self.refresh()

    def refresh(self) -> None:
        """Works out how long nothing will happen; call after any change to the control."""
        control = self.control
        end = control.next_event
        self._last_quiet = -1 if end is None else end - 1
        self._shared = self.ranks.size > 1
        self._room = self.control.spec.action.check if self._flights else control.room
        self._ceiling = control.ceiling
        level = control.horizon.level_until()
        self.level_until = math.inf if level is None else level
        # From when on updates are to be measured.
        self.wake = 0 if control.probing else (math.inf if end is None else end - WINDOW)

    def report(self) -> Report:
        """What was decided so far."""
        interventions = {name: int(count[0]) for name, count in self.control.interventions.items()}
        stopped = bool(self.control.patience.stopped[0])
        return self.recorder.report(self.controller.spec.signals, interventions["cut"], interventions["cap"], stopped)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during a run."""
        self._settle()
        return {
            "position": self.position,
            "losses": [None if loss is None else float(loss) for loss in self._losses],
            "looked": self._looked,
            "validation": None if self.validation is None else float(self.validation),
            "flights": [[flight.count, *flight.land(), flight.looked] for flight in self._flights],
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
        self._looked, self.validation = state.get("looked", 0), state.get("validation")
        self._flights = [Flight.landed(*flight) for flight in state["flights"]]
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        for flight in self._flights:
            flight.land()  # what has not arrived can be neither copied nor pickled
        return self.__dict__

    def probe(self, optimizer: torch.optim.Optimizer) -> None:
        """Sets the negligible rate of the first updates; call just before the first one."""
        gradient, weight, size = self.watch.norms(optimizer)
        self._shared = self.ranks.size > 1
        if self._shared:
            row = self._combine(np.array([[gradient[0] ** 2, weight[0] ** 2]]), 1)
            if len(row):
                gradient, weight = np.sqrt(row[0, :1]), np.sqrt(row[0, 1:])
        self.control.set_probe(gradient, weight, size)

    def _samples(self) -> NDArray[np.float64] | None:
        count = max(WINDOW, self.controller.spec.cadence.probe)
        return self.watch.collect((lambda rows: self._combine(rows, count)) if self._shared else None)

    def _combine(self, rows: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        return self.ranks.combine(rows, count, sharded=self.watch.sharded, device=self.watch.device)

    def _add(self, count: int, loss: Loss | None, doubt: Tensor | None) -> None:
        self.position += count
        if doubt is not None:
            self._doubts.append((-1 if loss is None else len(self._losses), doubt))
        # Processes must agree on how full a block is, whatever losses they know.
        if loss is not None or self._shared:
            self._losses.append(loss)

    def _glance(self, loss: Loss | None, doubt: Tensor | None) -> bool:
        """Has the control look at a loss that is at hand, if all before it were; whether the guard cut the rate."""
        if not isinstance(loss, float) or doubt is not None or self._shared or self._doubts or self._flights:
            return False
        if self._looked != len(self._losses) - 1:
            return False
        self._looked += 1
        return loss > self._ceiling and self._look([loss])

    def _look(self, losses: list[float]) -> bool:
        cuts = [self.control.look(np.array([loss])) for loss in losses if loss > self.control.ceiling]
        self._ceiling = self.control.ceiling
        return any(cuts)

    def _block(self) -> bool:
        """Passes on a full block within an interval; whether the guard cut the rate."""
        if not (self._shared or self._doubts or self._flights):
            losses = [loss for loss in self._losses if isinstance(loss, float)]
            if len(losses) == len(self._losses):
                self._losses, self._looked = [], 0
                cut = self.control.advance_block(losses, self.position - self.control.updates)
                self._room, self._ceiling = self.control.room, self.control.ceiling
                return cut
        self._flights.append(self._take_off())
        self._room = self.control.spec.action.check
        return self._land(everything=False)

    def _settle(self) -> None:
        """Takes back the updates that turn out to have been skipped, and their losses."""
        for index, doubt in reversed(self._doubts):
            skipped = int(doubt)
            self.position -= skipped
            if skipped and index >= 0:
                del self._losses[index]
        self._doubts = []

    def _take_off(self) -> Flight:
        flown = self.control.updates + sum(flight.count for flight in self._flights)
        flight = Flight(self.position - flown, self._losses, self._doubts, self.ranks, self._looked)
        self._losses, self._doubts, self._looked = [], [], 0
        return flight

    def _land(self, *, everything: bool) -> bool:
        """Passes on the blocks that have arrived, in order: all, or those before the last one."""
        cut = False
        while self._flights and (everything or (len(self._flights) > 1 and self._flights[0].ready())):
            flight = self._flights.pop(0)
            losses, skipped = flight.land()
            self.position -= skipped
            cut |= self._look(losses[flight.looked :])
            cut |= self.control.advance_block(losses, flight.count - skipped)
            self._ceiling = self.control.ceiling
        return cut
