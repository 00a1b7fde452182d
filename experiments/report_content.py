"""What a report says: headline, where the learned scheduler loses, tables and sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlrate.experiments import report_curves as curves
from rlrate.experiments import report_figures as figures
from rlrate.experiments.report_charts import Chart, number
from rlrate.experiments.report_tables import (
    Table,
    broken_table,
    cells_table,
    kinds_table,
    methods_table,
    oracle_table,
    ratio,
    ratio_text,
    worth,
)
from rlrate.experiments.scoring import Score, Scores
from rlrate.experiments.scoring_cells import Cell
from rlrate.experiments.statistics import CAP, Interval, sensitivity


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    value: str
    unit: str
    what: str
    range: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page: some words, charts with the command that made them, a table."""

    name: str
    title: str
    words: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    command: str = ""


@dataclass(frozen=True)
class Content:
    """Everything that the templates print."""

    title: str
    about: str
    warning: str
    tiles: Sequence[Tile]
    losses: Sequence[str]
    wins: Sequence[str]
    sections: Sequence[Section]
    settings: Sequence[tuple[str, str]]
    command: str
    charts: Sequence[Chart] = field(default_factory=list)


def content(scores: Scores, oracle: Mapping[str, Any] | None, folder: str) -> Content:
    """Collects the report of a comparison.

    Args:
        scores: The comparison.
        oracle: ``oracle.json``, where there is one.
        folder: The comparison's folder as the commands are to name it.
    """
    suite, results = scores.suite, scores.results
    sections = [section for section in _sections(scores, oracle, folder) if section.charts or section.tables]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(suite.get("versions", {}).items()))
    controller = suite.get("controller") or {}
    missing = f"Unfinished: {results.missing} of {suite['runs']} runs are still to be made." if results.missing else ""
    return Content(
        title=suite.get("title") or suite["name"],
        about=f"{len(scores.headline)} problems, {len(scores.methods)} methods, {len(suite['seeds'])} paired seeds; "
        f"{len(results.rows):,} training runs.",
        warning=missing,
        tiles=_tiles(scores),
        losses=losses(scores),
        wins=wins(scores),
        sections=sections,
        settings=[
            ("suite", suite["name"]),
            ("controller", f"{controller.get('name', '')} {controller.get('identity', '')[:16]}".strip()),
            ("rates in each grid", str(suite["rates"])),
            ("seeds", f"tuning {_range(suite['tuning_seeds'])}, reported {_range(suite['seeds'])}"),
            ("made with", versions),
        ],
        command=suite.get("command", ""),
        charts=[chart for section in sections for chart in section.charts],
    )


def losses(scores: Scores) -> list[str]:
    """Where the learned scheduler loses, plainly: problems, methods, controls, divergences."""
    learned = scores.learned
    if learned is None:
        return []
    lines = []
    behind = [cell for cell in _judged(scores, learned) if cell.ratio is not None and cell.ratio.low > 1]
    for cell in sorted(behind, key=lambda cell: -(cell.ratio.value if cell.ratio else 0)):
        problem = scores.problems[cell.problem]
        broke = f", {cell.diverged} of {len(cell.losses)} runs diverged" if cell.diverged else ""
        lines.append(f"{cell.problem}: {ratio_text(cell.ratio)} times the loss of {problem.best}, tuned{broke}.")
    for mine in _variants(scores):
        better = []
        for score in _rivals(scores):
            rival = scores.against(score.method, mine)
            if rival is not None and rival.value < 1:
                doubt = "" if rival.high < 1 else ", within the noise"
                better.append(f"{score.method} ({figures.trials(score.budget)}{doubt})")
        if better:
            than = "" if mine == learned else f" than {mine}"
            lines.append(f"Over all problems these end lower{than}: {', '.join(better)}.")
    for method in (name for name in scores.methods if scores.groups[name] == "control"):
        rival = scores.against(method, learned)
        if rival is not None and rival.low <= 1:
            lines.append(f"The control {method} is as good: {ratio_text(rival)} times the learned scheduler's loss.")
    own = scores.score(learned)
    if own.diverged:
        lines.append(f"{own.diverged} of its {own.runs} runs diverged.")
    broken = [row for row in scores.results.rows if row.role == "start" and row.method == learned and row.diverged]
    if broken:
        lines.append(f"{len(broken)} of its runs diverged from a start that was wrong.")
    return lines


