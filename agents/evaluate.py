"""Running a controller over freshly drawn training runs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rlrate.controller import Controller
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.processes import spread


@dataclass(frozen=True)
class Outcome:
    """One training run under a controller.

    Attributes:
        family: Workload family.
        workload: Name of the workload.
        optimizer: Name of the optimizer.
        steps: Budget in updates.
        heldout_loss: Final held-out loss.
        improvement: log(first / final held-out loss), bounded as the reward is.
        best: The same for the lowest loss at any decision.
        diverged: Whether a loss was not finite.
    """

    family: str
    workload: str
    optimizer: str
    steps: int
    heldout_loss: float
    improvement: float
    best: float
    diverged: bool


def run_controller(controller: Controller, runs: TrainingRuns) -> list[NDArray[np.float64]]:
    """Drives ``runs`` to the end of their budget; returns the actions, one array (N,) for each decision."""
    actions = []
    observation = runs.begin()
    while not runs.done:
        observation, _ = runs.step(*controller.answer(observation))
        actions.append(runs.control.action)
    return actions


def evaluate(
    controller: Controller,
    config: TrainingConfig,
    *,
    seed: int = 1,
    draws: int = 16,
    runs: int = 4,
    workers: int = 1,
) -> list[Outcome]:
    """Outcomes of ``draws`` x ``runs`` fresh training runs.

    Args:
        controller: What sets the rates; its own specification replaces that of ``config``.
        config: Distribution of the runs.
        seed: Determines the draws; use one that was not trained on.
        draws: Number of workloads drawn.
        runs: Networks for each.
        workers: Processes over which the draws are spread, with one thread each; 1 stays in this one. The outcomes
            do not depend on it.
    """
    one = partial(_draw, controller, replace(config, spec=controller.spec), seed, runs)
    found = spread(one, range(draws), workers)
    return [outcome for group in found for outcome in group]


def _draw(controller: Controller, config: TrainingConfig, seed: int, runs: int, index: int) -> list[Outcome]:
    population = TrainingRuns.sample(config, (seed, 0, index), range(runs))
    run_controller(controller, population)
    draw = population.draw
    return [
        Outcome(
            draw.workload.family,
            draw.workload.name,
            draw.optimizer.name,
            draw.steps,
            float(population.heldout_loss[row]),
            float(population.improvement[row]),
            float(population.best_improvement[row]),
            bool(population.diverged[row]),
        )
        for row in range(runs)
    ]


def by_family(outcomes: list[Outcome]) -> dict[str, tuple[float, int]]:
    """Mean improvement and number of diverged runs of each family."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.family].append(outcome)
    return {
        family: (
            float(np.mean([o.improvement for o in group])),
            sum(o.diverged for o in group),
        )
        for family, group in sorted(groups.items())
    }
