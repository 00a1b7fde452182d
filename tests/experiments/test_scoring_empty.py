"""Scores of comparisons in which something is missing, or from which nothing can be said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated import simulated

from rlrate.experiments.scoring import Scores
from rlrate.experiments.statistics import bootstrap
from rlrate.experiments.store import Results


def without(results: Results, *methods: str) -> Results:
    return replace(results, rows=tuple(row for row in results.rows if row.method not in methods))


def test_methods_without_runs_have_no_ratio() -> None:
    whole = simulated(seeds=2, rates=2, problems=2)
    learned = Scores(whole).learned
    assert learned is not None
    other = next(name for name in Scores(whole).methods if name != learned)
    assert Scores(whole).against(learned, other) is not None and Scores(whole).foreseen(learned) is not None
    scores = Scores(without(whole, learned))
    assert scores.learned is None
    assert scores.against(learned, other) is None
    assert scores.foreseen(learned) is None


def test_a_comparison_of_controls_alone_has_no_scores() -> None:
    whole = simulated(seeds=2, rates=2, problems=2)
    controls = {name: {**about, "group": "control"} for name, about in whole.suite["methods"].items()}
    scores = Scores(replace(whole, suite={**whole.suite, "methods": controls}))
    assert scores.headline == () and all(score.ratio is None for score in scores.scores)
    assert all(np.isnan(score.score) or score.score == 0 for score in scores.scores)


def test_a_bootstrap_interval_is_around_the_geometric_mean() -> None:
    logs = np.log(np.array([1.0, 2.0, 4.0, 2.0, 1.0, 4.0]))
    low, high = bootstrap(logs)
    assert 1.0 < low < 2.0 < high < 4.0
    assert bootstrap(np.zeros(3)) == (1.0, 1.0)
    narrow, wide = bootstrap(logs, level=0.5), bootstrap(logs, level=0.99)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    low, high = bootstrap(np.array([0.0, np.inf]))
    assert np.isnan(low) and high == pytest.approx(np.inf)
