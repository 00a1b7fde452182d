"""The oracle is right where the answer is known, and shows the short-horizon bias."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rlrate import Controller
from rlrate.envs import make_workload
from rlrate.envs.workloads.quadratic import QuadraticWorkload
from rlrate.errors import ConfigError
from rlrate.experiments.oracle import NoisyQuadratic, greedy_schedule, optimal_schedule, oracle, save_oracle

ONE = NoisyQuadratic(np.array([2.0]), np.array([0.5]), np.array([4.0]))


def test_in_one_dimension_greedy_is_optimal_and_known() -> None:
    """There a h = m / (m + v), the Kalman gain, and 1 / m grows by 1 / v at each update."""
    rates = greedy_schedule(ONE, 20)
    moments = 1.0 / (1 / 4.0 + np.arange(21) / 0.5)
    np.testing.assert_allclose(rates, moments[:-1] / (moments[:-1] + 0.5) / 2.0)
    np.testing.assert_allclose(ONE.losses(rates), moments)  # the curvature is 2, so half of it is 1
    np.testing.assert_allclose(ONE.losses(optimal_schedule(ONE, 20))[-1], moments[-1], rtol=1e-5)


def test_the_gradient_is_that_of_the_final_loss() -> None:
    workload = make_workload("quadratic-20", 0)
    assert isinstance(workload, QuadraticWorkload)
    problem = NoisyQuadratic.of(workload)
    rates = np.geomspace(0.5, 0.05, 12)
    loss, slope = problem.gradient(rates)
    assert loss == problem.losses(rates)[-1]
    for index in (0, 5, 11):
        moved = rates.copy()
        moved[index] += 1e-6
        assert (problem.losses(moved)[-1] - loss) / 1e-6 == pytest.approx(slope[index], rel=1e-3)


def test_the_best_schedule_is_best_the_greedy_one_far_behind_and_the_closed_form_is_what_happens(
    tmp_path: Path,
) -> None:
    controller = Controller.constant(0.4)
    path = save_oracle(tmp_path, controller, steps=10, seeds=1)
    record = json.loads(path.read_text())
    small = oracle(controller, steps=150, seeds=48)["schedules"]
    assert set(record["schedules"]) == set(small) == {"optimal", "greedy", "cosine", "constant", "learned"}
    finals = {name: entry["final"] for name, entry in small.items()}
    assert min(finals, key=finals.__getitem__) == "optimal"
    assert finals["greedy"] > 3 * finals["optimal"], "short-horizon bias"
    assert len(small["optimal"]["rate"]) == 150 and len(small["optimal"]["expected_loss"]) == 151
    early = {name: entry["expected_loss"][5] for name, entry in small.items()}
    assert min(early, key=early.__getitem__) == "greedy"
    for name in ("greedy", "cosine", "constant"):
        assert small[name]["measured"] == pytest.approx(small[name]["final"], rel=0.25), name
    before = path.stat().st_mtime_ns
    assert save_oracle(tmp_path, controller).stat().st_mtime_ns == before


def test_other_workloads_have_no_oracle() -> None:
    with pytest.raises(ConfigError, match="wine-mlp is no noisy quadratic"):
        oracle(Controller.constant(), workload="wine-mlp")
