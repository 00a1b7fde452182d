"""From the rows of a comparison to what is said about it: one score a method, one cell a method and problem."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from rlrate.experiments.methods import LEARNED
from rlrate.experiments.scoring_cells import Cell, Problem, exp, make_cell, make_problem
from rlrate.experiments.statistics import (
    Array,
    Interval,
    clustered_interval,
    equivalent_trials,
    expected_best,
    interval_by_workload,
    iqm,
    paired_difference,
    profile_score,
    stratified_interval,
    win_rate,
)

if TYPE_CHECKING:
    from rlrate.experiments.store import Results, Row

#: Kinds of problems that a controller was made with: shown, but never part of a headline where there are others.
KNOWN_KINDS = frozenset({"train", "selection"})


@dataclass(frozen=True)
class Score:
    """One method over all problems of the headline.

    Attributes:
        method: Its name.
        group: schedule, learned, control, default, self-tuning or search.
        what: One line about it.
        budget: Trials spent on tuning it.
        problems: Problems on which it has all its runs.
        ratio: Loss relative to the best tuned schedule, geometric mean; interval over seeds.
        foreseen: Loss relative to the schedule that tuning alone would have chosen.
        middle: The same as interquartile mean.
        wider: Geometric mean with an interval over problems and seeds.
        wins: Share of runs with a lower loss than the best tuned schedule on the same seed.
        rank: Mean rank among all methods but the controls, by loss.
        score: AlgoPerf-style score, target with slack.
        strict: The same without slack.
        trials: Random-search trials of the pooled grid that are expected to match it.
        each: The same on each problem by itself, geometric mean.
        diverged: Diverged runs.
        runs: Runs.
        compute: Updates spent for one reported run, tuning and search included, in runs.
        seconds: Mean wall time of one run.
        worst: Problem with its largest ratio, and that ratio.
    """

    method: str
    group: str
    what: str
    budget: int
    problems: int
    ratio: Interval | None
    middle: Interval | None
    wider: Interval | None
    foreseen: Interval | None
    wins: float
    rank: float
    score: float
    strict: float
    trials: float
    each: float
    diverged: int
    runs: int
    compute: float
    seconds: float
    worst: tuple[str, float] | None


class Scores:
    """What a comparison says.

    Args:
        results: All rows and the suite, from :func:`rlrate.experiments.store.load`; may be unfinished.
    """

    def __init__(self, results: Results) -> None:
        self.results = results
        self.suite: Mapping[str, Any] = results.suite
        self._rows: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in results.rows:
            if row.role == "report":
                self._rows[row.problem, row.method].append(row)
        self.groups: dict[str, str] = {name: about["group"] for name, about in self.suite["methods"].items()}

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods that have a cell, in the suite's order."""
        present = {method for _, method in self.cells}
        return tuple(name for name in self.groups if name in present)

    @cached_property
    def learned(self) -> str | None:
        """The learned scheduler, where it takes part."""
        return LEARNED if LEARNED in self.methods else None

    @cached_property
    def field(self) -> tuple[str, ...]:
        """The methods that are ranked: no controls, and the learned scheduler once, on the problems' optimizers."""
        return tuple(m for m in self.methods if self.groups[m] not in ("control", "learned") or m == self.learned)

    @cached_property
    def problems(self) -> dict[str, Problem]:
        """All problems of the suite."""
        grids: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.results.rows:
            if row.role in ("tune", "grid"):
                grids[row.problem, row.role].append(row)
        return {
            about["name"]: make_problem(
                about,
                grids[about["name"], "tune"],
                {name: self.reported(about["name"], name) for name, g in self.groups.items() if g == "schedule"},
                grids[about["name"], "grid"],
            )
            for about in self.suite["problems"]
        }

    @cached_property
    def headline(self) -> tuple[Problem, ...]:
        """Problems with a reference, less those the controller was made with where there are others.

        Of a comparison that goes on, only those that the learned scheduler has been run on, where there are any.
        """
        judged = [problem for problem in self.problems.values() if problem.best is not None]
        done = [problem for problem in judged if (problem.name, self.learned) in self.cells]
        fresh = [problem for problem in done or judged if problem.kind not in KNOWN_KINDS]
        return tuple(fresh or done or judged)

    @cached_property
    def kinds(self) -> dict[str, list[Problem]]:
        """Problems of the headline by kind; empty where no two share one, or all do."""
        kinds: dict[str, list[Problem]] = defaultdict(list)
        for problem in self.headline:
            kinds[problem.kind].append(problem)
        return dict(kinds) if 1 < len(kinds) < len(self.headline) else {}

    @cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        """Cells for (problem, method) that have a run for every seed."""
        cells = {}
        for name, method in self._rows:
            problem, rows = self.problems[name], self.reported(name, method)
            if rows:
                reference = self.reported(name, problem.best) if problem.best is not None else []
                cells[name, method] = make_cell(problem, rows, reference)
        return cells

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """One score for each method, best ratio first, those without a ratio last."""
        scores = [self._score(method) for method in self.methods]
        return tuple(sorted(scores, key=lambda s: s.ratio.value if s.ratio else math.inf))

    def reported(self, problem: str, method: str) -> list[Row]:
        """The rows of a cell in the order of the suite's seeds; none where one is missing."""
        rows = {row.seed: row for row in self._rows.get((problem, method), ())}
        seeds = self.suite["seeds"]
        return [rows[seed] for seed in seeds] if all(seed in rows for seed in seeds) else []

    def score(self, method: str) -> Score:
        """The score of one method."""
        return next(score for score in self.scores if score.method == method)

    def logs(self, method: str, problems: Sequence[Problem] | None = None) -> Array:
        """Log ratios to the best tuned, shape (problems on which the method has all its runs, S)."""
        cells = [self.cells.get((p.name, method)) for p in (self.headline if problems is None else problems)]
        return np.array([cell.logs for cell in cells if cell is not None and cell.logs is not None])

    def ratio(self, method: str, problems: Sequence[Problem] | None = None) -> Interval | None:
        """Geometric mean ratio to the best tuned over some problems, with its interval over seeds."""
        logs = self.logs(method, problems)
        return exp(stratified_interval(logs)) if logs.size else None

    def against(self, method: str, other: str) -> Interval | None:
        """Loss of one method relative to another on the same problems and seeds, geometric mean with interval."""
        shared = [p for p in self.headline if {(p.name, method), (p.name, other)} <= self.cells.keys()]
        if not shared:
            return None
        return exp(paired_difference(self.logs(method, shared), self.logs(other, shared)))

    def foreseen(self, method: str, problems: Sequence[Problem] | None = None) -> Interval | None:
        """Loss relative to the configuration that tuning alone would have chosen on each problem."""
        considered = self.headline if problems is None else problems
        shared = [p for p in considered if (p.name, method) in self.cells]
        if not shared:
            return None
        chosen = [self.cells[p.name, p.chosen].logs for p in shared if p.chosen is not None]
        return exp(paired_difference(self.logs(method, shared), np.array(chosen)))

    @cached_property
    def search(self) -> Array:
        """Mean log ratio that random search over each problem's pooled grid is expected to reach, by trials.

        It chooses by the tuning seeds.
        """
        found = self.searches.values()
        size = min((len(each) for each in found), default=0)
        return np.mean([each[:size] for each in found], axis=0) if size else np.empty(0)

    @cached_property
    def searches(self) -> dict[str, Array]:
        """The same for each problem of the headline; empty where it has no grid."""
        return {problem.name: expected_best(problem.values, problem.tuned) for problem in self.headline}

    def trials(self, ratio: float) -> float:
        """Random-search trials that are expected to match a ratio to the best tuned; NaN without a grid."""
        return equivalent_trials(self.search, math.log(ratio)) if len(self.search) else math.nan

    def trials_on(self, problem: str, log: float) -> float:
        """The same on one problem, for a log ratio: at least one, and at most as many as its grid has."""
        found = self.searches[problem]
        return float(np.clip(equivalent_trials(found, log), 1.0, len(found)))

    def trials_each(self, method: str) -> Interval | None:
        """Random-search trials that a method is worth on each problem, geometric mean with its interval over seeds."""
        logs = self._searched(method)
        names = list(logs)
        return exp(interval_by_workload(np.array(list(logs.values())), partial(self._typical, names))) if logs else None

    def _searched(self, method: str) -> dict[str, tuple[float, ...]]:
        """Log ratios of a method on every problem that has a grid."""
        cells = {p.name: self.cells.get((p.name, method)) for p in self.headline if len(self.searches[p.name])}
        return {name: cell.logs for name, cell in cells.items() if cell is not None and cell.logs is not None}

    def _typical(self, names: Sequence[str], logs: Array) -> float:
        """Mean log of the trials that log ratios are worth, one on each problem."""
        return float(np.log([self.trials_on(name, log) for name, log in zip(names, logs, strict=True)]).mean())

    @property
    def search_is_judged(self) -> bool:
        """Whether what a search gets is known from the reported seeds, which it did not choose by."""
        return all(problem.judged for problem in self.headline)

    @cached_property
    def costs(self) -> dict[str, Array]:
        """Steps to the target on each problem of the headline, for all methods but the controls."""
        return self._steps("steps")

    def _steps(self, field: str) -> dict[str, Array]:
        return {
            method: np.array(
                [
                    getattr(self.cells[p.name, method], field) if (p.name, method) in self.cells else math.inf
                    for p in self.headline
                ]
            )
            for method in self.methods
        }

    @cached_property
    def _profile_scores(self) -> dict[str, tuple[float, float]]:
        """Scores with and without slack; what is left out of the field cannot lower others' scores."""
        field = self.field
        if not self.headline or not field:
            return {}
        both = [profile_score(np.array([self._steps(name)[m] for m in field])) for name in ("steps", "strict")]
        return {m: (float(both[0][i]), float(both[1][i])) for i, m in enumerate(field)}

    @cached_property
    def _ranks(self) -> dict[str, list[float]]:
        from scipy.stats import rankdata

        ranks: dict[str, list[float]] = defaultdict(list)
        for problem in self.headline:
            field = [m for m in self.field if (problem.name, m) in self.cells]
            for method, rank in zip(field, rankdata([self.cells[problem.name, m].loss for m in field]), strict=True):
                ranks[method].append(float(rank))
        return ranks

    def _score(self, method: str) -> Score:
        cells = [self.cells[p.name, method] for p in self.headline if (p.name, method) in self.cells]
        logs = self.logs(method)
        judged = logs.size > 0
        value = float(logs.mean()) if judged else math.nan
        ratios = [(cell.problem, cell.ratio.value) for cell in cells if cell.ratio is not None]
        rows = [row for problem in self.headline for row in self._rows.get((problem.name, method), ())]
        found = self._searched(method)
        score, strict = self._profile_scores.get(method, (math.nan, math.nan))
        budget = max((row.budget for row in rows), default=0)
        tuned = budget * len(self.suite["tuning_seeds"]) if self.groups[method] == "schedule" else 0
        return Score(
            method=method,
            group=self.groups[method],
            what=self.suite["methods"][method].get("what", ""),
            budget=budget,
            problems=len(cells),
            ratio=exp(stratified_interval(logs)) if judged else None,
            middle=exp(stratified_interval(logs, iqm)) if judged else None,
            wider=exp(clustered_interval(logs)) if judged else None,
            foreseen=self.foreseen(method) if judged else None,
            wins=win_rate(logs, np.zeros_like(logs)) if judged else math.nan,
            rank=float(np.mean(self._ranks[method])) if self._ranks[method] else math.nan,
            score=score,
            strict=strict,
            trials=self.trials(math.exp(value)) if judged else math.nan,
            each=math.exp(self._typical(list(found), np.mean(list(found.values()), axis=1))) if found else math.nan,
            diverged=sum(cell.diverged for cell in cells),
            runs=sum(len(cell.losses) for cell in cells),
            compute=tuned + float(np.mean([row.updates / row.steps for row in rows])) if rows else math.nan,
            seconds=float(np.mean([cell.seconds for cell in cells])) if cells else math.nan,
            worst=max(ratios, key=lambda pair: pair[1]) if ratios else None,
        )
