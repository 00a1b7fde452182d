"""What a controller answers to each signal, and how much each of them matters to it.

``python -m rlrate.experiments.responses CONTROLLER [--out FILE.svg]`` drives the controller through draws of the
training part, prints the signals by how much shuffling each of them between runs changes the action, and draws the mean
action over the values of each signal (partial dependence; Friedman, 2001).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.controller import Controller
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.split import load_part

Array = NDArray[np.float64]

#: Of draws of the training part that no bundled recipe trains on, and no judgement shares.
SEED = 31

#: Values of a signal at which the action is asked for: between these quantiles of what occurs.
POINTS, QUANTILES = 25, (0.02, 0.98)


@dataclass(frozen=True)
class Response:
    """How a controller answers one signal.

    Attributes:
        signal: Its name.
        values: Values of the signal, (points,).
        mean: Mean action in [-1, 1] when every observation has that value, (points,).
        low: First quartile of those actions, (points,).
        high: Third quartile, (points,).
        importance: Mean absolute change of the action when the signal is shuffled between the runs of a decision.
    """

    signal: str
    values: Array
    mean: Array
    low: Array
    high: Array
    importance: float


def visited(controller: Controller, *, draws: int = 24, runs: int = 4, steps: tuple[int, int] = (200, 800)) -> Array:
    """Observations that the controller meets on draws of the training part: (decisions, draws * runs, signals)."""
    config = TrainingConfig(workload=list(load_part("training").families), steps=steps, spec=controller.spec)
    # Every run starts as users' runs do.
    config = replace(config, start=controller.spec.action.start or config.start)
    columns = []
    for draw in range(draws):
        training = TrainingRuns.sample(config, (SEED, 2, draw), range(runs))
        seen = [training.begin()]
        while not training.done:
            seen.append(training.step(*controller.answer(seen[-1]))[0])
        columns.append(np.stack(seen[:-1]))  # no decision follows the last one
    decisions = min(len(column) for column in columns)
    return np.concatenate([column[:decisions] for column in columns], axis=1).astype(np.float64)


def responses(controller: Controller, observations: Array) -> list[Response]:
    """How the policy answers each of its signals, the one that matters most first.

    Signals that only tell when to stop are left out.

    Args:
        controller: What is asked.
        observations: Shape (decisions, runs, signals), as :func:`visited` returns them.
    """
    rng = np.random.default_rng(0)
    decisions, runs, _ = observations.shape
    rows = observations.reshape(-1, observations.shape[2])
    before = _act(controller, rows)
    found = []
    seen = controller.layers[0][0].shape[1]
    for column, name in enumerate(controller.spec.signals[:seen]):
        first, last = np.quantile(rows[:, column], QUANTILES).tolist()
        grid = np.linspace(first, last, POINTS)
        answers = []
        for value in grid:
            changed = rows.copy()
            changed[:, column] = value
            answers.append(_act(controller, changed))
        table = np.stack(answers)
        shuffled = observations.copy()
        for decision in range(decisions):
            shuffled[decision, :, column] = shuffled[decision, rng.permutation(runs), column]
        moved = np.abs(_act(controller, shuffled.reshape(rows.shape)) - before).mean()
        low, high = np.quantile(table, (0.25, 0.75), axis=1)
        found.append(Response(name, grid, table.mean(axis=1), low, high, float(moved)))
    return sorted(found, key=lambda response: -response.importance)


def save_responses(found: Sequence[Response], path: Path, title: str) -> Path:
    """Draws one small picture for each signal that varied; returns ``path``."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = [response for response in found if response.values[0] < response.values[-1]]
    columns = 4
    rows = max(1, -(-len(found) // columns))
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 1.7 * rows + 0.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    for axis, response in zip(axes.flat, found, strict=False):
        axis.fill_between(response.values, response.low, response.high, color="#d1495b", alpha=0.18, linewidth=0)
        axis.plot(response.values, response.mean, color="#d1495b", linewidth=1.8)
        axis.axhline(0.0, color="#8a9096", linewidth=0.8)
        axis.set_title(f"{response.signal}  ({response.importance:.3f})", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("action", fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no random names inside: the same controller gives the same file.
    with mpl.rc_context({"svg.hashsalt": "rlrate", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return path


def _act(controller: Controller, rows: Array) -> Array:
    return controller.act(rows.astype(np.float32))


def main(arguments: Sequence[str]) -> None:
    """Prints the signals by importance, and writes the picture."""
    parser = argparse.ArgumentParser(prog="python -m rlrate.experiments.responses", description=__doc__)
    parser.add_argument("controller", help="a file, or default")
    parser.add_argument("--out", type=Path, default=Path("responses.svg"), help="picture (.svg or .png)")
    parser.add_argument("--draws", type=int, default=24, help="workloads of the training part")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    controller = Controller.load(given.controller)
    found = responses(controller, visited(controller, draws=given.draws))
    for response in found:
        print(
            f"{response.importance:.3f}  {response.signal:20} action {response.mean[0]:+.2f} .. "
            f"{response.mean[-1]:+.2f} over {response.values[0]:+.2f} .. {response.values[-1]:+.2f}"
        )
    title = "mean action over each signal, quartiles shaded (change when it is shuffled)"
    print(save_responses(found, given.out, title))


if __name__ == "__main__":
    main(sys.argv[1:])
