"""What a scheduler did during a run, as arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.control import LIMIT


@dataclass(frozen=True, eq=False)
class Report:
    """The decisions of one run so far; D is their number.

    Attributes:
        signals: Name of each column of ``observations``.
        updates: Optimizer updates made at each decision, int64, shape (D,).
        rates: Learning rate from that update on, float64, shape (D,); with several parameter groups, that of the
            group which was given the largest.
        observations: What the controller saw, float32, shape (D, number of signals).
        actions: What it answered, in [-1, 1], float64, shape (D,).
        cuts: How often the guard cut the rate because the loss spiked or was not finite.
        caps: How often the cap on the update size held a decision back.
        stopped: Whether the rate is being brought down for good, as what further epochs teach would do harm.
    """

    signals: tuple[str, ...]
    updates: NDArray[np.int64]
    rates: NDArray[np.float64]
    observations: NDArray[np.float32]
    actions: NDArray[np.float64]
    cuts: int
    caps: int
    stopped: bool = False

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draws rate, actions and signals over the updates; needs matplotlib.

        Args:
            path: Where to save the picture; its ending chooses the format.

        Returns:
            The path.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 8), layout="constrained")
        rate, action, signals = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 4))
        rate.step(self.updates, self.rates, where="post")
        rate.set(yscale="log", ylabel="learning rate", title=f"cuts: {self.cuts}, capped decisions: {self.caps}")
        action.axhline(0.0, color="0.8", linewidth=1)
        action.plot(self.updates, self.actions, ".-")
        action.set(ylim=(-1.1, 1.1), ylabel="action")
        shown = signals.imshow(
            self.observations.T,
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu_r",
            vmin=-LIMIT,
            vmax=LIMIT,
            extent=(0, max(int(self.updates.max(initial=0)), 1), len(self.signals) - 0.5, -0.5),
        )
        signals.set_yticks(range(len(self.signals)), self.signals, fontsize=7)
        signals.set(xlabel="updates (columns of the signals: one for each decision)")
        figure.colorbar(shown, ax=signals)
        figure.savefig(path)
        return Path(path)


class Recorder:
    """Collects the decisions of one run; a few tens of rows, however long the run is."""

    def __init__(self) -> None:
        self._updates: list[int] = []
        self._rates: list[float] = []
        self._actions: list[float] = []
        self._observations: list[NDArray[np.float32]] = []

    def add(self, updates: int, rate: float, observation: NDArray[np.float32], action: float) -> None:
        """Adds one decision."""
        self._updates.append(updates)
        self._rates.append(rate)
        self._actions.append(action)
        self._observations.append(observation)

    def report(self, signals: tuple[str, ...], cuts: int, caps: int, stopped: bool) -> Report:
        """All decisions so far, as arrays of their own."""
        return Report(
            signals,
            np.array(self._updates, np.int64),
            np.array(self._rates, np.float64),
            np.array(self._observations, np.float32).reshape(-1, len(signals)),
            np.array(self._actions, np.float64),
            cuts,
            caps,
            stopped,
        )

    def state_dict(self) -> dict[str, Any]:
        """Lists of numbers, and of one tensor for each observation."""
        return {
            "updates": list(self._updates),
            "rates": list(self._rates),
            "actions": list(self._actions),
            "observations": [torch.from_numpy(row.copy()) for row in self._observations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned."""
        self._updates, self._rates = list(state["updates"]), list(state["rates"])
        self._actions = list(state["actions"])
        self._observations = [row.numpy().copy() for row in state["observations"]]
