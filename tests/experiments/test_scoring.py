"""From rows to scores: a made-up comparison whose outcome can be told beforehand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from simulated import simulated

from rlrate.experiments.scoring import Scores
from rlrate.experiments.store import Curve, Results, Row

UPDATES = np.array([10, 20, 30, 40])
#: Final losses on seeds 1000 and 1001 for each problem, and the reported curve's steps to a loss of 1.
REPORTED = {
    ("p", "cosine"): ([1.0, 4.0], [3.0, 2.0, 1.5, 1.0]),
    ("p", "constant"): ([2.0, 8.0], [3.0, 3.0, 3.0, 2.0]),
    ("p", "learned"): ([0.5, 4.0], [3.0, 1.0, 0.9, 0.5]),
    ("q", "cosine"): ([3.0, 3.0], [9.0, 9.0, 9.0, 3.0]),
    ("q", "constant"): ([1.0, 1.0], [1.5, 1.0, 1.0, 1.0]),
    ("q", "learned"): ([2.0, math.inf], [2.0, 2.0, 2.0, 2.0]),
}
#: Tuning losses on seeds 0 and 1. On p, cosine at 0.1 wins (geometric mean 2); on q, constant at 0.01 (1).
TUNING = {
    ("p", "cosine"): {0.01: [4.0, 4.0], 0.1: [1.0, 4.0]},
    ("p", "constant"): {0.01: [8.0, 8.0], 0.1: [4.0, 4.0]},
    ("q", "cosine"): {0.01: [2.0, 2.0], 0.1: [2.0, math.inf]},
    ("q", "constant"): {0.01: [1.0, 1.0], 0.1: [4.0, 4.0]},
}
PEAKS = {("p", "cosine"): 0.1, ("p", "constant"): 0.1, ("q", "cosine"): 0.01, ("q", "constant"): 0.01}
ANY = simulated(seeds=2, rates=2, problems=1).rows[0]
GROUPS = {"cosine": "schedule", "constant": "schedule", "learned": "learned"}


def row(problem: str, method: str, role: str, seed: int, loss: float, **more: Any) -> Row:
    fields: dict[str, Any] = {"problem": problem, "method": method, "group": GROUPS[method], "role": role, "seed": seed}
    fields |= {"kind": {"q": "other"}.get(problem, "new"), "budget": 2 * (method != "learned" and role == "report")}
    fields |= {"heldout_loss": loss, "diverged": math.isinf(loss), "steps": 40, "updates": 40}
    fields |= {"curve": None, "start": None, "key": f"{problem} {method} {role} {seed} {more}"}
    return replace(ANY, **(fields | more))


def made(kinds: tuple[str, str] = ("new", "other")) -> Results:
    rows = []
    for (problem, method), (losses, held) in REPORTED.items():
        curve = Curve(UPDATES, np.array(held), np.full(4, 0.1), UPDATES, np.array(held))
        for seed, loss in zip((1000, 1001), losses, strict=True):
            rows.append(row(problem, method, "report", seed, loss, curve=curve, peak=PEAKS.get((problem, method))))
    for (problem, method), grid in TUNING.items():
        for peak, losses in grid.items():
            rows += [row(problem, method, "tune", seed, loss, peak=peak) for seed, loss in enumerate(losses)]
    problems = [
        {"name": n, "kind": k, "optimizer": "adam", "steps": 40} for n, k in zip(("p", "q"), kinds, strict=True)
    ]
    methods = {name: {"group": group, "what": ""} for name, group in GROUPS.items()}
    suite = {"name": "made", "seeds": [1000, 1001], "tuning_seeds": [0, 1], "problems": problems, "methods": methods}
    return Results(suite | {"runs": len(rows)}, tuple(rows))


def test_the_reference_is_the_best_of_the_reported_schedules_problem_by_problem() -> None:
    problems = Scores(made()).problems
    assert (problems["p"].best, problems["p"].peak, problems["p"].target) == ("cosine", 0.1, 4.0)
    assert (problems["q"].best, problems["q"].peak, problems["q"].target) == ("constant", 0.01, 1.0)


def test_the_learned_scheduler_on_another_optimizer_is_shown_and_not_ranked() -> None:
    plain = made()
    twice = [replace(r, method="learned-adam", key=r.key + "a") for r in plain.rows if r.method == "learned"]
    # First in the suite, and half the loss.
    methods: dict[str, Any] = {"learned-adam": {"group": "learned", "what": ""}, **plain.suite["methods"]}
    rows = (*plain.rows, *(replace(r, heldout_loss=r.heldout_loss / 2) for r in twice))
    scores = Scores(Results({**plain.suite, "methods": methods}, rows))
    assert scores.learned == "learned" and "learned-adam" in scores.methods
    added, before = scores.score("learned-adam"), Scores(plain)
    assert added.ratio is not None and math.isnan(added.rank) and math.isnan(added.score)
    for method in ("learned", "cosine", "constant"):
        now, then = scores.score(method), before.score(method)
        assert (now.rank, now.score, now.ratio) == (then.rank, then.score, then.ratio)


def test_what_tuning_would_have_chosen_is_told_apart() -> None:
    whole = made()
    rows = [
        replace(r, heldout_loss=0.1) if (r.problem, r.method, r.peak) == ("q", "cosine", 0.1) else r for r in whole.rows
    ]
    scores = Scores(replace(whole, rows=tuple(rows)))
    # Tuning prefers cosine on q now, which ends at 3, while constant ends at 1: the reference stays constant.
    assert (scores.problems["q"].best, scores.problems["q"].chosen) == ("constant", "cosine")
    # Learned beside cosine on both: 0.5, 1 and 2 / 3, 1000 -> capped relative to the reference.
    foreseen = scores.foreseen("learned")
    assert foreseen is not None and foreseen.value == pytest.approx((0.5 * 1 * 2 / 3 * 1000 / 3) ** 0.25)


def test_ratios_are_paired_and_a_diverged_run_counts_a_thousand() -> None:
    scores = Scores(made())
    # Learned on p: 0.5 / 1 and 4 / 4; on q: 2 / 1 and 1000. Geometric means: sqrt(0.5), sqrt(2000).
    assert scores.cells["p", "learned"].ratio is not None
    assert scores.cells["p", "learned"].ratio.value == pytest.approx(math.sqrt(0.5))
    own = scores.score("learned")
    assert own.ratio is not None and own.ratio.value == pytest.approx((0.5 * 1 * 2 * 1000) ** 0.25)
    assert (own.diverged, own.runs, own.problems) == (1, 4, 2)
    assert own.worst is not None and own.worst == pytest.approx(("q", math.sqrt(2000)))
    # Wins one of four, ties with one: 1.5 of 4.
    assert own.wins == pytest.approx(1.5 / 4)
    # Cosine beside learned: on p 1 / 0.5 and 4 / 4; on q 3 / 2 and 3 / 1000.
    against = scores.against("cosine", "learned")
    assert against is not None and against.value == pytest.approx((2 * 1 * 1.5 * 0.003) ** 0.25)


def test_ranks_scores_and_compute_by_hand() -> None:
    scores = Scores(made())
    # Losses on p: learned 1.41, cosine 2, constant 4; on q: constant 1, cosine 3, learned infinite.
    assert [scores.score(m).rank for m in ("learned", "cosine", "constant")] == [2.0, 2.0, 2.0]
    # Steps to 4 * 1.05 on p: 10 for all; to 1 * 1.05 on q: constant 20, others never.
    assert scores.costs["learned"].tolist() == [10.0, math.inf]
    assert scores.costs["constant"].tolist() == [10.0, 20.0]
    assert [scores.score(m).score for m in ("learned", "cosine", "constant")] == pytest.approx([0.5, 0.5, 1.0])
    # Two rates on two tuning seeds, and the run itself.
    assert scores.score("cosine").compute == 5.0 and scores.score("learned").compute == 1.0


def test_the_search_is_over_the_pooled_grid() -> None:
    scores = Scores(made())
    # Log ratios to the best on the tuning seeds, in units of log 2. p: 1 (4*4 beside 1*4), 0, 2, 1; one trial finds 1.
    # q: 1, (log2(2) + log2(1000)) / 2, 0, 2.
    q = (1 + (1 + math.log2(1000)) / 2 + 0 + 2) / 4
    # The tuned schedules on the reported seeds: on p they differ as on the tuning seeds; on q cosine is log2(3) behind
    # instead of 1, so that the grid is moved by half of what is between.
    q_moved = (math.log2(3) - 1) / 2
    assert scores.search[0] / math.log(2) == pytest.approx((1 + q + q_moved) / 2)
    assert scores.search[-1] / math.log(2) == pytest.approx(q_moved / 2)
    assert scores.score("learned").trials == 0.0  # worse than one trial, thanks to the broken run
    assert 1 < scores.score("cosine").trials < 4


def test_trials_are_counted_on_each_problem_too() -> None:
    scores = Scores(made())
    # On p better than all four configurations, which counts as four trials; on q worse than a single one: as one.
    each = scores.trials_each("learned")
    assert each is not None and each.value == pytest.approx(2.0) == scores.score("learned").each
    # Cosine is the best of p's grid. On q it ends log2(3) behind, between one trial and two.
    q, moved = [0, 1, 2, (1 + math.log2(1000)) / 2], (math.log2(3) - 1) / 2
    one, two = sum(q) / 4 + moved, (3 * q[0] + 2 * q[1] + q[2]) / 6 + moved
    on_q = 1 + (one - math.log2(3)) / (one - two)
    each = scores.trials_each("cosine")
    assert each is not None and each.value == pytest.approx(math.sqrt(4 * on_q))
    assert each.low <= each.value <= each.high
    assert Scores(Results(made().suite, ())).trials_each("cosine") is None


def test_a_search_gets_what_its_choice_ends_with_on_the_reported_seeds() -> None:
    plain = made()
    # On p, cosine at 0.1 looks best and constant at 0.1 next, but they end at 4 and 2 times the reference.
    ends = {("p", "cosine", 0.1): 8.0, ("p", "constant", 0.1): 4.0, ("p", "cosine", 0.01): 2.0}
    rows = [
        row(problem, method, "grid", seed, ends.get((problem, method, peak), 2.0), peak=peak)
        for (problem, method), grid in TUNING.items()
        for peak in grid
        for seed in (1000, 1001)
    ]
    scores = Scores(Results(plain.suite, (*plain.rows, *rows)))
    assert scores.search_is_judged and not Scores(plain).search_is_judged
    # The reference of p ends at 1 and 4, on average at 2; that of q at 1. The whole grid chooses what looks best.
    assert scores.search[-1] == pytest.approx((math.log(8 / 2) + math.log(2 / 1)) / 2)
    lacking = Scores(Results(plain.suite, (*plain.rows, *rows[1:])))
    assert not lacking.search_is_judged and lacking.problems["q"].judged
    # A problem that lacks a run is estimated as before.
    assert lacking.problems["p"].values == pytest.approx(Scores(plain).problems["p"].values)


def test_problems_the_controller_was_made_with_are_not_in_the_headline() -> None:
    assert [p.name for p in Scores(made(("selection", "other"))).headline] == ["q"]
    assert [p.name for p in Scores(made(("selection", "train"))).headline] == ["p", "q"]


def test_an_unfinished_comparison_uses_what_is_whole() -> None:
    whole = made()
    rows = tuple(r for r in whole.rows if (r.problem, r.method, r.seed) != ("q", "learned", 1001))
    scores = Scores(replace(whole, rows=rows))
    own = scores.score("learned")
    assert [problem.name for problem in scores.headline] == ["p"] and own.problems == 1
    assert own.ratio is not None and own.ratio.value == pytest.approx(math.sqrt(0.5))
    nothing = Scores(replace(whole, rows=rows[:1]))
    assert nothing.headline == () and nothing.scores == () and nothing.learned is None


def test_losses_without_a_sign_have_no_ratio() -> None:
    whole = made()
    rows = tuple(replace(r, heldout_loss=r.heldout_loss - 5) if r.problem == "p" else r for r in whole.rows)
    scores = Scores(replace(whole, rows=rows))
    assert [p.name for p in scores.headline] == ["q"]
    assert scores.cells["p", "learned"].ratio is None and scores.cells["p", "learned"].loss == pytest.approx(-2.75)


def test_the_order_of_rows_does_not_matter() -> None:
    results = simulated(seeds=3, rates=3)
    turned = replace(results, rows=results.rows[::-1])
    assert Scores(turned).scores == Scores(results).scores
