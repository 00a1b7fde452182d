"""What rollouts show of when to stop, where the policy stays as it is: the refinement's, which run anyway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from stable_baselines3.common.buffers import RolloutBuffer

from rlrate.agents.stopping import EPOCHS, Array, gained, told, usable_runs
from rlrate.control import ControlSpec, bounded, epoch_signals
from rlrate.envs.workers import DrawState
from rlrate.errors import ConfigError
from rlrate.storage import write_atomically

__all__ = ["Watch", "watched"]


class Watch:
    """Gathers, rollout by rollout, what was seen at decisions and by how much the held-out loss was lower than last.

    A run is looked at from the end of its detour on: before, its end is also what the detour made of it.

    Args:
        folder: Receives a file for each rollout, so that a training which is continued has them all.
        spec: What the policy sees.
    """

    def __init__(self, folder: Path, spec: ControlSpec) -> None:
        self.folder = folder
        self.spec = spec
        self._states: list[Sequence[DrawState]] = []

    def begin(self, states: Sequence[DrawState]) -> None:
        """Forgets the rollout before; ``states`` are those at the first decision."""
        self._states = [list(states)]

    def step(self, reached: Sequence[DrawState]) -> None:
        """Takes note of what a step led to."""
        self._states.append(list(reached))

    def end(self, number: int, buffer: RolloutBuffer) -> None:
        """Writes what the rollout showed, whose detours the marks in place of the buffer's values tell."""
        steps, runs = buffer.rewards.shape
        apart = buffer.values != 0.0
        # Row k is of decision k; neither the first one counts, nor the end, where nothing is decided.
        decisions = np.arange(steps)[:, None]
        after = np.where(apart, decisions + 1, 1).max(axis=0)
        heldout = np.stack([_by_run([state.looked_loss for state in states]) for states in self._states])
        gain = gained(heldout)
        first, last = self._states[0], self._states[-1]
        signed = np.repeat([state.signed for state in first], runs // len(first))
        diverged = _by_run([state.facts["diverged"] for state in last])
        used = (decisions >= after) & usable_runs(heldout, diverged, signed)
        names = self.spec.signals + told(self.spec)
        observations = np.zeros((steps, runs, len(names)), np.float32)
        observations[:, :, : len(self.spec.signals)] = buffer.observations
        epoch = np.repeat([float(state.epoch) for state in first], runs // len(first))
        for k, states in enumerate(self._states[:-1]):
            done, total = (_by_run([state.facts[name] for state in states]) for name in ("updates", "steps"))
            for name, values in epoch_signals(epoch, done, total).items():
                if name in EPOCHS:
                    observations[k, :, names.index(name)] = bounded(values)
        rows = {
            "observations": observations[used],
            "gain": gain[used].astype(np.float32),
            "run": np.nonzero(used)[1].astype(np.int32),  # nothing is learned from it: for who looks into the file
        }
        write_atomically(_file(self.folder, number), save(rows))


def watched(folder: Path, rollouts: Iterable[int]) -> tuple[NDArray[np.float32], Array]:
    """What rollouts of these numbers showed: observations, shape (M, signals), and nats, shape (M,).

    Raises:
        ConfigError: when a file is missing or damaged.
    """
    parts = []
    for number in rollouts:
        path = _file(folder, number)
        try:
            parts.append(load(path.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path} is missing or damaged ({error}): what its rollout showed of when to stop cannot be made again "
                "in this folder; train in another one"
            ) from None
    observations = np.concatenate([part["observations"] for part in parts])
    return observations, np.concatenate([part["gain"] for part in parts]).astype(np.float64)


def _by_run(parts: Iterable[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(list(parts))


def _file(folder: Path, number: int) -> Path:
    return folder / f"rollout-{number}.safetensors"
