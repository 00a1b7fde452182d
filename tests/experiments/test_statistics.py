"""Statistics of a comparison: answers worked out by hand, intervals on simulated data, and laws that always hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlrate.experiments.statistics import (
    Statistic,
    clustered_interval,
    equivalent_trials,
    expected_best,
    interval_by_workload,
    iqm,
    log_ratios,
    mean,
    paired_difference,
    performance_profile,
    performance_ratios,
    profile_score,
    sensitivity,
    steps_to_target,
    stratified_interval,
    win_rate,
)

INF, NAN = math.inf, math.nan

positive = st.floats(1e-6, 1e6)
costs = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=positive | st.just(INF))


def test_ratios_of_losses() -> None:
    logs = log_ratios([2.0, 1.0, 8.0], [1.0, 4.0, 8.0])
    assert np.exp(logs).tolist() == pytest.approx([2.0, 0.25, 1.0])
    assert math.exp(mean(logs)) == pytest.approx(0.5 ** (1 / 3))


def test_ratios_where_runs_diverged_or_losses_have_no_sign() -> None:
    ratios = np.exp(log_ratios([INF, 1.0, INF, NAN, 1e9], [1.0, INF, INF, 2.0, 1.0]))
    assert ratios.tolist() == pytest.approx([1e3, 1e-3, 1.0, 1e3, 1e3])
    assert np.isnan(log_ratios([-1.0, 0.0, 1.0], [1.0, 1.0, -2.0])).all()


def test_the_interquartile_mean_ignores_the_outer_quarters() -> None:
    # Eight values: two from each end go, and (3 + 4 + 5 + 6) / 4 = 4.5 stays.
    assert float(iqm([1, 2, 3, 4, 5, 6, 7, 1000])) == pytest.approx(4.5)
    assert iqm([[1, 2, 3, 1000], [0, 2, 2, 2]], axis=1).tolist() == pytest.approx([2.5, 2.0])


def test_an_interval_without_spread_is_a_point() -> None:
    assert stratified_interval(np.full((3, 4), 0.7)) == pytest.approx((0.7, 0.7, 0.7))
    # Workloads that differ, seeds that do not: redrawing seeds changes nothing, redrawing workloads does.
    values = np.array([[0.0] * 4, [1.0] * 4])
    assert stratified_interval(values) == pytest.approx((0.5, 0.5, 0.5))
    assert clustered_interval(values) == pytest.approx((0.5, 0.5 - math.sqrt(0.5), 0.5 + math.sqrt(0.5)))
    assert stratified_interval(np.array([[1.0], [3.0]])) == pytest.approx((2.0, 2.0, 2.0))


def test_the_interval_of_two_seeds_is_known() -> None:
    # One workload, values 0 and 1: the resampled mean is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4; and sqrt(2 / 1).
    values = np.array([[0.0, 1.0]])
    assert stratified_interval(values) == pytest.approx((0.5, 0.5 - math.sqrt(0.5), 0.5 + math.sqrt(0.5)))
    assert stratified_interval(values, level=0.4) == pytest.approx((0.5, 0.5, 0.5))


def test_an_interval_of_the_mean_by_workload_is_the_stratified_one() -> None:
    values = np.random.default_rng(0).normal(size=(7, 5))
    one, other = interval_by_workload(values, lambda means: float(means.mean())), stratified_interval(values)
    assert one.value == pytest.approx(other.value) and one == pytest.approx(other, abs=0.03)
    # A statistic that looks at one workload varies as that workload's mean does.
    first = interval_by_workload(values, lambda means: float(means[0]))
    assert first == pytest.approx(stratified_interval(values[:1]), abs=0.08)


def by_mean(values: np.ndarray) -> object:
    return interval_by_workload(values, lambda means: float(means.mean()))


@pytest.mark.parametrize("values", [np.array([[1.0, INF]]), np.array([[NAN]]), np.empty((0, 3)), np.ones(3)])
@pytest.mark.parametrize("interval", [stratified_interval, clustered_interval, by_mean])
def test_an_interval_of_nothing_is_refused(interval: object, values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite values"):
        interval(values)  # type: ignore[operator]


@pytest.mark.parametrize("statistic", [mean, iqm])
@pytest.mark.parametrize("seeds", [5, 10])
def test_the_stratified_interval_covers_the_truth(statistic: Statistic, seeds: int) -> None:
    """Called 95 %, it covers 93 to 95 % with five seeds; without the widening, 90 to 91 %."""
    rng = np.random.default_rng(1)
    # Symmetric about 0.4 within and between workloads, so that mean and IQM are both 0.4 in truth.
    truths = 0.4 + np.linspace(-1.0, 1.0, 8)[:, None] * (0.0 if statistic is iqm else 1.0)
    covered = 0
    for _ in range(250):
        interval = stratified_interval(truths + rng.normal(0, 0.3, (8, seeds)), statistic, draws=400)
        covered += interval.low <= 0.4 <= interval.high
    assert 0.91 <= covered / 250 <= 0.975


def test_the_clustered_interval_covers_the_mean_of_all_workloads() -> None:
    rng = np.random.default_rng(3)
    clustered = stratified = 0
    for _ in range(200):
        values = rng.normal(0.0, 1.0, (20, 1)) + rng.normal(0, 0.2, (20, 5))
        wide, narrow = clustered_interval(values, draws=400), stratified_interval(values, draws=400)
        clustered += wide.low <= 0 <= wide.high
        stratified += narrow.low <= 0 <= narrow.high
    assert 0.88 <= clustered / 200 <= 0.985
    assert stratified / 200 < 0.6, "intervals over seeds must not be read as intervals over workloads"


def test_paired_differences_see_through_the_noise_that_pairs_share() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 5, (4, 6))
    one, other = shared + 0.1, shared + rng.normal(0, 0.01, (4, 6))
    paired = paired_difference(one, other)
    assert paired.value == pytest.approx(float((one - other).mean()))
    assert 0.08 < paired.low < paired.value < paired.high < 0.12
    unpaired = stratified_interval(one)
    assert unpaired.high - unpaired.low > 20 * (paired.high - paired.low)


def test_win_rate() -> None:
    assert win_rate(np.array([[1.0, 2.0], [3.0, INF]]), np.array([[2.0, 2.0], [1.0, INF]])) == pytest.approx(0.5)


def test_steps_to_a_target() -> None:
    updates = np.array([10, 20, 30, 40])
    curve = np.array([4.0, NAN, 1.0, 2.0])
    assert steps_to_target(updates, curve, 4.0) == 10
    assert steps_to_target(updates, curve, 2.0) == 30
    assert steps_to_target(updates, curve, 0.5) == INF


# Steps of three methods on four workloads. Lowest: 10, 20, 30, and nobody on the last.
#   a: ratios 1, 2, 1, inf     b: 2, 1, inf, inf     c: 3, 4, 5, inf
COSTS = np.array([[10, 40, 30, INF], [20, 20, INF, INF], [30, 80, 150, INF]])


def test_performance_profile_by_hand() -> None:
    assert performance_ratios(COSTS).tolist() == [[1, 2, 1, INF], [2, 1, INF, INF], [3, 4, 5, INF]]
    profile = performance_profile(COSTS, [1, 1.99, 2, 3, 4, 1e9])
    assert profile.tolist() == [
        [0.5, 0.5, 0.75, 0.75, 0.75, 0.75],
        [0.25, 0.25, 0.5, 0.5, 0.5, 0.5],
        [0.0, 0.0, 0.0, 0.25, 0.5, 0.75],
    ]


def test_algoperf_score_by_hand() -> None:
    # (4 - ratio) / 3, summed over the workloads and divided by four.
    #   a: (3 + 2 + 3 + 0) / 3 / 4     b: (2 + 3 + 0 + 0) / 3 / 4     c: (1 + 0 + 0 + 0) / 3 / 4
    assert profile_score(COSTS).tolist() == pytest.approx([8 / 12, 5 / 12, 1 / 12])
    assert profile_score([[7.0, 3.0]]).tolist() == [1.0]
    assert profile_score([[INF, INF], [1.0, 1.0]]).tolist() == [0.0, 1.0]


def test_the_score_is_the_area_under_the_profile() -> None:
    ratios = np.linspace(1, 4, 30_001)
    profile = performance_profile(COSTS, ratios)
    np.testing.assert_allclose(profile_score(COSTS), profile[:, :-1].mean(axis=1), atol=1e-4)


@given(costs, st.floats(1e-3, 1e3), st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_units_or_order(values: np.ndarray, scale: float, random: object) -> None:
    score = profile_score(values)
    assert ((score >= 0) & (score <= 1 + 1e-12)).all()
    np.testing.assert_allclose(profile_score(values * scale), score, atol=1e-9)
    scales = np.random.default_rng(0).uniform(0.1, 10, values.shape[1])
    np.testing.assert_allclose(profile_score(values * scales), score, atol=1e-9)
    rows = list(range(len(values)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    np.testing.assert_allclose(profile_score(values[rows][:, ::-1]), score[rows], atol=1e-9)


@given(costs)
def test_profiles_rise_and_being_faster_never_costs(values: np.ndarray) -> None:
    profile = performance_profile(values, [1, 1.5, 2, 4, 8, 1e12])
    assert (np.diff(profile, axis=1) >= 0).all()
    faster = values.copy()
    faster[0] /= 2
    assert profile_score(faster)[0] >= profile_score(values)[0] - 1e-12
    assert (profile_score(faster)[1:] <= profile_score(values)[1:] + 1e-12).all()


def test_expected_best_by_hand() -> None:
    # Of {1, 2, 6}: one draw (1 + 2 + 6) / 3 = 3; two: pairs 12, 16, 26 give (1 + 1 + 2) / 3; all three: 1.
    assert expected_best([6.0, 1.0, 2.0]).tolist() == pytest.approx([3.0, 4 / 3, 1.0])
    # Chosen by other values: the best by choice is worth 5, then 1, then 3. Pairs: 5, 5, 1.
    assert expected_best([1.0, 3.0, 5.0], [2.0, 3.0, 1.0]).tolist() == pytest.approx([3.0, 11 / 3, 5.0])


@given(arrays(np.float64, st.integers(1, 6), elements=st.floats(-5, 5)))
def test_expected_best_equals_trying_all_subsets(values: np.ndarray) -> None:
    found = expected_best(values)
    for k in range(1, len(values) + 1):
        best = [min(subset) for subset in itertools.combinations(values.tolist(), k)]
        assert found[k - 1] == pytest.approx(sum(best) / len(best), abs=1e-9)
    assert (np.diff(found) <= 1e-9).all()
    np.testing.assert_allclose(expected_best(values[::-1]), found, atol=1e-9)
    np.testing.assert_allclose(expected_best(values[:, None].repeat(2, 1))[:, 1], found, atol=1e-9)


def test_expected_best_of_a_large_grid_is_exact() -> None:
    # The minimum of k of the numbers 1 .. n, drawn without replacement, is (n + 1) / (k + 1) on average.
    found = expected_best(np.arange(1.0, 154.0))
    np.testing.assert_allclose(found, 154 / (np.arange(1, 154) + 1), rtol=1e-12)


def test_equivalent_trials_by_hand() -> None:
    found = [3.0, 2.0, 1.0]
    assert equivalent_trials(found, 2.0) == 2.0
    assert equivalent_trials(found, 2.5) == pytest.approx(1.5)
    assert equivalent_trials(found, 1.0) == 3.0
    assert equivalent_trials(found, 0.9) == INF
    assert equivalent_trials(found, 3.0) == 1.0
    assert equivalent_trials(found, 3.1) == 0.0
    assert equivalent_trials([2.0, 2.0, 2.0], 2.0) == 1.0


@given(arrays(np.float64, st.integers(2, 12), elements=st.floats(-3, 3)), st.floats(-3, 3), st.floats(0, 2))
def test_a_better_method_is_worth_no_fewer_trials(values: np.ndarray, value: float, gain: float) -> None:
    found = expected_best(values)
    assert equivalent_trials(found, value - gain) >= equivalent_trials(found, value) - 1e-6
    assert equivalent_trials(found, float(values.min())) <= len(values)
    assert equivalent_trials(found, float(values.min()) - 1e-3) == INF


def test_sensitivity_to_the_start() -> None:
    # Second start best on both; the first costs 2x and 8x: 4x on the geometric mean; the third broke: 1000x.
    losses = [[2.0, 1.0, INF], [8.0, 1.0, INF]]
    assert sensitivity(losses).tolist() == pytest.approx([4.0, 1.0, 1000.0])


@given(
    arrays(np.float64, (3, 4), elements=st.floats(0.01, 100)),
    arrays(np.float64, (3, 4), elements=st.floats(0.01, 100)),
    st.floats(1e-3, 1e3),
)
def test_ratios_do_not_depend_on_units_and_turn_over(one: np.ndarray, other: np.ndarray, scale: float) -> None:
    logs = log_ratios(one, other, cap=1e9)
    np.testing.assert_allclose(log_ratios(one * scale, other * scale, cap=1e9), logs, atol=1e-9)
    np.testing.assert_allclose(log_ratios(other, one, cap=1e9), -logs, atol=1e-9)


@given(arrays(np.float64, (3, 5), elements=st.floats(-2, 2)), st.floats(-3, 3))
def test_intervals_move_with_the_data(values: np.ndarray, shift: float) -> None:
    for statistic in (mean, iqm):
        before = stratified_interval(values, statistic, draws=60)
        after = stratified_interval(values + shift, statistic, draws=60)
        np.testing.assert_allclose(np.array(after) - shift, before, atol=1e-6)
        assert before.low <= before.high
    turned = clustered_interval(-values, draws=60)
    np.testing.assert_allclose(turned.value, -clustered_interval(values, draws=60).value, atol=1e-9)
