"""Runs of which some share seed and start: trained as one for as long as they act alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.envs.training import TrainingConfig, TrainingRuns

__all__ = ["SiblingRuns"]

Array = NDArray[np.float64]


class SiblingRuns:
    """The runs of a draw, of which siblings are one network until their actions differ.

    What is shown and asked has a row for each of the N runs, as if each was trained by itself. What siblings share is
    then exactly the same, and it is computed once: where they part late, most of the training costs as much as that of
    one of them.

    Args:
        runs: All N runs, before `begin`.
        families: Of each run; those of one number share seed and start, shape (N,).
    """

    def __init__(self, runs: TrainingRuns, families: Sequence[int]) -> None:
        self.runs = runs
        self.draw = runs.draw
        self.size = runs.size
        #: Which network each run is at present, shape (N,).
        self.networks = np.arange(self.size)
        self._first = self.networks
        self._families = np.asarray(families)

    @classmethod
    def sample(cls, config: TrainingConfig, seed: Sequence[int], members: Sequence[int]) -> SiblingRuns:
        """The runs ``members`` of the draw that ``seed`` stands for; siblings as ``config`` says."""
        runs = TrainingRuns.sample(config, seed, members)
        return cls(runs, [member // config.siblings for member in members])

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.runs.done

    @property
    def updates(self) -> int:
        """Updates made by each run."""
        return self.runs.control.updates

    def begin(self) -> NDArray[np.float32]:
        """Runs up to the first decision; the observation there has shape (N, size of the signals).

        So far every run is trained, so that the time this takes tells what the whole draw may cost.
        """
        observation = self.runs.begin()
        first, networks = _distinct(self._families.tolist())
        if len(first) < self.size:
            self._become(first, networks)
        return observation[self._first][self.networks]

    def step(self, action: Array) -> tuple[NDArray[np.float32], Array]:
        """Applies ``action`` u in [-1, 1], shape (N,), and runs to the next decision or the end.

        Returns:
            Observation (N, size of the signals) and reward (N,).
        """
        if self.runs.size < self.size:
            first, networks = _distinct(list(zip(self.networks.tolist(), action.tolist(), strict=True)))
            if len(first) > self.runs.size:
                self._become(first, networks)
        observation, reward = self.runs.step(action[self._first])
        return observation[self.networks], reward[self.networks]

    def facts(self) -> dict[str, NDArray[Any]]:
        """What the infos of an environment tell of each run, as arrays of shape (N,)."""
        return {name: values[self.networks] for name, values in self.runs.facts().items()}

    def _become(self, first: NDArray[np.int_], networks: NDArray[np.int_]) -> None:
        """Goes on with the networks of the runs ``first``; each run is then one of these."""
        self.runs = self.runs.take(self.networks[first])
        self._first, self.networks = first, networks


def _distinct(keys: Sequence[object]) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Where each distinct key comes first, in that order, and which of them every key is."""
    places: dict[object, int] = {}
    first, networks = [], []
    for index, key in enumerate(keys):
        if key not in places:
            places[key] = len(places)
            first.append(index)
        networks.append(places[key])
    return np.array(first), np.array(networks)
