"""Observations are finite, without a unit, and the same for a run alone and among others."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rlrate.control import LIMIT, SIGNALS, Interval, Signals
from rlrate.control.trend import LossTrend
from rlrate.errors import ConfigError

EXTREME = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e38, -1e38, 1e-45, 5e-324, 1.7e308, -1.7e308, 1.0, -1.0]
anything = st.sampled_from(EXTREME) | st.floats()
ARRAYS = [
    f.name for f in fields(Interval) if f.name not in ("progress", "decisions", "updates", "samples", "done", "total")
]


@st.composite
def wild(draw: st.DrawFn, runs: int) -> Interval:
    """An interval that holds any floats at all."""
    per_run = arrays.arrays(np.float64, runs, elements=anything)
    return Interval(
        progress=draw(st.floats(0, 1)),
        decisions=draw(st.integers(0, 1000)),
        updates=draw(st.integers(0, 10_000_000)),
        samples=draw(arrays.arrays(np.float64, (draw(st.integers(0, 4)), 7, runs), elements=anything)),
        done=draw(st.integers(0, 10_000_000)),
        total=draw(st.none() | st.integers(1, 10_000_000)),
        **{name: draw(per_run) for name in ARRAYS},
    )


@st.composite
def tame(draw: st.DrawFn, runs: int) -> Interval:
    """An interval as training leaves it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples = rng.uniform(0.1, 10.0, (int(rng.integers(1, 5)), 7, runs))
    samples[0, 1:3] = np.nan
    return Interval(
        progress=float(rng.random()),
        decisions=int(rng.integers(0, 40)),
        updates=int(rng.integers(1, 1000)),
        loss=np.exp(rng.normal(size=runs)),
        noise=np.exp(rng.normal(size=runs)) * 0.1,
        slope=rng.normal(size=runs),
        samples=samples,
        update_ratio=10 ** rng.uniform(-6, -1, runs),
        layer_ratio=10 ** rng.uniform(-6, -1, runs),
        rate_initial=rng.normal(size=runs),
        action=rng.uniform(-1, 1, runs),
        cuts=rng.integers(0, 4, runs).astype(float),
        capped=rng.integers(0, 2, runs).astype(float),
        validation=np.where(rng.random(runs) < 0.3, np.nan, np.exp(rng.normal(size=runs))),
        adaptive=rng.integers(0, 2, runs).astype(float),
        momentum=rng.uniform(0.0, 1.0, runs),
        epoch=np.where(rng.random(runs) < 0.3, np.nan, rng.integers(1, 1000, runs).astype(float)),
        done=int(rng.integers(0, 10_000)),
        total=None if rng.random() < 0.3 else int(rng.integers(1, 10_000)),
    )


@given(st.integers(1, 3).flatmap(lambda n: st.lists(wild(n), min_size=1, max_size=4)))
def test_observations_are_finite_and_bounded_whatever_happens(intervals: list[Interval]) -> None:
    runs = len(intervals[0].loss)
    signals = Signals(tuple(SIGNALS), runs)
    for interval in intervals:
        observation = signals.observe(interval)
        assert observation.shape == (runs, len(SIGNALS))
        assert observation.dtype == np.float32
        assert np.isfinite(observation).all()
        assert (np.abs(observation) <= LIMIT).all()


#: Powers of a unit in the columns gg, gp, pp, uu, ww, gu, layer: of the loss, and of the weights.
OF_LOSS = np.array([2, 2, 2, 0, 0, 1, 0])[:, None]
OF_WEIGHTS = np.array([-2, -2, -2, 2, 2, 0, 0])[:, None]


def rescaled(interval: Interval, unit: float) -> Interval:
    """The same interval with the loss in another unit, and so its gradient."""
    samples = interval.samples * unit**OF_LOSS
    scaled = {name: getattr(interval, name) * unit for name in ("loss", "noise", "validation")}
    return replace(interval, samples=samples, **scaled)


@settings(max_examples=50)
@given(st.lists(tame(2), min_size=1, max_size=4), st.floats(1e-6, 1e6))
def test_the_unit_of_the_loss_does_not_matter(intervals: list[Interval], unit: float) -> None:
    plain, scaled = Signals(tuple(SIGNALS), 2), Signals(tuple(SIGNALS), 2)
    for interval in intervals:
        np.testing.assert_allclose(scaled.observe(rescaled(interval, unit)), plain.observe(interval), atol=1e-5)


