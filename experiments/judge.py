"""Which of several controllers is better on the training part, seen through many small draws.

``python -m rlrate.experiments.judge CONTROLLER [CONTROLLER ...] [--against default] [--draws 96]`` runs each controller
and the other one on the same fresh draws and prints by how many nats the held-out loss falls further, with its
standard error, on how many draws it is better and worse, and how many runs broke. A number in the place of a controller
stands for one that always answers it. Every family of the training part is drawn equally often; with ``--recipe NAME``
workloads and budgets are drawn as often as that recipe draws them. With ``--best 1`` the lowest held-out loss at any
decision is judged instead of the last one, in between their weighted mean.

What a loss falls below a three-hundredth of the first one counts for little, and one draw for a nat at most: where a
loss can fall to nothing, differences of ten nats mean nothing, and would drown all others.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlrate.agents import Outcome, Recipe, evaluate
from rlrate.controller import Controller
from rlrate.envs import TrainingConfig
from rlrate.envs.split import load_part
from rlrate.errors import ConfigError
from rlrate.experiments.regret import controller_of

#: Of draws that no bundled recipe trains on, and no other judgement shares.
SEED = 4242

#: Of the first loss: below it a fall counts for little. Nats: more than it, a difference counts as it.
FLOOR, MOST = 3e-3, 1.0

#: Runs of each draw.
RUNS = 3

#: Nats from which on a draw counts as better or worse.
NOTABLE = 0.03


@dataclass(frozen=True)
class Judgement:
    """One controller against another on the same draws, in nats; positive where the first is better.

    Attributes:
        mean: Mean over draws.
        error: Its standard error.
        better: Share of draws on which it is notably better.
        worse: Share on which it is notably worse.
        families: Mean and number of draws of each family.
        optimizers: The same of each optimizer.
    """

    mean: float
    error: float
    better: float
    worse: float
    families: dict[str, tuple[float, int]]
    optimizers: dict[str, tuple[float, int]]


def outcomes(
    controller: Controller,
    *,
    draws: int = 96,
    steps: tuple[int, int] = (300, 1500),
    recipe: str = "",
    workers: int = 1,
) -> list[Outcome]:
    """Runs a controller on draws of the training part: :data:`RUNS` runs of each, one draw after the other.

    Args:
        controller: What sets the rates.
        draws: Workloads, each with an optimizer and a budget; at least 2.
        steps: Budgets in updates, log-uniform.
        recipe: A bundled recipe or a file, whose workloads and budgets are drawn instead.
        workers: Processes; the result does not depend on them.

    Raises:
        ConfigError: fewer than two draws, or no such recipe.
    """
    if draws < 2:
        raise ConfigError(f"a judgement needs at least 2 draws, got {draws}")
    if recipe:
        drawn = Recipe.load(recipe).make_env().config
        config = TrainingConfig(drawn.workload, drawn.optimizer, drawn.steps, reward_floor=FLOOR)
    else:
        config = TrainingConfig(workload=list(load_part("training").families), steps=steps, reward_floor=FLOOR)
    # Every run starts as users' runs do.
    config = replace(config, start=controller.spec.action.start or config.start)
    return evaluate(controller, config, seed=SEED, draws=draws, runs=RUNS, workers=workers)


def judge(one: Sequence[Outcome], other: Sequence[Outcome], best: float = 0.0) -> Judgement:
    """Compares two controllers that ran on the same draws.

    Args:
        one: Outcomes of the first.
        other: Outcomes of the second.
        best: Share that is judged by the lowest loss at any decision instead of the last one.

    Raises:
        ConfigError: the draws are not the same, or ``best`` does not lie in [0, 1].
    """
    if not 0.0 <= best <= 1.0:
        raise ConfigError(f"best must lie in [0, 1], got {best!r}")
    if [(o.workload, o.optimizer, o.steps) for o in one] != [(o.workload, o.optimizer, o.steps) for o in other]:
        raise ConfigError("only controllers that ran on the same draws can be compared")
    fallen = [np.array([(1.0 - best) * o.improvement + best * o.best for o in side]) for side in (one, other)]
    gained = fallen[0] - fallen[1]
    difference = np.clip(gained.reshape(-1, RUNS).mean(axis=1), -MOST, MOST)
    return Judgement(
        float(difference.mean()),
        float(difference.std(ddof=1) / np.sqrt(len(difference))),
        float((difference > NOTABLE).mean()),
        float((difference < -NOTABLE).mean()),
        _grouped([outcome.family for outcome in one[::RUNS]], difference.tolist()),
        _grouped([outcome.optimizer for outcome in one[::RUNS]], difference.tolist()),
    )


def main(arguments: Sequence[str]) -> None:
    """Prints one judgement for each controller."""
    first = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m rlrate.experiments.judge", description=first)
    parser.add_argument("controllers", nargs="+", help="files, bundled names, or numbers")
    parser.add_argument("--against", default="default", help="the controller that they are compared with")
    parser.add_argument("--draws", type=int, default=96)
    parser.add_argument("--steps", type=int, nargs=2, default=(300, 1500), metavar=("LOW", "HIGH"), help="budgets")
    parser.add_argument("--recipe", default="", help="draw workloads and budgets as this one does")
    parser.add_argument("--best", type=float, default=0.0, help="share of the lowest loss in what is judged")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    settings: dict[str, Any] = {
        "draws": given.draws,
        "steps": tuple(given.steps),
        "recipe": given.recipe,
        "workers": given.workers,
    }
    other = outcomes(controller_of(given.against), **settings)
    print(f"{given.against}: {_broken(other)} of {len(other)} runs broke")
    for name in given.controllers:
        one = outcomes(controller_of(name), **settings)
        found = judge(one, other, given.best)
        print(
            f"{name}: {found.mean:+.3f} nats (standard error {found.error:.3f}), better on {found.better:.0%} and "
            f"worse on {found.worse:.0%} of {given.draws} draws, {_broken(one)} of {len(one)} runs broke"
        )
        for groups in (found.families, found.optimizers):
            print("  " + ", ".join(f"{name} {mean:+.2f} ({n})" for name, (mean, n) in groups.items()))


def _grouped(names: Sequence[str], values: Sequence[float]) -> dict[str, tuple[float, int]]:
    """Mean and number of the values of each name."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for name, value in zip(names, values, strict=True):
        grouped[name].append(value)
    return {name: (float(np.mean(found)), len(found)) for name, found in sorted(grouped.items())}


def _broken(found: Sequence[Outcome]) -> int:
    return sum(outcome.diverged for outcome in found)


if __name__ == "__main__":
    main(sys.argv[1:])
