"""Cells: runs that are trained together, the unit in which a comparison is computed, written and gone on with."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import rlrate
from rlrate.controller import Controller
from rlrate.envs import make_optimizer
from rlrate.envs.training import Draw
from rlrate.experiments.loops import loop_learned, loop_self_tuning
from rlrate.experiments.methods import METHODS, default_rate
from rlrate.experiments.open_loop import open_loop
from rlrate.experiments.recording import Array, Tick, Trace, join
from rlrate.experiments.runs import run_controlled, run_schedules, run_tables
from rlrate.experiments.search import range_test_cosine, search_updates, stagewise_search
from rlrate.experiments.store import Curve, Row, to_json
from rlrate.experiments.suite import GRID_CENTRE, Problem, make_draw

__all__ = ["Cell", "Run", "run_cell"]

#: Signals that tell the time: all that the control "time-only" sees.
CLOCK = ("progress", "youth", "interval")

#: Libraries that replace torch's optimizer or search, by method.
_LIBRARIES = {
    "schedule-free-adamw": "schedulefree",
    "schedule-free-sgd": "schedulefree",
    "prodigy": "prodigyopt",
    "d-adaptation-adam": "dadaptation",
    "d-adaptation-sgd": "dadaptation",
    "lookahead-adam": "pytorch_optimizer",
    "wsd": "pytorch_optimizer",
    "rex": "pytorch_optimizer",
    "bayesian": "optuna",
}


@dataclass(frozen=True)
class Run:
    """One run of a cell; see :class:`rlrate.experiments.store.Row` for the entries."""

    method: str
    role: str
    seed: int
    peak: float | None = None
    start: float | None = None
    budget: int = 0


@dataclass(frozen=True)
class Cell:
    """Runs of one problem that are trained together.

    Attributes:
        problem: What is trained.
        task: How: a key of :data:`TASKS`.
        runs: One row each.
        tuning_seeds: Number of seeds that controls may learn from.
        controller: Identity of the controller, where it matters.
    """

    problem: Problem
    task: str
    runs: tuple[Run, ...]
    tuning_seeds: int = 0
    controller: str = ""

    @property
    def key(self) -> str:
        """Hash of everything that decides the rows, apart from versions."""
        return _digest([replace(self.problem, start=()).to_dict(), *list(asdict(self).items())[1:]])

    def row_key(self, index: int) -> str:
        """Hash of the configuration of one run."""
        return _digest([self.key, index])

    @property
    def updates(self) -> int:
        """Network updates that the cell makes."""
        own = self.problem.steps * len(self.runs)
        if self.task == "search":
            own += sum(search_updates(self.problem.steps, run.method) for run in self.runs)
        if self.task == "controlled":
            own += self.problem.steps * self.tuning_seeds
        return own


def run_cell(cell: Cell, controller: Controller, tick: Tick | None = None) -> list[Row]:
    """Trains the runs of a cell.

    Args:
        cell: What to run.
        controller: The learned scheduler.
        tick: Called with the number of network updates made since the last call.
    """
    begun = time.perf_counter()
    draw = make_draw(replace(cell.problem, start=()))
    trace, peaks = TASKS[cell.task](cell, draw, controller, tick)
    seconds = (time.perf_counter() - begun) / len(cell.runs)
    return [_row(cell, index, draw, trace, peaks, seconds) for index in range(len(cell.runs))]


def _row(cell: Cell, index: int, draw: Draw, trace: Trace, peaks: Sequence[float | None], seconds: float) -> Row:
    run, problem = cell.runs[index], cell.problem
    accuracy = float(trace.heldout_accuracy[index])
    curve = None
    if run.role == "report":
        curve = Curve(
            trace.updates,
            trace.train_loss[:, index],
            trace.rate[:, index],
            trace.heldout_updates,
            trace.heldout_curve[:, index],
        )
    return Row(
        key=cell.row_key(index),
        problem=problem.name,
        workload=problem.workload,
        kind=problem.kind,
        optimizer=problem.optimizer,
        steps=problem.steps,
        batch=draw.workload.batch_size,
        method=run.method,
        group=METHODS[run.method].group,
        role=run.role,
        budget=run.budget,
        peak=peaks[index],
        start=run.start,
        seed=run.seed,
        heldout_loss=float(trace.heldout_loss[index]),
        heldout_accuracy=None if np.isnan(accuracy) else accuracy,
        diverged=bool(trace.diverged[index]),
        updates=problem.steps + trace.spent,
        seconds=seconds,
        curve=curve,
        versions=versions(run.method),
        cell=cell.key,
        cell_rows=len(cell.runs),
        cell_index=index,
    )


@lru_cache
def versions(method: str = "") -> dict[str, str]:
    """Versions of what determines a run."""
    found = {
        "rlrate": rlrate.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    if method in _LIBRARIES:
        found[_LIBRARIES[method]] = version(_LIBRARIES[method])
    return found


# Tasks ----------------------------------------------------------------------------------------------------

Answer = tuple[Array, NDArray[np.bool_]]
Result = tuple[Trace, Sequence[float | None]]
Task = Callable[[Cell, Draw, Controller, Tick | None], Result]


def _schedules(cell: Cell, draw: Draw, _: Controller, tick: Tick | None) -> Result:
    """Any mixture of schedules, peaks and seeds, as one population."""
    peaks = [_known(run.peak) for run in cell.runs]
    reported = cell.runs[0].role == "report"
    names, seeds = [run.method for run in cell.runs], [run.seed for run in cell.runs]
    return run_schedules(draw, seeds, names, peaks, tick, heldout=reported), peaks


def _defaults(cell: Cell, draw: Draw, _: Controller, tick: Tick | None) -> Result:
    """Defaults that share an optimizer as one population."""
    methods = [METHODS[run.method] for run in cell.runs]
    draw = _on(methods[0].optimizer, draw)
    peaks = [method.rate or default_rate(draw.optimizer.name) for method in methods]
    names, seeds = [method.schedule for method in methods], [run.seed for run in cell.runs]
    return run_schedules(draw, seeds, names, peaks, tick, heldout=True), peaks


def _loop(cell: Cell, draw: Draw, _: Controller, tick: Tick | None) -> Result:
    """One self-tuning optimizer, seed by seed."""
    trace = loop_self_tuning(draw, [run.seed for run in cell.runs], cell.runs[0].method, tick)
    return trace, [METHODS[run.method].rate for run in cell.runs]


def _search(cell: Cell, draw: Draw, _: Controller, tick: Tick | None) -> Result:
    seeds = [run.seed for run in cell.runs]
    middle = GRID_CENTRE[cell.problem.optimizer]
    if cell.runs[0].method == "range-test-cosine":
        # The sweep must begin harmless and end in ruin.
        trace, peaks = range_test_cosine(draw, seeds, (10.0 ** (middle - 4), 10.0 ** (middle + 3)), tick)
        return trace, peaks.tolist()
    return stagewise_search(draw, seeds, (10.0 ** (middle - 2), 10.0 ** (middle + 2)), tick), [None] * len(seeds)


def _controlled(cell: Cell, draw: Draw, controller: Controller, tick: Tick | None) -> Result:
    """The learned scheduler and its controls, which act on the same population."""
    method = METHODS[cell.runs[0].method]
    draw = _on(method.optimizer, draw)
    replayed = [run.method == "replay" for run in cell.runs]
    runs = [run for run in cell.runs if run.method != "replay"]
    watched = _Watched(controller)
    if cell.tuning_seeds:
        run_controlled(draw, range(cell.tuning_seeds), controller.spec, watched.act, tick, watch=watched.watch)
    parts = []
    if runs:
        act = _Mixture(runs, controller, watched)
        seeds = [run.seed for run in runs]
        shown = partial(run_controlled, validated=method.validated, told=method.told)
        parts.append(shown(draw, seeds, controller.spec, act, tick, heldout=True))
    if any(replayed):
        seeds = [run.seed for run in cell.runs if run.method == "replay"]
        parts.append(run_tables(draw, seeds, watched.mean_rates(), tick))
    # In the order of the cell's runs: the replays come last in the joined trace.
    own, last = iter(range(len(runs))), iter(range(len(runs), len(cell.runs)))
    order = [next(last) if is_replay else next(own) for is_replay in replayed]
    return join(parts).take(order), [None] * len(cell.runs)


def _open_loop(cell: Cell, draw: Draw, controller: Controller, tick: Tick | None) -> Result:
    """The controller's mean actions, whatever is seen."""
    act = open_loop(controller, draw.steps)
    seeds = [run.seed for run in cell.runs]
    return run_controlled(draw, seeds, controller.spec, act, tick, heldout=True), [None] * len(seeds)