@settings(max_examples=50)
@given(st.lists(tame(2), min_size=1, max_size=4), st.floats(1e-6, 1e6))
def test_neither_does_it_for_losses_of_any_sign(intervals: list[Interval], unit: float) -> None:
    plain, scaled = Signals(tuple(SIGNALS), 2), Signals(tuple(SIGNALS), 2)
    intervals = [replace(intervals[0], loss=-intervals[0].loss), *intervals]
    for interval in intervals:
        np.testing.assert_allclose(scaled.observe(rescaled(interval, unit)), plain.observe(interval), atol=1e-4)


@settings(max_examples=50)
@given(st.lists(tame(2), min_size=1, max_size=4), st.floats(1e-6, 1e6))
def test_the_unit_of_the_weights_does_not_matter(intervals: list[Interval], unit: float) -> None:
    plain, scaled = Signals(tuple(SIGNALS), 2), Signals(tuple(SIGNALS), 2)
    for interval in intervals:
        other = replace(interval, samples=interval.samples * unit**OF_WEIGHTS)
        np.testing.assert_allclose(scaled.observe(other), plain.observe(interval), atol=1e-5)


@settings(max_examples=50)
@given(st.lists(wild(3) | tame(3), min_size=1, max_size=4))
def test_runs_together_equal_each_alone(intervals: list[Interval]) -> None:
    together = Signals(tuple(SIGNALS), 3)
    seen = [together.observe(interval) for interval in intervals]
    for run in range(3):
        alone = Signals(tuple(SIGNALS))
        for interval, expected in zip(intervals, seen, strict=True):
            parts = {name: getattr(interval, name)[run : run + 1] for name in ARRAYS}
            own = replace(interval, samples=interval.samples[:, :, run : run + 1], **parts)
            np.testing.assert_array_equal(alone.observe(own)[0], expected[run])


def one(**changes: object) -> Interval:
    """A first interval with round numbers."""
    samples = np.full((1, 7, 1), np.nan)
    samples[0, :, 0] = [4.0, np.nan, np.nan, 1.0, 1.0, 2.0, 0.01]
    first = Interval(
        progress=0.1,
        decisions=0,
        updates=10,
        loss=np.array([2.0]),
        noise=np.array([0.2]),
        slope=np.array([0.0]),
        samples=samples,
        update_ratio=np.array([1e-3]),
        layer_ratio=np.array([1e-3]),
        rate_initial=np.array([0.0]),
        action=np.array([0.0]),
        cuts=np.array([0.0]),
        capped=np.array([0.0]),
        validation=np.array([3.0]),
        adaptive=np.array([0.0]),
        momentum=np.array([0.0]),
        epoch=np.array([25.0]),
    )
    arrays_ = {name: np.array([value]) if name in ARRAYS else value for name, value in changes.items()}
    return replace(first, **arrays_)  # type: ignore[arg-type]


def second() -> Interval:
    """An interval that is worked out by hand below."""
    samples = np.zeros((2, 7, 1))
    samples[0, :, 0] = [16.0, np.nan, np.nan, 1.0, 1.0, 4.0, 0.01]
    samples[1, :, 0] = [64.0, 16.0, 16.0, 1.0, 1.0, 4.0, 0.01]
    return one(
        progress=0.5,
        decisions=5,
        updates=100,
        loss=1.0,
        noise=0.1,
        slope=4.0,
        samples=samples,
        update_ratio=1e-2,
        layer_ratio=1e-1,
        rate_initial=math.log(10.0),
        action=0.5,
        cuts=3.0,
        capped=1.0,
        validation=6.0,
        adaptive=1.0,
        momentum=0.9,
        done=75,
        total=2500,
    )


