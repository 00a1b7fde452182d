"""The tables of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlrate.experiments.report_charts import number
from rlrate.experiments.scoring import Scores
from rlrate.experiments.scoring_cells import SLACK, Cell
from rlrate.experiments.statistics import Interval, equivalent_trials


@dataclass(frozen=True)
class Value:
    """A cell of a table: what is shown, what it is sorted by (None comes last), and more to be told."""

    text: str
    key: float | str | None = None
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A sortable table; the first columns that hold text are named in ``texts``."""

    name: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, Sequence[Value]]]
    texts: frozenset[int] = frozenset({0})
    folded: str = ""


def methods_table(scores: Scores) -> Table:
    """One row a method, best first."""
    columns = [
        ("method", ""),
        ("loss ratio", "final held-out loss relative to the best tuned schedule: geometric mean [95 % interval]"),
        ("trials", "configurations tried on each problem"),
        ("IQM", "interquartile mean of the ratios"),
        ("wins", "share of runs with a lower loss than the best tuned schedule"),
        ("rank", "mean rank by loss, controls left out"),
        ("score", f"AlgoPerf-style score, target within {SLACK:.0%} of the best tuned loss"),
        ("worth trials", "random-search trials, so many on every problem, that are expected to match its mean"),
        ("on each", "the same counted on each problem by itself, geometric mean"),
        ("diverged", "reported runs"),
        ("compute", "updates spent for one reported run, tuning and search included, in runs"),
        ("s/run", "wall time"),
        ("worst", "ratio on the problem where it is largest; point at it for the problem"),
        ("group", ""),
    ]
    rows = []
    for s in scores.scores:
        partial = f" ({s.problems} of {len(scores.headline)} problems)" if s.problems < len(scores.headline) else ""
        values = [
            Value(s.method + partial, s.method),
            Value(ratio_text(s.ratio), s.ratio.value if s.ratio else None),
            Value(str(s.budget), s.budget),
            Value(ratio(s.middle.value) if s.middle else "", s.middle.value if s.middle else None),
            _plain(s.wins, ".0%"),
            _plain(s.rank, ".1f"),
            _plain(s.score, ".2f"),
            Value(worth(s.trials, len(scores.search)), None if math.isnan(s.trials) else s.trials),
            _plain(s.each, ".1f"),
            Value(f"{s.diverged} of {s.runs}", s.diverged / max(s.runs, 1)),
            _plain(s.compute, ".3g"),
            _plain(s.seconds, ".2g"),
            Value(ratio(s.worst[1]), s.worst[1], s.worst[0]) if s.worst else Value("", None),
            Value(s.group, s.group),
        ]
        rows.append((s.group, values))
    return Table("methods-table", columns, rows, frozenset({0, len(columns) - 1}))


def kinds_table(scores: Scores) -> Table:
    """One row for each method, one column for each kind of problem that the suite has several of."""
    what = "loss relative to the best tuned schedule, in brackets to the one that tuning would have chosen"
    kinds = [(kind or "other", f"{what}; problems: {len(problems)}") for kind, problems in scores.kinds.items()]
    rows = []
    for s in scores.scores if scores.kinds else ():
        values = [Value(s.method, s.method)]
        for problems in scores.kinds.values():
            own, foreseen = scores.ratio(s.method, problems), scores.foreseen(s.method, problems)
            whole = own and foreseen and all((p.name, s.method) in scores.cells for p in problems)
            told = f"{ratio(own.value)} ({ratio(foreseen.value)})" if own and foreseen and whole else ""
            values.append(Value(told, own.value if own and whole else None))
        rows.append((s.group, values))
    return Table("kinds-table", [("method", ""), *kinds], rows)