def wins(scores: Scores) -> list[str]:
    """Problems and methods where the learned scheduler is better beyond the noise."""
    learned = scores.learned
    if learned is None:
        return []
    lines = [
        f"{c.problem}: {ratio_text(c.ratio)} times the loss of {scores.problems[c.problem].best}, tuned."
        for c in _ahead(scores, learned)
    ]
    for own in _variants(scores):
        worse = _beaten(scores, own, [score.method for score in _rivals(scores)])
        if worse:
            who = "it" if own == learned else own
            lines.append(f"Over all problems {who} ends lower, relative to each, than: {', '.join(worse)}.")
    worse = _beaten(scores, learned, [name for name in scores.methods if scores.groups[name] == "control"])
    if worse:
        lines.append(f"It ends lower, relative to each, than the controls {', '.join(worse)}.")
    return lines


def _variants(scores: Scores) -> list[str]:
    """The learned scheduler, and it on another optimizer."""
    return [name for name in scores.methods if scores.groups[name] == "learned"]


def _rivals(scores: Scores) -> list[Score]:
    return [score for score in scores.scores if score.group not in ("control", "learned")]


def _beaten(scores: Scores, own: str, methods: list[str]) -> list[str]:
    """Which methods end higher beyond the noise, with the ratio of our loss to theirs."""
    against = {method: scores.against(own, method) for method in methods}
    return [f"{method} ({ratio_text(ratio)})" for method, ratio in against.items() if ratio and ratio.high < 1]


def _ahead(scores: Scores, learned: str) -> list[Cell]:
    """Problems on which it is better than the best tuned schedule beyond the noise, best first."""
    cells = [cell for cell in _judged(scores, learned) if cell.ratio is not None and cell.ratio.high < 1]
    return sorted(cells, key=lambda cell: cell.ratio.value if cell.ratio else 0)


def _tiles(scores: Scores) -> list[Tile]:
    learned = scores.learned
    if learned is None or (own := scores.score(learned)).ratio is None or own.middle is None or own.wider is None:
        return []
    judged = _judged(scores, learned)
    better, worse = len(_ahead(scores, learned)), sum(c.ratio.low > 1 for c in judged if c.ratio)
    rivals = len(_rivals(scores))
    configurations = max((len(problem.grid) for problem in scores.headline), default=0)
    searched = configurations * len(scores.suite["tuning_seeds"])
    least, most = (worth(scores.trials(end), len(scores.search)) for end in (own.ratio.high, own.ratio.low))
    each = scores.trials_each(learned)
    return [
        Tile(
            ratio(own.ratio.value),
            "times",
            "the held-out loss of the best tuned schedule of each problem",
            f"95 % interval {_bounds(own.ratio)} over seeds, {_bounds(own.wider)} over problems too; "
            f"IQM {ratio_text(own.middle)}. The best is known in hindsight only: "
            f"{ratio_text(own.foreseen)} beside the one that tuning would have chosen",
        ),
        Tile(
            worth(own.trials, len(scores.search)),
            "trials",
            "of random search are expected to match it",
            f"{least} and {most} at the ends of the interval over seeds; counted on each problem by itself, "
            f"{each.value:.1f} [{each.low:.1f}, {each.high:.1f}] in the geometric mean"
            if each is not None and len(scores.search)
            else "",
        ),
        Tile(
            f"{better} / {len(judged) - better - worse} / {worse}",
            "",
            "problems better / level / worse than best tuned",
        ),
        Tile(f"{own.score:.2f}", "", "AlgoPerf-style score", f"strict target: {own.strict:.2f}"),
        Tile(
            f"{own.rank:.1f}",
            f"of {rivals + 1}",
            "mean rank by final loss",
            "all others tuned or by their own defaults",
        ),
        Tile(str(own.diverged), f"of {own.runs}", "runs diverged"),
        Tile("0", "trials", "spent on tuning it", f"the tuned schedules: {searched:,} runs on each problem"),
    ]


