"""Training runs for comparison: whole grids of schedules, rates and seeds as one population."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.controller import Controller
from rlrate.envs import Population, TrainingConfig, TrainingRuns
from rlrate.envs.training import Draw
from rlrate.experiments.schedules import PLATEAU, ReduceOnPlateau, factor_table

Array = NDArray[np.float64]
Tick = Callable[[int], None]

#: Points of each curve that are kept.
POINTS = 60

#: Networks trained together; larger grids are split.
CHUNK = 64


@dataclass
class Trace:
    """What N training runs left behind.

    Attributes:
        updates: Completed updates at each point of the curves, shape (P,).
        train_loss: Mean training loss since the point before, shape (P, N).
        rate: Learning rate at each point, shape (P, N).
        heldout_loss: Final held-out loss, shape (N,); infinite for a run that diverged.
        heldout_accuracy: Final held-out accuracy, shape (N,), NaN where undefined.
        diverged: Whether the final loss is not finite, shape (N,).
    """

    updates: NDArray[np.int64]
    train_loss: Array
    rate: Array
    heldout_loss: Array
    heldout_accuracy: Array
    diverged: NDArray[np.bool_]


def run_schedules(
    draw: Draw, seeds: Sequence[int], names: Sequence[str], peaks: Sequence[float], tick: Tick | None = None
) -> Trace:
    """Trains one network for each (seed, schedule, peak rate) triple.

    Args:
        draw: Workload, optimizer and budget.
        seeds: Seed of each run: initial weights and batches.
        names: Schedule of each run; see :func:`rlrate.experiments.schedules.schedule_names`.
        peaks: Peak learning rate of each run.
        tick: Called with the number of network updates made since the last call.
    """
    parts = []
    for start in range(0, len(seeds), CHUNK):
        part = slice(start, start + CHUNK)
        parts.append(_run_chunk(draw, seeds[part], names[part], np.asarray(peaks[part]), tick))
    return _join(parts)


def run_learned(draw: Draw, seeds: Sequence[int], controller: Controller, tick: Tick | None = None) -> Trace:
    """Trains one network for each seed, its rate set by ``controller``."""
    runs = TrainingRuns(TrainingConfig(spec=controller.spec), draw, seeds)
    recorder = _Recorder(draw.steps, len(seeds))
    while not runs.done:
        rates = runs.rates
        recorder.add(runs.update(), rates)
        if runs.control.decision_due:
            runs.control.act(controller.act(runs.control.observe()))
        if tick is not None:
            tick(len(seeds))
    return recorder.trace(runs.population)


def _run_chunk(draw: Draw, seeds: Sequence[int], names: Sequence[str], peaks: Array, tick: Tick | None) -> Trace:
    population = Population(draw.workload, draw.optimizer, seeds)
    recorder = _Recorder(draw.steps, len(seeds))
    adaptive = np.array([name == PLATEAU for name in names])
    plateau = ReduceOnPlateau(int(adaptive.sum()), draw.steps) if adaptive.any() else None
    factors = np.ones((draw.steps, len(seeds)))
    for column, name in enumerate(names):
        if name != PLATEAU:
            factors[:, column] = factor_table(name, draw.steps)
    for update in range(draw.steps):
        if plateau is not None:
            factors[update, adaptive] = plateau.factors
        rates = peaks * factors[update]
        losses = population.backward()
        population.update(torch.from_numpy(rates).to(losses.dtype))
        values = losses.double().numpy()
        if plateau is not None:
            plateau.step(values[adaptive])
        recorder.add(values, rates)
        if tick is not None:
            tick(len(seeds))
    return recorder.trace(population)


class _Recorder:
    """Thins the curves of N runs to about :data:`POINTS` points."""

    def __init__(self, steps: int, runs: int) -> None:
        self._ends = set(np.unique(np.rint(np.linspace(0, steps, POINTS + 1)[1:])).astype(int).tolist())
        self._count, self._since = 0, 0
        self._sum = np.zeros(runs)
        self._points: list[tuple[int, Array, Array]] = []

    def add(self, losses: Array, rates: Array) -> None:
        self._count += 1
        self._since += 1
        with np.errstate(all="ignore"):
            self._sum = self._sum + losses
        if self._count in self._ends:
            self._points.append((self._count, self._sum / self._since, rates.copy()))
            self._sum, self._since = np.zeros_like(self._sum), 0

    def trace(self, population: Population) -> Trace:
        loss, accuracy = population.heldout()
        values: Array = loss.double().numpy()
        finite = np.isfinite(values)
        updates, losses, rates = zip(*self._points, strict=True)
        return Trace(
            np.array(updates),
            np.stack(losses),
            np.stack(rates),
            np.where(finite, values, np.inf),
            accuracy.double().numpy(),
            ~finite,
        )


def _join(parts: Sequence[Trace]) -> Trace:
    return Trace(
        parts[0].updates,
        np.concatenate([p.train_loss for p in parts], axis=1),
        np.concatenate([p.rate for p in parts], axis=1),
        np.concatenate([p.heldout_loss for p in parts]),
        np.concatenate([p.heldout_accuracy for p in parts]),
        np.concatenate([p.diverged for p in parts]),
    )