LOG2 = math.log(2.0)
KNOWN = {
    "progress": 0.5,
    "youth": math.exp(-1),
    "interval": 2 / 3,
    "loss_known": 1.0,
    "loss_initial": -math.log(1 + LOG2),
    "loss_previous": -math.log(1 + 10 * LOG2),
    "loss_fast": -math.log(1 + 10 * LOG2),
    "loss_slow": -math.log(1 + 5 * LOG2),
    "loss_best": -math.log(1 + 10 * LOG2),
    "loss_slope": math.log(3.0),
    # the mean of 4 and 4, of a loss of 1
    "promise": (math.log10(4.0) + 3.0) / 2.0,
    # from 2 to 1 in half of 10 and half of 100 updates
    "kept": math.log1p(1.0 / (55 * 4.0)),
    "loss_noise": -1.0,
    # norms 2, then 4 and 8: half a factor of 2 around sqrt(32)
    "gradient_initial": math.log(1 + 1.5 * LOG2),
    "gradient_dispersion": 0.5 * LOG2,
    "gradient_cosine": 0.5,
    "momentum_cosine": 0.75,
    "update_ratio": 0.5,
    "layer_ratio": 1.0,
    "rate_initial": 0.5,
    "action_last": 0.5,
    "action_mean": 0.15,
    "cuts": 2.0,
    "capped": 1.0,
    "validation_known": 1.0,
    # from 3 to 6, while the training loss halved
    "validation_gap": math.log(1 + 2 * LOG2),
    "validation_excess": math.log(1 + 10 * LOG2),
    "optimizer_adaptive": 1.0,
    "optimizer_momentum": 0.5,
    "epochs_known": 1.0,
    "epoch_updates": math.log10(25.0) / 2.0,
    "epochs_planned": 1.0,
    "epochs_done": math.log10(4.0),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_known_value_of(name: str) -> None:
    signals = Signals((name,))
    signals.observe(one())
    assert signals.observe(second())[0, 0] == pytest.approx(KNOWN[name], abs=1e-6)


def test_moving_averages_move() -> None:
    signals = Signals(("loss_fast", "loss_slow", "loss_best"))
    for loss in (2.0, 1.0):
        signals.observe(one(loss=loss))
    expected = [10 * math.log(1.5), 5 * math.log(1.85), 10 * math.log(1.0)]
    observed = signals.observe(one(loss=1.0))[0]
    np.testing.assert_allclose(observed, [-math.log1p(expected[0]), -math.log1p(expected[1]), 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("validation", "loss", "excess"),
    [
        (3.0, 2.0, 0.0),  # level
        (1.5, 1.0, 0.0),  # lower than ever
        (6.0, 4.0, 0.0),  # a spike, or data that drift: the training loss rose as much
        (6.0, 3.0, math.log(4 / 3)),  # more than that
        (3.3, 0.5, math.log(1.1)),  # hardly a rise, however far the training loss fell
    ],
)
def test_a_rise_counts_as_far_as_training_did_not_share_it(validation: float, loss: float, excess: float) -> None:
    signals = Signals(("validation_excess",))
    signals.observe(one(validation=3.0, loss=2.0))
    seen = signals.observe(one(validation=validation, loss=loss))[0, 0]
    assert seen == pytest.approx(math.log1p(10 * excess), abs=1e-6)


def test_a_validation_loss_holds_until_the_next() -> None:
    signals = Signals(("validation_known", "validation_gap", "validation_excess"))
    signals.observe(one(validation=3.0, loss=2.0))
    told = signals.observe(one(validation=6.0, loss=1.0))
    np.testing.assert_array_equal(signals.observe(one(validation=math.nan, loss=0.1)), told)
    np.testing.assert_array_equal(signals.observe(replace(one(loss=9.0), validation=None)), told)


def test_without_training_losses_the_rise_itself_counts() -> None:
    signals = Signals(("validation_excess",))
    signals.observe(one(validation=3.0, loss=math.nan))
    assert signals.observe(one(validation=6.0, loss=math.nan))[0, 0] == pytest.approx(math.log1p(10 * LOG2))


def test_the_mean_of_actions_moves() -> None:
    signals = Signals(("action_mean",))
    seen = [signals.observe(one(action=action))[0, 0] for action in (1.0, -0.5, 0.0)]
    np.testing.assert_allclose(seen, [0.3, 0.06, 0.042], atol=1e-6)


def test_cosines_are_averaged_over_the_pairs_there_are() -> None:
    rows = [[4.0, math.nan, math.nan, 1.0, 1.0, 2.0, 0.0], [4.0, 4.0, 4.0, 1.0, 1.0, 2.0, 0.0]]
    samples = np.array([*rows, [4.0, 2.0, 4.0, 1.0, 1.0, 2.0, 0.0]])[:, :, None]
    signals = Signals(("gradient_cosine",))
    assert signals.observe(one(samples=samples))[0, 0] == pytest.approx((1.0 + 0.5) / 2)
    assert signals.observe(one(samples=samples[:1]))[0, 0] == 0.0  # no pair at all


def test_intervals_of_one_update_read_zero() -> None:
    signals = Signals(("interval",))
    assert [signals.observe(one(updates=updates))[0, 0] for updates in (0, 1)] == [0.0, 0.0]
    assert signals.observe(one(updates=2))[0, 0] == pytest.approx(math.log10(2.0) / 3.0)


def test_losses_that_are_not_positive_are_measured_against_their_noise() -> None:
    signals = Signals(("loss_initial", "loss_best"))
    signals.observe(one(loss=-1.0, noise=0.5))
    falling = signals.observe(one(loss=-3.0, noise=0.5))[0]
    np.testing.assert_allclose(falling, -math.log1p(2.0 / 0.5), atol=1e-6)
    # once negative, a run stays with differences
    assert signals.observe(one(loss=1.0, noise=0.5))[0, 0] == pytest.approx(math.log1p(4.0))


def test_promises_need_a_descent_and_a_known_loss() -> None:
    signals = Signals(("promise", "kept"))
    uphill = second().samples * np.array([1, 1, 1, 1, 1, -1, 1])[:, None]
    assert signals.observe(one())[0, 1] == 0.0  # nothing to compare with
    assert not signals.observe(one(loss=1.0, samples=uphill)).any()
    flat = second().samples * np.array([1, 1, 1, 1, 1, 0, 1])[:, None]
    assert not signals.observe(one(loss=1.0, samples=flat)).any()
    assert signals.observe(one(loss=math.nan))[0, 1] == 0.0
    assert not Signals(("promise", "kept")).observe(one(loss=math.nan, noise=math.nan)).any()


def test_promises_are_measured_against_the_noise_of_losses_that_are_not_positive() -> None:
    signals = Signals(("promise", "kept"))
    signals.observe(one(loss=-1.0, noise=0.5))
    observed = signals.observe(one(loss=-2.0, noise=0.5))[0]
    np.testing.assert_allclose(observed, [(math.log10(2.0 / 0.5) + 3.0) / 2.0, math.log1p(1.0 / (10 * 2.0))], atol=1e-6)


def test_an_unknown_loss_reads_zero_and_is_no_reference() -> None:
    names = ("loss_known", "loss_initial", "loss_previous", "loss_fast", "loss_slow", "loss_best", "loss_noise")
    signals = Signals(names)
    blind = one(loss=math.nan, noise=math.nan)
    assert not signals.observe(blind).any()
    signals.observe(one(loss=2.0))
    assert not signals.observe(blind).any()
    again = signals.observe(one(loss=2.0))[0]
    np.testing.assert_allclose(again[:6], [1, 0, 0, 0, 0, 0], atol=1e-6)


def test_order_and_choice_of_signals_are_those_asked_for() -> None:
    signals = Signals(("capped", "progress"))
    np.testing.assert_allclose(signals.observe(second()), [[1.0, 0.5]])
    assert signals.size == 2


def test_unknown_or_no_signals_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown signals \['gradient_mood'\]; this version knows progress"):
        Signals(("progress", "gradient_mood"))
    with pytest.raises(ConfigError, match="at least one signal"):
        Signals(())


@given(st.integers(0, 2**32), st.integers(1, 40), st.floats(1e-3, 1e3))
def test_the_trend_is_that_of_least_squares(seed: int, length: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    losses = unit * (rng.normal(size=length) + 5.0 - 0.1 * np.arange(length))
    trend = LossTrend(1)
    start = 0
    while start < length:
        stop = start + int(rng.integers(1, 6))
        trend.add(losses[start:stop, None], start)
        start = stop
    mean, _, slope = trend.summary()
    assert mean[0] == pytest.approx(losses.mean())
    if length < 3:
        assert slope[0] == 0.0
        return
    times = np.arange(length) - (length - 1) / 2
    gradient = times @ losses / (times @ times)
    residual = losses - losses.mean() - gradient * times
    error = math.sqrt(residual @ residual / (length - 2))
    assert slope[0] == pytest.approx(gradient * math.sqrt(times @ times) / error, rel=1e-4)


def test_noise_is_measured_within_blocks() -> None:
    trend = LossTrend(1)
    trend.add(np.array([[1.0], [3.0]]), 0)  # deviations -1, 1; the step to the next block does not count
    trend.add(np.array([[101.0], [103.0]]), 2)
    assert trend.summary()[1][0] == pytest.approx(math.sqrt(4.0 / 2.0))


def test_losses_that_are_not_finite_are_left_out_of_the_trend() -> None:
    with_gaps, without = LossTrend(1), LossTrend(1)
    with_gaps.add(np.array([[1.0], [math.nan], [3.0], [math.inf], [2.0]]), 0)
    for time, loss in ((0, 1.0), (2, 3.0), (4, 2.0)):
        without.add(np.array([[loss]]), time)
    assert with_gaps.summary()[0] == without.summary()[0]
    assert with_gaps.summary()[2] == without.summary()[2]
