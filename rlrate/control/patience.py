"""Which runs are stopped for good, from what a policy advises again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.control.spec import ControlSpec
from rlrate.control.state import dump, restore

Array = NDArray[np.float64]

_STATE = ("stopped", "_advised")

#: Share of a cadence's decisions before which no run is stopped: what is learnt last may not have begun yet.
EARLIEST = 0.3


class Patience:
    """Heeds advice to stop once it has been given often or strongly enough.

    See :attr:`rlrate.control.Action.patience` and :attr:`rlrate.control.Action.evidence`.

    Args:
        spec: Cadence and action.
        runs: N.
    """

    def __init__(self, spec: ControlSpec, runs: int) -> None:
        self.rule, self.earliest = spec.action, EARLIEST * spec.cadence.decisions
        #: Runs whose rates are brought down for good, shape (N,).
        self.stopped = np.zeros(runs, dtype=bool)
        self._advised = np.zeros(runs)  # decisions in a row, or nats

    def heed(self, action: Array, stop: Array | None, decisions: int) -> Array:
        """The actions that are taken: -1 of those that are stopped.

        Args:
            action: What the policy answers, shape (N,).
            stop: What speaks for a stop, in nats, shape (N,): advice where above zero. None where it cannot tell.
            decisions: Decisions made before.
        """
        if stop is None or not self.rule.stops:
            return action
        advice = np.nan_to_num(np.asarray(stop, np.float64), nan=0.0)
        if self.rule.patience is not None:
            self._advised = np.where(advice > 0.0, self._advised + 1.0, 0.0)
            enough = self._advised >= self.rule.patience
        else:
            assert self.rule.evidence is not None
            self._advised = np.maximum(self._advised + advice, 0.0)
            enough = self._advised > self.rule.evidence
        if decisions >= self.earliest:
            self.stopped |= enough
        return np.where(self.stopped, -1.0, action)

    def state_dict(self) -> dict[str, Any]:
        """What changes during the runs, as torch tensors."""
        return dump(self, _STATE)

    def load_state_dict(self, state: object) -> None:
        """Continues from what :meth:`state_dict` returned; None where nothing was known of it yet."""
        restore(self, _STATE, self.state_dict() if state is None else state)