def _start(cell: Cell, draw: Draw, controller: Controller, tick: Tick | None) -> Result:
    """The learned scheduler in a user's loop, given learning rates that may be wrong."""
    traces = [loop_learned(draw, run.seed, controller, _known(run.start), tick) for run in cell.runs]
    return join(traces), [None] * len(cell.runs)


TASKS: dict[str, Task] = {
    "schedules": _schedules,
    "defaults": _defaults,
    "loop": _loop,
    "search": _search,
    "controlled": _controlled,
    "open-loop": _open_loop,
    "start": _start,
}


class _Watched:
    """A controller that remembers what it saw, and the rates that came of it."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.seen: list[NDArray[np.float32]] = []
        self.log_rates: list[float] = []

    def act(self, observations: NDArray[np.float32]) -> Answer:
        self.seen.append(observations)
        return self.controller.answer(observations)

    def watch(self, rates: Array) -> None:
        self.log_rates.append(float(np.log(rates).mean()))

    def mean_rates(self) -> Array:
        """Geometric mean over runs of the rate of each update, shape (steps,)."""
        rates: Array = np.exp(np.array(self.log_rates))
        return rates

    def mean_observation(self) -> NDArray[np.float32]:
        """Mean over runs and decisions, shape (signals,)."""
        if not self.seen:  # a budget without decisions
            return np.zeros(len(self.controller.spec.signals), np.float32)
        mean: NDArray[np.float32] = np.concatenate(self.seen).mean(axis=0)
        return mean


class _Mixture:
    """Several policies, each for its runs of a population."""

    def __init__(self, runs: Sequence[Run], controller: Controller, watched: _Watched) -> None:
        self._controller = controller
        self._methods = np.array([run.method for run in runs])
        self._random = [np.random.default_rng([run.seed, 1]) if run.method == "random" else None for run in runs]
        self._timers = self._methods == "time-only"
        self._fixed = np.array([name not in CLOCK for name in controller.spec.signals])
        self._constant = watched.mean_observation()[self._fixed] if self._timers.any() else None

    def __call__(self, observations: NDArray[np.float32]) -> Answer:
        seen = observations.copy()
        if self._constant is not None:
            seen[np.ix_(self._timers, self._fixed)] = self._constant
        actions, stop = self._controller.answer(seen)
        actions[self._methods == "hold"] = 0.0
        for index, rng in enumerate(self._random):
            if rng is not None:
                actions[index] = rng.uniform(-1.0, 1.0)
        return actions, stop & ~np.isin(self._methods, ("hold", "random"))


def _on(optimizer: str, draw: Draw) -> Draw:
    """The draw with another optimizer at its defaults, if one is named."""
    return replace(draw, optimizer=make_optimizer(optimizer)) if optimizer else draw


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(to_json(value), sort_keys=True).encode()).hexdigest()[:16]
