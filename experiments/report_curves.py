"""The curves of a report: loss and rate over a run, wrong starts, wrong rates, and the oracle."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.experiments.report_charts import Axis, Chart, Line
from rlrate.experiments.report_figures import slug
from rlrate.experiments.scoring import Scores
from rlrate.experiments.scoring_cells import Problem
from rlrate.experiments.statistics import Array, centre

#: A loss this many times the lowest in a picture leaves it.
_CEILING = 100.0


def curves(scores: Scores, problem: Problem) -> tuple[Chart, Chart] | None:
    """Held-out loss and learning rate of one problem: learned, best tuned, constant, and a self-tuning optimizer."""
    names = [(scores.learned, "learned"), (problem.best, "best")]
    names += [
        ("constant", "constant"),
        *[(m, "fourth") for m in scores.methods if scores.groups[m] == "self-tuning"][:1],
    ]
    shown: dict[str, str] = {}
    for name, colour in names:
        if name is not None and (problem.name, name) in scores.cells and name not in shown:
            shown[name] = colour
    losses, rates = [], []
    for name, colour in reversed(shown.items()):
        traces = [row.curve for row in scores.reported(problem.name, name) if row.curve is not None]
        if not traces:
            continue
        label = name if scores.cells[problem.name, name].peak is None else f"{name}, tuned"
        loss = np.array([trace.heldout_loss for trace in traces])
        losses.append(_banded(label, colour, traces[0].heldout_updates, loss, band=colour in ("learned", "best")))
        if all(trace.rate is not None for trace in traces):
            rate = np.array([trace.rate for trace in traces])
            rates.append(_banded(label, colour, traces[0].updates, rate, band=False))
    if not losses:
        return None
    heroes = np.concatenate([line.y for line in losses if line.role in ("learned", "best")] or [losses[-1].y])
    finite = heroes[np.isfinite(heroes)]
    # Both heroes stay in the picture; a rival that broke need not.
    top = float(finite.max()) * 1.3 if len(finite) else None
    positive = bool(len(finite)) and float(finite.min()) > 0
    stem = slug(problem.name)
    return (
        Chart(
            f"loss-{stem}",
            f"{problem.name}: held-out loss",
            Axis("updates", low=0.0),
            Axis("held-out loss", log=positive, high=top),
            tuple(losses),
            caption="Median over seeds; the bands show the lowest and the highest seed.",
        ),
        Chart(
            f"rate-{stem}",
            f"{problem.name}: learning rate",
            Axis("updates", low=0.0),
            Axis("learning rate", log=True, low=_floor(rates)),
            tuple(rates),
            caption="Median over seeds.",
        ),
    )


def start_losses(scores: Scores) -> dict[str, dict[str, dict[float, float]]]:
    """Final loss, geometric mean over seeds, by method, problem and the learning rate given at the start."""
    losses: dict[tuple[str, str, float], list[float]] = {}
    for row in scores.results.rows:
        if row.role == "start" and row.start is not None:
            losses.setdefault((row.method, row.problem, row.start), []).append(row.heldout_loss)
    found: dict[str, dict[str, dict[float, float]]] = {}
    for (method, problem, start), values in sorted(losses.items()):
        found.setdefault(method, {}).setdefault(problem, {})[start] = centre(np.array(values))
    return found


def starts(scores: Scores) -> Iterator[Chart]:
    """For each problem: the loss after starts that are wrong by orders of magnitude."""
    found = start_losses(scores)
    for problem in scores.problems:
        lines = []
        for method, problems in found.items():
            if problem in problems:
                colour = {scores.learned: "learned", "constant": "constant"}.get(method, "best")
                at = np.array(list(problems[problem]))
                lines.append(Line(method, colour, at, np.array(list(problems[problem].values()))))
        if lines:
            lines.sort(key=lambda line: line.role == "learned")
            yield Chart(
                f"start-{slug(problem)}",
                f"{problem}: a start that is wrong",
                Axis("learning rate given at the start", log=True),
                Axis("final held-out loss", log=True, high=_ceiling(lines)),
                tuple(lines),
                caption="Where a line leaves the picture or breaks off, the runs broke.",
            )


def rates(scores: Scores) -> Chart | None:
    """What a rate that is not the best costs each schedule, from the tuning grid."""
    offsets: dict[str, dict[float, list[float]]] = {}
    for problem in scores.headline:
        for method in dict.fromkeys(name for name, _ in problem.grid):
            part = [
                (rate, value)
                for (name, rate), value in zip(problem.grid, problem.values, strict=True)
                if name == method
            ]
            best_rate, best_value = min(part, key=lambda pair: pair[1])
            for rate, value in part:
                off = round(float(np.log10(rate / best_rate)), 2)
                offsets.setdefault(method, {}).setdefault(off, []).append(float(value - best_value))
    enough = max(1, (len(scores.headline) + 1) // 2)
    ranked = [score.method for score in scores.scores if score.method in offsets]
    chosen = list(dict.fromkeys([*ranked[:1], *(name for name in ("constant", "cosine") if name in offsets)]))
    lines = []
    for method, colour in zip(chosen, ("best", "constant", "fourth"), strict=False):
        kept = sorted(off for off, values in offsets[method].items() if len(values) >= enough)
        if len(kept) > 1:
            y = np.exp([np.median(offsets[method][off]) for off in kept])
            lines.append(Line(method, colour, 10.0 ** np.array(kept), y))
    return (
        Chart(
            "rates",
            "What a wrong rate costs a schedule",
            Axis("peak rate / best peak rate", log=True),
            Axis("loss / at its best rate", log=True, high=_ceiling(lines)),
            tuple(reversed(lines)),
            rule=1.0,
            caption="Tuning runs, median over problems; rates that at least half of the problems have.",
        )
        if lines
        else None
    )


def oracle_charts(oracle: Mapping[str, Any]) -> Iterator[Chart]:
    """The noisy quadratic, whose best schedule is known: rates and expected losses."""
    colours = {"learned": "learned", "optimal": "best", "greedy": "constant", "cosine": "fourth", "constant": "fifth"}
    steps = np.asarray(oracle["updates"], dtype=np.float64)
    for name, field, label in (
        ("oracle-rate", "rate", "learning rate"),
        ("oracle-loss", "expected_loss", "expected loss"),
    ):
        lines = []
        for method, values in oracle["schedules"].items():
            y = np.asarray(values[field], dtype=np.float64)
            at = steps[: len(y)] if len(y) <= len(steps) else np.concatenate([[0.0], steps])[: len(y)]
            at, y = _thin(at, y)
            lines.append(Line(method, colours.get(method, "sixth"), at, y))
        lines.sort(key=lambda line: list(colours).index(line.name) if line.name in colours else 9, reverse=True)
        yield Chart(
            name,
            f"Noisy quadratic: {label}",
            Axis("updates", low=0.0),
            Axis(label, log=True),
            tuple(lines),
            caption="Optimal: by numerical optimisation of the whole schedule. Greedy: the best rate for the next step "
            "only, which lowers the rate too soon.",
        )


def _ceiling(lines: Iterable[Line], cap: float = _CEILING) -> float | None:
    """Top of a loss axis: what is more than ``cap`` times the lowest loss leaves the picture."""
    finite = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.empty(0)])
    positive = finite[finite > 0]
    return float(positive.min()) * cap if len(positive) and positive.max() > positive.min() * cap else None


def _floor(lines: Iterable[Line], decades: float = 4.5) -> float | None:
    """Bottom of an axis for rates: an anneal to nothing must not take up the picture."""
    every = np.concatenate([line.y[np.isfinite(line.y) & (line.y > 0)] for line in lines] or [np.empty(0)])
    floor = float(every.max()) / 10.0**decades if len(every) else 0.0
    return floor if len(every) and every.min() < floor else None


def _banded(name: str, colour: str, at: NDArray[np.int64], values: Array, *, band: bool) -> Line:
    x, middle = np.asarray(at, dtype=np.float64), np.median(values, axis=0)
    with np.errstate(invalid="ignore"):
        ends = (values.min(axis=0), values.max(axis=0)) if band and len(values) > 1 else (None, None)
    return Line(name, colour, x, middle, *ends)


def _thin(x: Array, y: Array, points: int = 120) -> tuple[Array, Array]:
    kept = np.unique(np.linspace(0, len(y) - 1, points).astype(int))
    return x[kept], y[kept]
