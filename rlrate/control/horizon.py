"""The budget of a run: where its intervals end, how much of it is spent, and the final anneal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlrate.control.action import Action
from rlrate.control.cadence import Cadence
from rlrate.errors import ConfigError

#: A run whose budget is not known begins as one of this many updates does; its intervals stop growing then.
NOMINAL = 20_000


class Horizon:
    """Turns numbers of completed updates into intervals, progress and the factor of the final anneal.

    A budget that is not known has the intervals of one of :data:`NOMINAL` updates, of which the longest goes on
    for ever, and its progress stops short of the anneal. :meth:`anneal` ends it, or any other budget, on demand.

    Args:
        cadence: Which updates are decisions.
        action: Holds the share of the anneal.
        total_steps: Budget in updates, or None when it is not known.
    """

    def __init__(self, cadence: Cadence, action: Action, total_steps: int | None) -> None:
        self.total = total_steps
        self._cadence, self._action = cadence, action
        self._share = action.anneal if 0.0 < action.anneal < 1.0 else Action.anneal
        # End, length, progress and envelope where an anneal on demand began.
        self._descent: tuple[int, int, float, float] | None = None
        self._ends: list[int] = cadence.boundaries(total_steps or NOMINAL).tolist()
        self._longest = 0
        if total_steps is None:
            self._ends.pop()  # the last interval of a budget may be cut short
            self._longest = self._ends[-1] - self._ends[-2] if len(self._ends) > 1 else NOMINAL

    def end(self, interval: int) -> int | None:
        """Updates made at the end of an interval, counted from 0; None when the run is over before."""
        ends = self._ends
        if interval < len(ends):
            return ends[interval]
        return None if self.total is not None else ends[-1] + self._longest * (interval - len(ends) + 1)

    def done(self, updates: int) -> bool:
        """Whether the budget is spent."""
        return self.total is not None and updates >= self.total

    def progress(self, updates: int) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        if self._descent is not None:
            begin, length, progress, _ = self._descent
            return progress + (1.0 - progress) * min((updates - begin) / length, 1.0)
        if self.total is None:
            return min(updates / NOMINAL, 0.95 * (1.0 - self._share))
        return updates / self.total

    def envelope(self, position: int) -> float:
        """Factor in (0, 1] of the final anneal for the update after ``position`` updates."""
        if self.total is None:
            return 1.0
        position = min(position, self.total - 1)  # past the budget the final rate stays
        if self._descent is not None:
            begin, length, _, envelope = self._descent
            return envelope * (1.0 - max(position - begin, 0) / length)
        return self._action.envelope(position / self.total)

    def level_until(self) -> int | None:
        """Number of updates from which on the envelope may change; None for never."""
        if self._descent is not None:
            return self._descent[0]
        if self.total is None or self._action.anneal <= 0.0:
            return None
        return int(self.total * (1.0 - self._action.anneal))

    def anneal(self, updates: int, steps: int, intervals: int) -> None:
        """Ends the run ``steps`` updates after the ``updates`` that were made.

        Args:
            updates: Updates made so far.
            steps: Updates left, at least 1.
            intervals: Number of intervals that have ended.
        """
        progress = max(self.progress(updates), 1.0 - self._share)
        descent = (updates, steps, min(progress, 1.0), self.envelope(updates))
        count = max(1, min(round(self._share * self._cadence.decisions), steps // self._cadence.first))
        ends = np.rint(updates + np.linspace(0, steps, count + 1)[1:]).astype(int).tolist()
        self._ends = [end for i in range(intervals) if (end := self.end(i)) is not None] + ends
        self.total, self._descent = updates + steps, descent

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`anneal` changed."""
        if self._descent is None:
            return {}
        return {"total": self.total, "descent": list(self._descent), "ends": list(self._ends)}

    def load_state_dict(self, state: object) -> None:
        """Continues from what :meth:`state_dict` returned.

        Raises:
            ConfigError: when ``state`` does not have the entries of such a state.
        """
        if not state:
            return
        try:
            assert isinstance(state, Mapping)
            begin, length, progress, envelope = state["descent"]
            self._ends, self.total = list(state["ends"]), int(state["total"])
        except (AssertionError, KeyError, TypeError, ValueError):
            raise ConfigError("the state of the budget is not what it was when saved") from None
        self._descent = (begin, length, progress, envelope)
