"""Which runs are stopped for good, from what a policy advises again and again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.control.spec import ControlSpec
from rlrate.control.state import dump, restore

_STATE = ("stopped", "_advised")

#: Share of a cadence's decisions before which no run is stopped: what is learnt last may not have begun yet.
EARLIEST = 0.3


class Patience:
    """Heeds advice to stop once it has been given often enough in a row; see :attr:`rlrate.control.Action.patience`.

    Args:
        spec: Cadence and action.
        runs: N.
    """

    def __init__(self, spec: ControlSpec, runs: int) -> None:
        self.patience, self.earliest = spec.action.patience, EARLIEST * spec.cadence.decisions
        #: Runs whose rates are brought down for good, shape (N,).
        self.stopped = np.zeros(runs, dtype=bool)
        self._advised = np.zeros(runs)  # decisions in a row

    def heed(self, action: NDArray[np.float64], stop: NDArray[np.bool_] | None, decisions: int) -> NDArray[np.float64]:
        """The actions that are taken: -1 of those that are stopped.

        Args:
            action: What the policy answers, shape (N,).
            stop: Whether it advises to stop, shape (N,); None where it cannot.
            decisions: Decisions made before.
        """
        if self.patience is None or stop is None:
            return action
        self._advised = np.where(stop, self._advised + 1.0, 0.0)
        if decisions >= self.earliest:
            self.stopped |= self._advised >= self.patience
        return np.where(self.stopped, -1.0, action)

    def state_dict(self) -> dict[str, Any]:
        """What changes during the runs, as torch tensors."""
        return dump(self, _STATE)

    def load_state_dict(self, state: object) -> None:
        """Continues from what :meth:`state_dict` returned; None where nothing was known of it yet."""
        restore(self, _STATE, self.state_dict() if state is None else state)
