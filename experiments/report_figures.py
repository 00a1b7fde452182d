"""The figures of a report: which lines and intervals of a comparison stand beside each other."""

from __future__ import annotations

import re

import numpy as np

from rlrate.experiments.report_charts import Axis, Chart, Line, Span, number
from rlrate.experiments.scoring import Scores
from rlrate.experiments.scoring_cells import SLACK
from rlrate.experiments.statistics import MAX_RATIO, performance_profile

_MORE = ("constant", "fourth", "fifth", "sixth")
RATIO = "held-out loss / best tuned"


def role(scores: Scores, method: str) -> str:
    """The colour of a method among many: the learned one and the tuned ones stand out."""
    group = scores.groups[method]
    if group == "learned":
        return "learned"
    known = {"schedule": "best", "control": "other", "default": "constant", "self-tuning": "fourth"}
    return known.get(group, "fifth")


def ratios(scores: Scores) -> Chart:
    """The learned scheduler against the best tuned schedule, problem by problem."""
    learned = scores.learned
    assert learned is not None
    cells = [scores.cells[p.name, learned] for p in scores.headline if (p.name, learned) in scores.cells]
    spans = [
        Span(
            cell.problem,
            "learned",
            cell.ratio,
            f"best tuned: {scores.problems[cell.problem].best} at {number(scores.problems[cell.problem].peak or 0)}",
        )
        for cell in sorted(cells, key=lambda cell: cell.ratio.value if cell.ratio else 0)
        if cell.ratio is not None
    ]
    total = scores.score(learned).ratio
    if total is not None and len(spans) > 1:
        spans.append(Span(f"all {len(spans)}", "learned", total))
    return Chart(
        "ratios",
        "The learned scheduler, problem by problem",
        Axis(RATIO, log=True),
        spans=tuple(spans),
        rule=1.0,
        caption="Left of the line the learned scheduler is better than the best tuned schedule, right of it worse. "
        "Geometric mean over paired seeds with its 95 % interval.",
    )


def methods(scores: Scores) -> Chart:
    """All methods, best first."""
    spans = [
        Span(score.method, role(scores, score.method), score.ratio, f"{score.group}; {trials(score.budget)}")
        for score in scores.scores
        if score.ratio is not None and score.group != "control"
    ]
    ranked = sorted(scores.scores, key=lambda score: score.group != "learned")
    groups = {role(scores, score.method): score.group for score in ranked if score.group != "control"}
    named = {"schedule": "schedules, tuned", "default": "defaults", "search": "searching"}
    return Chart(
        "methods",
        "All methods, over all problems",
        Axis(RATIO, log=True),
        spans=tuple(spans),
        key=tuple((colour, named.get(group, group)) for colour, group in groups.items()),
        rule=1.0,
        caption="A schedule stands at the rate that tuning chose for it; the line is the best one of each problem, "
        "another one on each. A run that diverged counts as a thousand times worse.",
    )


def breakdown(scores: Scores) -> Chart | None:
    """The learned scheduler by kind of problem and by optimizer; None where neither groups the problems."""
    learned = scores.learned
    assert learned is not None
    judged = [problem for problem in scores.problems.values() if problem.best is not None]
    spans = []
    for field in ("kind", "optimizer"):
        names = list(dict.fromkeys(getattr(problem, field) for problem in judged))
        for name in names if 1 < len(names) < len(judged) else ():
            part = [problem for problem in judged if getattr(problem, field) == name]
            interval = scores.ratio(learned, part)
            if interval is not None:
                spans.append(Span(f"{name} ({len(part)})", "learned", interval, f"{len(part)} problems"))
    return (
        Chart(
            "breakdown",
            "By kind of problem and by optimizer",
            Axis(RATIO, log=True),
            spans=tuple(spans),
            rule=1.0,
            caption="In brackets, the number of problems.",
        )
        if spans
        else None
    )


