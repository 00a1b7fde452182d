"""What a controller answers on average at each moment of a run, whatever it sees: its feedback taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rlrate.agents import run_controller
from rlrate.controller import Controller
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.split import load_part
from rlrate.experiments.recording import Array

__all__ = ["mean_actions", "open_loop"]

#: Of draws that no bundled recipe trains on, and no judgement shares.
SEED = 31

#: Draws of the training part, runs of each, and their budgets: minutes of one core, once in a process.
DRAWS, RUNS, STEPS = 64, 2, (200, 600)

_KNOWN: dict[str, Array] = {}


def mean_actions(controller: Controller, draws: int | None = None) -> Array:
    """The mean action at each decision of a run, over draws of the training part; shape (decisions,).

    Budgets are long enough for every run to have all decisions of its cadence.

    Args:
        controller: What acts.
        draws: Workloads, each with an optimizer and a budget; :data:`DRAWS` when None.
    """
    draws = DRAWS if draws is None else draws
    key = f"{controller.identity} {draws}"
    if key not in _KNOWN:
        cadence, start = controller.spec.cadence, controller.spec.action.start
        least = max(STEPS[0], cadence.decisions * cadence.first)
        config = TrainingConfig(
            workload=list(load_part("training").families),
            steps=(least, max(STEPS[1], least)),
            spec=controller.spec,
        )
        # Every run starts as users' runs do.
        config = replace(config, start=start or config.start)
        paths = []
        for index in range(draws):
            runs = TrainingRuns.sample(config, (SEED, 0, index), range(RUNS))
            paths.append(np.array(run_controller(controller, runs)).mean(axis=1))
        _KNOWN[key] = np.mean(paths, axis=0)
    return _KNOWN[key]


def open_loop(controller: Controller, steps: int) -> Callable[[NDArray[np.float32]], tuple[Array, None]]:
    """A policy that answers the mean action of the moment, decision by decision of a budget.

    Args:
        controller: Whose actions.
        steps: Budget in updates; where it has fewer decisions than a full run, they are spread evenly over those.
    """
    path = mean_actions(controller)
    decisions = len(controller.spec.cadence.boundaries(steps)) - 1
    moments = iter(np.interp(np.linspace(0.0, 1.0, max(decisions, 1)), np.linspace(0.0, 1.0, len(path)), path))
    return lambda observations: (np.full(len(observations), next(moments)), None)