def _sections(scores: Scores, oracle: Mapping[str, Any] | None, folder: str) -> list[Section]:
    made = scores.suite.get("command", "")
    learned = [figures.ratios(scores), figures.breakdown(scores)] if scores.learned and scores.headline else []
    pairs = [curves.curves(scores, problem) for problem in scores.problems.values()]

    def some(*given: Chart | None) -> list[Chart]:
        return [chart for chart in given if chart is not None and (chart.lines or chart.spans)]

    return [
        Section("result", "The result", charts=some(*learned, figures.methods(scores)), command=made),
        Section(
            "table",
            "All methods",
            "Click a heading to sort. Ratios are to the best tuned schedule of each problem.",
            tables=[methods_table(scores), cells_table(scores)],
            command=made,
        ),
        Section(
            "kinds",
            "By kind of problem",
            "Final held-out loss relative to the best tuned schedule of each problem, geometric mean over the problems "
            "of a kind; in brackets relative to the configuration that tuning would have chosen.",
            tables=[table] if (table := kinds_table(scores)).rows else [],
            command=made,
        ),
        Section(
            "speed", "Speed and search", charts=some(figures.profile(scores), figures.search(scores)), command=made
        ),
        Section("curves", "Curves", charts=some(*(c for pair in pairs if pair for c in pair)), command=made),
        Section(
            "sensitivity",
            "Sensitivity",
            _start_words(scores),
            charts=some(curves.rates(scores), *curves.starts(scores)),
            command=made,
        ),
        Section("controls", "Controls", charts=some(*figures.controls(scores)), command=made),
        Section(
            "oracle",
            "Oracle",
            f"{_quadratic(oracle)} {_sentence(oracle.get('what', ''))}" if oracle else "",
            charts=some(*curves.oracle_charts(oracle)) if oracle else [],
            tables=[oracle_table(oracle)] if oracle else [],
            command=f"python -m rlrate.experiments.oracle {folder}",
        ),
        Section(
            "divergences",
            "Divergences",
            f"Runs whose final loss is not finite; each counts as {CAP:,.0f} times the reference.",
            tables=[table] if (table := broken_table(scores)).rows else [],
            command=made,
        ),
    ]


def _quadratic(oracle: Mapping[str, Any]) -> str:
    known = {
        "dimensions": "{} dimensions",
        "condition": "condition number {}",
        "noise": "noise {}",
        "steps": "{} updates",
    }
    parts = [form.format(number(oracle[name])) for name, form in known.items() if name in oracle]
    return f"A noisy quadratic, whose best schedule can be computed ({', '.join(parts)})."


def _sentence(text: str) -> str:
    return text and text[:1].upper() + text[1:].rstrip(".") + "."


def _start_words(scores: Scores) -> str:
    """How much hangs on the start, in one sentence."""
    found = curves.start_losses(scores)
    told = []
    for method, problems in found.items():
        sizes = {len(losses) for losses in problems.values()}
        if len(sizes) == 1:
            factor = sensitivity([list(losses.values()) for losses in problems.values()]).max()
            least = "at least " if factor > 0.99 * CAP else ""
            told.append(f"{least}{number(float(factor))} times as high with {method}")
    if not told:
        return "How much hangs on the learning rate that is given."
    return f"From the worst of the given starts rather than the best, the final loss is {', '.join(told)}."


def _judged(scores: Scores, method: str) -> list[Cell]:
    cells = [scores.cells.get((problem.name, method)) for problem in scores.headline]
    return [cell for cell in cells if cell is not None and cell.ratio is not None]


def _bounds(interval: Interval) -> str:
    return f"[{ratio(interval.low)}, {ratio(interval.high)}]"


def _range(seeds: Sequence[int]) -> str:
    return f"{seeds[0]}..{seeds[-1]}" if len(seeds) > 1 else ", ".join(map(str, seeds))