def controls(scores: Scores) -> list[Chart]:
    """The controls that take the learned scheduler's feedback away: beside the best tuned, and beside itself."""
    learned, names = scores.learned, [name for name in scores.methods if scores.groups[name] == "control"]
    if learned is None or not names:
        return []
    what = {name: scores.suite["methods"][name].get("what", "") for name in scores.methods}
    beside = [(name, scores.score(name).ratio) for name in (learned, *names)]
    paired = [(name, scores.against(name, learned)) for name in names]
    return [
        Chart(
            "controls",
            "Does the feedback matter?",
            Axis(RATIO, log=True),
            spans=tuple(Span(name, role(scores, name), each, what[name]) for name, each in beside if each),
            rule=1.0,
            caption="Its mean action at each moment over the training part (open-loop); of its runs of this very "
            "problem the mean rate, replayed (replay), and the mean of all it saw but the clock (time-only); random "
            "decisions (random), and none (hold).",
        ),
        Chart(
            "controls-paired",
            "Controls beside the learned scheduler",
            Axis("held-out loss / learned", log=True),
            spans=tuple(Span(name, "other", each, what[name]) for name, each in paired if each),
            rule=1.0,
            caption="Run by run on the same seeds. A control that is not clearly right of the line shows that the "
            "feedback is idle.",
        ),
    ]


def profile(scores: Scores) -> Chart | None:
    """Performance profile over the steps to the target, for the methods worth comparing."""
    field = list(scores.field)
    if not scores.headline or not field:
        return None
    at = np.linspace(1.0, MAX_RATIO, 121)
    shares = performance_profile(np.array([scores.costs[method] for method in field]), at)
    chosen = _contenders(scores)
    lines = [Line(method, colour, at, shares[field.index(method)], stairs=True) for method, colour in reversed(chosen)]
    return Chart(
        "profile",
        "Performance profile: steps to the tuned baseline's loss",
        Axis("steps / fewest steps of any method", low=1.0, high=MAX_RATIO),
        Axis("share of the problems", low=0.0, high=1.02),
        tuple(lines),
        caption=f"Target: within {SLACK:.0%} of the best tuned schedule's final held-out loss. The higher, the "
        "better; the height at 1 is the share of problems on which a method is the first. The area under the line is "
        "the score.",
    )


def _contenders(scores: Scores) -> list[tuple[str, str]]:
    """Learned, the best tuned schedules, and the best of each other group, with colours that differ."""
    ranked = sorted(scores.scores, key=lambda s: -s.score if s.score == s.score else 1)
    names = [s.method for s in ranked if s.group == "schedule"][:3]
    for group in ("self-tuning", "default", "search"):
        names += [s.method for s in ranked if s.group == group][:1]
    names = [name for name in names if name != scores.learned][:5]
    learned = [(scores.learned, "learned")] if scores.learned else []
    return learned + list(zip(names, ("best", *_MORE), strict=False))


def search(scores: Scores) -> Chart | None:
    """What random search over the grid finds, beside the learned scheduler, which searches nothing."""
    found = scores.search
    if len(found) < 2:
        return None
    k = np.arange(1, len(found) + 1, dtype=np.float64)
    lines = [Line("random search of the grid", "best", k, np.exp(found))]
    if scores.learned is not None and (interval := scores.score(scores.learned).ratio) is not None:
        level = [np.full(len(k), value) for value in interval]
        lines.append(Line("learned, no search", "learned", k, level[0], level[1], level[2]))
    return Chart(
        "search",
        "How much search is it worth?",
        Axis("trials (configurations tried on each problem)", log=True),
        Axis(RATIO, log=True),
        tuple(lines),
        rule=1.0,
        caption=f"Expected result of the best of k schedules and rates, drawn from a grid of {len(k)} without "
        "replacement. Where the lines cross is the number of trials that the learned scheduler is worth. The search "
        + (
            "chooses by the tuning seeds and is judged on the reported ones."
            if scores.search_is_judged
            else "chooses by the tuning seeds; what it gets is estimated from them too."
        ),
    )


def trials(budget: int) -> str:
    """A tuning budget in words."""
    return {0: "no tuning", 1: "one trial"}.get(budget, f"best of {budget} rates")


def slug(name: str) -> str:
    """A name for files and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