def cells_table(scores: Scores) -> Table:
    """One row for each method and problem."""
    columns = [
        ("problem", ""),
        ("method", ""),
        ("rate", "chosen by tuning; * at the edge of the grid"),
        ("loss", "final held-out loss, geometric mean over seeds"),
        ("accuracy", ""),
        ("ratio", "to the best tuned schedule: geometric mean [95 % interval]"),
        ("worth trials", "random-search trials that are expected to match it on this problem"),
        ("steps to target", f"within {SLACK:.0%} of the best tuned loss, median over seeds"),
        ("diverged", ""),
    ]
    rows = []
    order = list(scores.problems)
    cells = sorted(scores.cells.items(), key=lambda item: (order.index(item[0][0]), item[1].loss))
    for (problem, method), c in cells:
        rate = "" if c.peak is None else number(c.peak) + ("*" if c.edge else "")
        values = [
            Value(problem, problem),
            Value(method, method),
            Value(rate, c.peak),
            Value(number(c.loss), c.loss if math.isfinite(c.loss) else None),
            Value("" if c.accuracy is None else f"{c.accuracy:.1%}", c.accuracy),
            Value(ratio_text(c.ratio), c.ratio.value if c.ratio else None),
            _worth_on(scores, problem, c),
            Value("never" if math.isinf(c.steps) else f"{c.steps:,.0f}", c.steps if math.isfinite(c.steps) else None),
            Value(f"{c.diverged} of {len(c.losses)}", c.diverged),
        ]
        rows.append((scores.groups[method], values))
    return Table("cells-table", columns, rows, frozenset({0, 1}), folded=f"All {len(rows)} cells")


def broken_table(scores: Scores) -> Table:
    """Diverged runs by method: those reported, those of the tuning grid, those from given starts."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for row in scores.results.rows:
        counts.setdefault(row.method, {}).setdefault(row.role, []).append(row.diverged)
    rows = []
    for method, by_role in counts.items():
        shares = [by_role.get(name, []) for name in ("report", "tune", "start")]
        if any(map(any, shares)):
            told = [Value(f"{sum(s)} of {len(s)}" if s else "", sum(s) / len(s) if s else None) for s in shares]
            rows.append((scores.groups.get(method, ""), [Value(method, method), *told]))
    columns = [("method", ""), ("reported runs", ""), ("tuning grid", ""), ("given starts", "")]
    return Table("broken-table", columns, rows)


def oracle_table(oracle: Mapping[str, Any]) -> Table:
    """Final expected loss of each schedule on the noisy quadratic, and how many times the optimum it is."""
    finals = {name: float(about["final"]) for name, about in oracle["schedules"].items()}
    best = finals.get("optimal", min(finals.values()))
    rows = [
        (name, [Value(name, name), Value(number(final), final), Value(ratio(final / best), final / best)])
        for name, final in sorted(finals.items(), key=lambda item: item[1])
    ]
    return Table("oracle-table", [("schedule", ""), ("final expected loss", ""), ("times the optimum", "")], rows)


def worth(trials: float, size: int) -> str:
    """A number of trials; more than the grid has where no search of it is enough."""
    if math.isnan(trials):
        return ""
    return f"> {size}" if math.isinf(trials) else "< 1" if trials < 1 else f"{trials:.1f}"


def _worth_on(scores: Scores, problem: str, cell: Cell) -> Value:
    found = scores.searches.get(problem, ())
    if not len(found) or cell.ratio is None:
        return Value("", None)
    trials = equivalent_trials(found, math.log(cell.ratio.value))
    return Value(worth(trials, len(found)), trials)


def ratio_text(interval: Interval | None) -> str:
    """A ratio with its interval."""
    return "" if interval is None else f"{ratio(interval.value)} [{ratio(interval.low)}, {ratio(interval.high)}]"


def _plain(value: float, form: str) -> Value:
    return Value("", None) if math.isnan(value) else Value(format(value, form), value)


def ratio(value: float) -> str:
    """A ratio, with as many digits as its size deserves."""
    for below, form in ((2.0, ".3f"), (9.995, ".2f"), (99.95, ".1f")):
        if value < below:
            return format(value, form)
    return f"{value:,.0f}"
