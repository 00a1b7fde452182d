"""How much faster grids are as populations than as plain loops."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from rlrate.controller import Controller
from rlrate.experiments.cells import run_cell
from rlrate.experiments.loops import loop_schedule
from rlrate.experiments.plan import Plan
from rlrate.experiments.runs import run_schedules
from rlrate.experiments.suite import load_suite, make_draw


def comparison_benchmark(suite: str = "smoke") -> dict[str, Any]:
    """Trains the grid of a suite (all schedules, rates and tuning seeds) as populations and as plain loops.

    Both on one thread, problem by problem, in turn; every run of the grid is made both ways.

    Returns:
        For each problem and in all: runs, seconds of both, their ratio; and of the final held-out losses of runs that
        end finite, the median relative difference and the share within 1e-4. Runs at rates that wreck a network are
        chaotic: rounding alone tells them apart.
    """
    torch.set_num_threads(1)
    plan = Plan(load_suite(suite), Controller.constant())
    for problem in plan.suite.problems:  # what is paid once: imports, data, recorded tables
        draw = replace(make_draw(problem), steps=2)
        for name in plan.suite.schedules:
            run_schedules(draw, [0], [name], [1e-3])
            loop_schedule(draw, 0, name, 1e-3)
    figures: dict[str, Any] = {}
    total = np.zeros(3)
    for problem in plan.suite.problems:
        draw = make_draw(problem)
        rows, loops = [], []
        begun = time.perf_counter()
        for cell in plan.tuning(problem.name):
            rows += run_cell(cell, plan.controller)
        middle = time.perf_counter()
        for row in rows:
            assert row.peak is not None
            loops.append(float(loop_schedule(draw, row.seed, row.method, row.peak).heldout_loss[0]))
        batched, plain = middle - begun, time.perf_counter() - middle
        figures[problem.name] = _figures(len(rows), batched, plain) | _differences(
            np.array([row.heldout_loss for row in rows]), np.array(loops)
        )
        total += (len(rows), batched, plain)
    figures["all"] = _figures(int(total[0]), float(total[1]), float(total[2]))
    return figures


def _figures(runs: int, batched: float, plain: float) -> dict[str, Any]:
    return {"runs": runs, "batched_seconds": batched, "plain_seconds": plain, "times_faster": plain / batched}


def _differences(batched: Any, plain: Any) -> dict[str, float]:
    sound = np.isfinite(batched) & np.isfinite(plain)
    relative = np.abs(batched[sound] / plain[sound] - 1)
    return {"median_difference": float(np.median(relative)), "within_1e-4": float((relative <= 1e-4).mean())}
