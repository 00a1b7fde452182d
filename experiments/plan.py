"""Which cells a comparison has, and when each can be run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlrate.controller import Controller
from rlrate.experiments.cells import Cell, Run, versions
from rlrate.experiments.methods import LEARNED, METHODS
from rlrate.experiments.runs import CHUNK
from rlrate.experiments.statistics import centre
from rlrate.experiments.store import SCHEMA, Row
from rlrate.experiments.suite import Problem, Suite, make_draw, peak_grid

__all__ = ["Plan"]

#: Schedules that are also run at the rates given at the start, to compare the sensitivity with.
START_SCHEDULES = ("constant", "cosine")

#: Rough cost in microseconds of an update of one small network, by task, and of a million operations of its passes: for
#: each problem of the suite `held-out` within a factor of 2.6 of what it took.
OVERHEAD = {
    **{"schedules": 15.0, "defaults": 25.0, "controlled": 50.0, "open-loop": 50.0, "search": 50.0},
    **{"loop": 800.0, "start": 1200.0},
}
MILLION = 45.0


class Plan:
    """The cells of a suite under a controller.

    The rates of the reported runs of a schedule are known when all tuning cells of its problem are finished; all other
    cells can be run at once.

    Args:
        suite: What is compared.
        controller: The learned scheduler.

    Raises:
        WorkloadError: A workload is unknown or does not work.
        ConfigError: A network cannot be scaled as a problem asks.
    """

    def __init__(self, suite: Suite, controller: Controller) -> None:
        self.suite, self.controller = suite, controller
        self._identity = controller.identity
        self._tuning = {p.name: self._tune(p) for p in suite.problems}
        self._others = {p.name: self._entrants(p) + self._starts(p) + self._search(p) for p in suite.problems}
        self._unit = {p.name: _million_operations(p) for p in suite.problems}
        # The peaks do not matter here.
        guesses = [cell for p in suite.problems for cell in self._report(p, dict.fromkeys(suite.schedules, 0.0))]
        cells = [*self.first(), *guesses]
        self.cells = len(cells)
        self.runs = sum(len(cell.runs) for cell in cells)
        self.cost = sum(self.cost_of(cell) for cell in cells)

    def to_dict(self, command: str, controller_name: str) -> dict[str, Any]:
        """What ``suite.json`` holds."""
        return {
            "schema": SCHEMA,
            **self.suite.to_dict(),
            "controller": {"name": controller_name, "identity": self._identity},
            "command": command,
            "cells": self.cells,
            "runs": self.runs,
            "versions": versions(),
        }

    def first(self) -> list[Cell]:
        """The cells that can be run at once."""
        return [cell for p in self.suite.problems for cell in self._tuning[p.name] + self._others[p.name]]

    def tuning(self, problem: str) -> list[Cell]:
        """The cells whose rows decide the peak rates of ``problem``."""
        return self._tuning[problem]

    def reports(self, problem: str, rows: Iterable[Row]) -> list[Cell]:
        """The cells of the reported runs of schedules.

        Args:
            problem: Name of the problem.
            rows: Of all its tuning cells.
        """
        found = next(p for p in self.suite.problems if p.name == problem)
        return self._report(found, best_peaks(rows))

    def cost_of(self, cell: Cell) -> float:
        """What a cell costs, in units that are about a microsecond."""
        return cell.updates * self.update_cost(cell)

    def update_cost(self, cell: Cell) -> float:
        """What one of its network updates costs."""
        return OVERHEAD[cell.task] + MILLION * self._unit[cell.problem.name]

    def _tune(self, problem: Problem) -> list[Cell]:
        return self._grid(problem, "tune", range(self.suite.tuning_seeds))

    def _search(self, problem: Problem) -> list[Cell]:
        return self._grid(problem, "grid", self.suite.report_seeds) if self.suite.whole_grid else []

    def _grid(self, problem: Problem, role: str, seeds: Iterable[int]) -> list[Cell]:
        suite, seeds = self.suite, list(seeds)
        runs = [
            Run(name, role, seed, peak=float(peak))
            for name in suite.schedules
            for peak in peak_grid(problem.optimizer, suite.rates)
            for seed in seeds
        ]
        return [Cell(problem, "schedules", part) for part in _chunks(runs)]

    def _report(self, problem: Problem, peaks: dict[str, float]) -> list[Cell]:
        runs = [
            Run(name, "report", seed, peak=peaks[name], budget=self.suite.rates)
            for name in self.suite.schedules
            for seed in self.suite.report_seeds
        ]
        return [Cell(problem, "schedules", part) for part in _chunks(runs)]

    def _entrants(self, problem: Problem) -> list[Cell]:
        methods = [METHODS[name] for name in self.suite.entrants]

        def place(name: str) -> tuple[str, str, bool, bool]:
            method = METHODS[name]
            # What shares an optimizer, of the defaults and of what the controller drives, is one population.
            shared = method.optimizer if method.task in ("defaults", "controlled") else name
            return method.task, shared, method.validated, not method.told

        cells = []
        for (task, *_), names in groupby(sorted((m.name for m in methods), key=place), key=place):
            chosen = list(names)
            runs = tuple(
                Run(name, "report", seed, budget=METHODS[name].budget)
                for name in chosen
                for seed in self.suite.report_seeds
            )
            learns = bool({"replay", "time-only"} & set(chosen))
            cells.append(
                Cell(
                    problem,
                    task,
                    runs,
                    tuning_seeds=self.suite.tuning_seeds if learns else 0,
                    controller=self._identity if task in ("controlled", "open-loop") else "",
                )
            )
        return cells

    def _starts(self, problem: Problem) -> list[Cell]:
        seeds, cells = self.suite.report_seeds, []
        if LEARNED in self.suite.entrants:
            runs = [Run(LEARNED, "start", seed, start=rate) for rate in problem.start for seed in seeds]
            cells += [Cell(problem, "start", part, controller=self._identity) for part in _chunks(runs, len(seeds))]
        runs = [
            Run(name, "start", seed, peak=rate, start=rate)
            for name in START_SCHEDULES
            for rate in problem.start
            for seed in seeds
        ]
        return cells + [Cell(problem, "schedules", part) for part in _chunks(runs)]


def best_peaks(rows: Iterable[Row]) -> dict[str, float]:
    """For each schedule the peak rate with the lowest mean log held-out loss over the tuning seeds."""
    losses: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        assert row.peak is not None
        losses.setdefault(row.method, {}).setdefault(row.peak, []).append(row.heldout_loss)
    best = {}
    for name, by_peak in losses.items():
        centres = {peak: centre(np.array(by_peak[peak])) for peak in sorted(by_peak)}
        best[name] = min(centres, key=centres.__getitem__)
    return best


def _chunks(runs: Sequence[Run], size: int = CHUNK) -> list[tuple[Run, ...]]:
    return [tuple(runs[start : start + size]) for start in range(0, len(runs), size)]


def _million_operations(problem: Problem) -> float:
    """Floating-point operations of one update's passes; backwards counts as twice forwards."""
    workload = make_draw(problem).workload
    with torch.random.fork_rng(devices=[]), torch.no_grad(), FlopCounterMode(display=False) as counter:
        workload.make_model().eval()(workload.train[0][: workload.batch_size])
    return 3.0 * float(counter.get_total_flops()) / 1e6
