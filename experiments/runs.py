"""Training runs for comparison: whole grids of schedules, rates and seeds as one population."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlrate.control import ControlSpec
from rlrate.controller import Controller
from rlrate.envs import Population, TrainingConfig, TrainingRuns
from rlrate.envs.training import Draw
from rlrate.experiments.recording import Array, Recorder, Tick, Trace, join
from rlrate.experiments.rules import RULES
from rlrate.experiments.schedules import GRADIENT_NORM, factor_table

__all__ = ["CHUNK", "Array", "Tick", "Trace", "run_controlled", "run_learned", "run_schedules", "run_tables"]

#: Networks trained together; larger grids are split.
CHUNK = 64

#: Observations of shape (N, signals) to actions of shape (N,).
Act = Callable[[NDArray[np.float32]], tuple[Array, NDArray[np.bool_] | None]]


def run_schedules(
    draw: Draw,
    seeds: Sequence[int],
    names: Sequence[str],
    peaks: Sequence[float],
    tick: Tick | None = None,
    *,
    heldout: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Trace:
    """Trains one network for each (seed, schedule, peak rate) triple.

    Args:
        draw: Workload, optimizer and budget.
        seeds: Seed of each run: initial weights and batches.
        names: Schedule of each run; see :func:`rlrate.experiments.schedules.schedule_names`.
        peaks: Peak learning rate of each run.
        tick: Called with the number of network updates made since the last call.
        heldout: Whether to record curves of the held-out loss too.
        dtype: Of weights and floating point data.
    """
    parts = []
    for start in range(0, len(seeds), CHUNK):
        part = slice(start, start + CHUNK)
        rates = _Scheduled(draw.steps, names[part], np.asarray(peaks[part], np.float64))
        parts.append(_run_chunk(draw, seeds[part], rates, tick, heldout, dtype))
    return join(parts)


def run_tables(draw: Draw, seeds: Sequence[int], table: Array, tick: Tick | None = None) -> Trace:
    """Trains one network for each seed, all at the learning rates of ``table``, shape (steps,)."""
    rates = _Scheduled(draw.steps, ["constant"] * len(seeds), np.ones(len(seeds)))
    rates.factors[:] = table[:, None]
    return _run_chunk(draw, seeds, rates, tick, True, torch.float32)


def run_learned(
    draw: Draw,
    seeds: Sequence[int],
    controller: Controller,
    tick: Tick | None = None,
    *,
    heldout: bool = False,
    dtype: str = "float32",
) -> Trace:
    """Trains one network for each seed, its rate set by ``controller``."""
    return run_controlled(draw, seeds, controller.spec, controller.answer, tick, heldout=heldout, dtype=dtype)


def run_controlled(
    draw: Draw,
    seeds: Sequence[int],
    spec: ControlSpec,
    act: Act,
    tick: Tick | None = None,
    *,
    heldout: bool = False,
    watch: Callable[[Array], None] | None = None,
    validated: bool = False,
    told: bool = True,
    dtype: str = "float32",
) -> Trace:
    """Trains one network for each seed; at each decision ``act`` turns observations into actions.

    Args:
        draw: Workload, optimizer and budget.
        seeds: Seed of each run.
        spec: Signals, cadence and action.
        act: The policy; see :meth:`rlrate.Controller.answer`.
        tick: Called with the number of network updates made since the last call.
        heldout: Whether to record curves of the held-out loss too.
        watch: Called with the learning rates (N,) of every update.
        validated: Whether the policy is shown the loss on the workload's validation part at every decision.
        told: Whether the policy is told how many updates make an epoch.
        dtype: Of weights and floating point data.
    """
    every = np.full(len(seeds), int(validated))
    untold = np.full(len(seeds), not told)
    runs = TrainingRuns(TrainingConfig(spec=spec, dtype=dtype), draw, seeds, validated=every, untold=untold)
    recorder = Recorder(draw.steps, len(seeds), runs.population.heldout, heldout=heldout)
    while not runs.done:
        rates = runs.rates
        recorder.add(runs.update(), rates)
        if watch is not None:
            watch(rates)
        if runs.control.decision_due:
            runs.validate()
            runs.control.act(*act(runs.control.observe()))
        if tick is not None:
            tick(len(seeds))
    return recorder.trace()


def norms(gradients: Sequence[Tensor]) -> Array:
    """Norm of each network's whole gradient, shape (N,), of tensors (N, *shape)."""
    total = torch.stack([g.flatten(1).double().square().sum(1) for g in gradients]).sum(0)
    values: Array = total.sqrt().numpy()
    return values


class _Scheduled:
    """Learning rates of N runs under named schedules, update by update."""

    def __init__(self, steps: int, names: Sequence[str], peaks: Array) -> None:
        self.peaks = peaks
        self.factors = np.ones((steps, len(names)))
        self.needs_norms = GRADIENT_NORM in names
        self._rules = []
        for name in dict.fromkeys(names):
            columns = np.array([other == name for other in names])
            if name in RULES:
                self._rules.append((columns, RULES[name](int(columns.sum()), steps)))
            else:
                self.factors[:, columns] = factor_table(name, steps)[:, None]

    def rates(self, update: int) -> Array:
        """Of the next update, shape (N,)."""
        for columns, rule in self._rules:
            self.factors[update, columns] = rule.factors
        rates: Array = self.peaks * self.factors[update]
        return rates

    def told(self, losses: Array, gradient_norms: Array | None) -> None:
        """Tells the schedules that listen what the update was like."""
        for columns, rule in self._rules:
            rule.step(losses[columns], None if gradient_norms is None else gradient_norms[columns])


def _run_chunk(
    draw: Draw, seeds: Sequence[int], scheduled: _Scheduled, tick: Tick | None, heldout: bool, dtype: torch.dtype
) -> Trace:
    population = Population(draw.workload, draw.optimizer, seeds, dtype=dtype)
    recorder = Recorder(draw.steps, len(seeds), population.heldout, heldout=heldout)
    for update in range(draw.steps):
        rates = scheduled.rates(update)
        losses = population.backward()
        gradient_norms = norms(population.gradients) if scheduled.needs_norms else None
        population.update(torch.from_numpy(rates).to(losses.dtype))
        values = losses.double().numpy()
        scheduled.told(values, gradient_norms)
        recorder.add(values, rates)
        if tick is not None:
            tick(len(seeds))
    return recorder.trace()
