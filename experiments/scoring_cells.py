"""The parts that scores are made of: a problem with its reference, and one method on one problem."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rlrate.experiments.statistics import Array, Interval, centre, log_ratios, steps_to_target, stratified_interval

if TYPE_CHECKING:
    from rlrate.experiments.store import Row

#: A run has reached the target when its held-out loss is within this share of the tuned baseline's final one.
SLACK = 0.05


@dataclass(frozen=True)
class Cell:
    """One method on one problem, over the reported seeds.

    Attributes:
        problem: Name of the problem.
        method: Name of the method.
        peak: Peak rate that tuning chose, or the fixed rate of a default; None where the method sets it itself.
        edge: Whether the chosen rate lies at an end of the grid, so that a better one may lie outside.
        losses: Final held-out loss of each seed; infinite where the run diverged.
        accuracy: Mean share right; None without classes.
        logs: Log of the loss relative to the reference on the same seed, shape (S,); None without a reference.
        ratio: Geometric mean of those ratios with its interval over seeds; None without a reference.
        steps: Updates to the target, median over seeds; infinite where it was not reached.
        strict: The same with no slack.
        diverged: Runs whose loss is not finite.
        updates: Updates per reported run, search included.
        seconds: Wall time of one run.
    """

    problem: str
    method: str
    peak: float | None
    edge: bool
    losses: tuple[float, ...]
    accuracy: float | None
    logs: tuple[float, ...] | None
    ratio: Interval | None
    steps: float
    strict: float
    diverged: int
    updates: float
    seconds: float

    @property
    def loss(self) -> float:
        """Geometric mean of the losses over seeds."""
        return centre(np.array(self.losses))


@dataclass(frozen=True)
class Problem:
    """One problem and the tuned schedule that methods are held against.

    The reference is the schedule that did best on the reported seeds, at the rate that tuning chose for it: which
    schedule that is, nobody could have known, and the choice favours the schedules.

    Attributes:
        name: As in the suite.
        kind: The suite's word for it.
        optimizer: Its optimizer.
        steps: Updates of a run.
        best: The reference; None where ratios mean nothing here.
        peak: Its rate.
        chosen: The schedule that tuning alone would have chosen.
        target: Final held-out loss of the reference, median over the reported seeds.
        grid: Configurations (schedule, rate) on the tuning seeds.
        tuned: Mean log loss of each on the tuning seeds, shape (len(grid),): what a search goes by.
        values: Mean log loss of each relative to the reference, shape (len(grid),): what a search gets. On the reported
            seeds, where the whole grid was run on them; else on the tuning seeds, less what the tuned schedules, run on
            both, differ on average.
        judged: Whether ``values`` are of the reported seeds.
    """

    name: str
    kind: str
    optimizer: str
    steps: int
    best: str | None = None
    peak: float | None = None
    chosen: str | None = None
    target: float = math.nan
    grid: tuple[tuple[str, float], ...] = ()
    tuned: Array = field(default_factory=lambda: np.empty(0))
    values: Array = field(default_factory=lambda: np.empty(0))
    judged: bool = False


def make_problem(
    about: Mapping[str, Any],
    tuning: Sequence[Row],
    reported: Mapping[str, Sequence[Row]],
    whole: Sequence[Row] = (),
) -> Problem:
    """Finds what the methods of a problem are held against.

    Args:
        about: The problem in the suite.
        tuning: Its tuning rows.
        reported: For each schedule its reported rows at its tuned rate, one for each seed; empty where one is missing.
        whole: The rows of all configurations on the reported seeds; some may be missing.
    """
    fields = {name: about[name] for name in ("name", "kind", "optimizer", "steps")}
    losses = {name: np.array([row.heldout_loss for row in rows]) for name, rows in reported.items() if rows}
    if not losses or any((each <= 0).any() for each in losses.values()):
        return Problem(**fields)
    best = min(losses, key=lambda name: centre(losses[name]))
    grid, tuning_losses = _grid(tuning)
    chosen, tuned, values, judged = best, np.empty(0), np.empty(0), False
    if grid:
        first = int(np.argmin([centre(row) for row in tuning_losses]))
        chosen = grid[first][0]
        tuned = log_ratios(tuning_losses, tuning_losses[first]).mean(axis=1)
        known, reported_losses = _grid(whole)
        judged = set(known) == set(grid) and reported_losses.shape[1] == len(losses[best])
        if judged:
            order = [known.index(configuration) for configuration in grid]
            values = log_ratios(reported_losses[order], losses[best]).mean(axis=1)
        else:
            # Tuning seeds are other runs: what was tuned is seen on both, and tells how they differ.
            gaps = [
                log_ratios(losses[name], losses[best]).mean() - tuned[grid.index((name, rate))]
                for name in losses
                if (rate := reported[name][0].peak) is not None and (name, rate) in grid
            ]
            values = tuned + (np.mean(gaps) if gaps else 0.0)
    return Problem(
        **fields,
        best=best,
        peak=reported[best][0].peak,
        chosen=chosen if chosen in losses else best,
        target=_median(losses[best].tolist()),
        grid=tuple(grid),
        tuned=tuned,
        values=values,
        judged=judged,
    )


def make_cell(problem: Problem, rows: Sequence[Row], reference: Sequence[Row]) -> Cell:
    """One method on one problem.

    Args:
        problem: The problem.
        rows: Reported rows of the method, one for each seed.
        reference: Those of the best tuned configuration on the same seeds; empty where there is none.
    """
    losses = [row.heldout_loss for row in rows]
    logs = log_ratios(losses, [row.heldout_loss for row in reference]) if reference else np.array([math.nan])
    judged = bool(np.isfinite(logs).all())
    accuracies = [row.heldout_accuracy for row in rows if row.heldout_accuracy is not None]
    peak, rates = rows[0].peak, [rate for method, rate in problem.grid if method == rows[0].method]
    return Cell(
        problem=problem.name,
        method=rows[0].method,
        peak=peak,
        edge=len(rates) > 1 and peak in (min(rates), max(rates)),
        losses=tuple(losses),
        accuracy=float(np.mean(accuracies)) if accuracies else None,
        logs=tuple(logs.tolist()) if judged else None,
        ratio=exp(stratified_interval(logs[None])) if judged else None,
        steps=_steps_to(rows, problem.target * (1 + SLACK)),
        strict=_steps_to(rows, problem.target * (1 + 1e-9)),
        diverged=sum(row.diverged for row in rows),
        updates=float(np.mean([row.updates for row in rows])),
        seconds=float(np.mean([row.seconds for row in rows])),
    )


def exp(interval: Interval) -> Interval:
    """An interval of logs as one of ratios."""
    return Interval(*(math.exp(value) for value in interval))


def _grid(rows: Sequence[Row]) -> tuple[list[tuple[str, float]], Array]:
    """Configurations with all seeds, and their losses, shape (configurations, seeds)."""
    seeds = len({row.seed for row in rows})
    found: dict[tuple[str, float], dict[int, float]] = defaultdict(dict)
    for row in rows:
        if row.peak is not None:
            found[row.method, row.peak][row.seed] = row.heldout_loss
    whole = {key: [losses[seed] for seed in sorted(losses)] for key, losses in found.items() if len(losses) == seeds}
    return list(whole), np.array(list(whole.values()))


def _steps_to(rows: Sequence[Row], target: float) -> float:
    if math.isnan(target):
        return math.inf
    return _median(
        [
            steps_to_target(row.curve.heldout_updates, row.curve.heldout_loss, target) if row.curve else math.inf
            for row in rows
        ]
    )


def _median(values: Sequence[float]) -> float:
    """The middle value, the upper of two: unlike their mean it is finite when more than half are."""
    return sorted(values)[len(values) // 2]
