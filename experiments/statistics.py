"""Statistics of a comparison: pure functions of arrays.

Losses are arrays of shape (W, S): W workloads (each with its optimizer), S paired seeds. Lower is
better. A run that diverged has the loss infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

#: A ratio beyond this, or under its inverse, counts as this: one broken run must not be all that a mean shows.
CAP = 1e3

#: AlgoPerf's largest ratio of a time to the best time that still earns something (Dahl et al. 2023).
MAX_RATIO = 4.0

#: Resamples of an interval.
DRAWS = 2000


class Interval(NamedTuple):
    """An estimate with its interval."""

    value: float
    low: float
    high: float


def centre(losses: Array) -> float:
    """Geometric mean of positive losses; arithmetic mean when one is not positive."""
    if (losses > 0).all():
        with np.errstate(divide="ignore"):
            return float(np.exp(np.log(losses).mean()))
    return float(losses.mean())


def bootstrap(logs: Array, level: float = 0.95, draws: int = DRAWS) -> tuple[float, float]:
    """Percentile bootstrap interval of exp(mean(logs)) (Efron 1979)."""
    if not np.isfinite(logs).all():
        return (float("nan"), float("inf"))
    rng = np.random.default_rng(0)
    means = logs[rng.integers(len(logs), size=(draws, len(logs)))].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.exp(np.quantile(means, [tail, 1.0 - tail]))
    return float(low), float(high)


def log_ratios(losses: ArrayLike, reference: ArrayLike, cap: float = CAP) -> Array:
    """Log of each loss relative to its paired reference, within [-log(cap), log(cap)].

    Args:
        losses: Losses; infinite or NaN where the run diverged.
        reference: Losses of the same shape, or one that broadcasts.
        cap: The largest ratio; a run that diverged counts as this, and as no difference where both did.

    Returns:
        Array of the broadcast shape; NaN where a finite loss is not positive, since a ratio then means nothing.
    """
    own, other = np.asarray(losses, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    own, other = np.where(np.isnan(own), np.inf, own), np.where(np.isnan(other), np.inf, other)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(own) - np.log(other)
    logs = np.where(np.isinf(own) & np.isinf(other), 0.0, logs)
    logs = np.where((own <= 0) | (other <= 0), np.nan, logs)
    return np.asarray(np.clip(logs, -math.log(cap), math.log(cap)))


def iqm(values: ArrayLike, axis: int | None = None) -> Array:
    """Interquartile mean: the mean of the middle half (Agarwal et al. 2021)."""
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(np.asarray(values, dtype=np.float64), 0.25, axis=axis))


def mean(values: ArrayLike, axis: int | None = None) -> Array:
    """Arithmetic mean; of logs, the log of the geometric mean."""
    return np.asarray(np.mean(np.asarray(values, dtype=np.float64), axis=axis))


Statistic = Callable[..., Array]


def stratified_interval(
    values: Array, statistic: Statistic = mean, *, level: float = 0.95, draws: int = DRAWS
) -> Interval:
    """A statistic of all values, with a percentile interval from seeds redrawn within each workload.

    The stratified bootstrap of Agarwal et al. (2021): the workloads are taken as given, the seeds as a sample. The
    interval says what other seeds would have shown on the same workloads. It is widened by sqrt(S / (S - 1)): what is
    redrawn from S values varies by that much less than the values did.

    Args:
        values: Finite values, shape (W, S).
        statistic: Takes an array and an axis; :func:`iqm` or :func:`mean`.
        level: Probability that the interval is to cover.
        draws: Resamples.

    Raises:
        ValueError: when a value is not finite or there is none.
    """
    from scipy.stats import bootstrap as resample

    values = _checked(values)
    estimate = float(statistic(values, axis=None))
    if values.shape[1] < 2 or (values == values[:, :1]).all():
        return Interval(estimate, estimate, estimate)
    result = resample(
        tuple(values),
        lambda *rows, axis: statistic(np.concatenate(rows, axis=axis), axis=axis),
        confidence_level=level,
        n_resamples=draws,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return _widened(estimate, low, high, values.shape[1])


def interval_by_workload(
    values: Array, statistic: Callable[[Array], float], *, level: float = 0.95, draws: int = DRAWS
) -> Interval:
    """As :func:`stratified_interval`, for a statistic of the workloads' means over their seeds.

    Args:
        values: Finite values, shape (W, S).
        statistic: Takes the means, shape (W,).
        level: Probability that the interval is to cover.
        draws: Resamples.

    Raises:
        ValueError: when a value is not finite or there is none.
    """
    values = _checked(values)
    count, seeds = values.shape
    drawn = np.random.default_rng(0).integers(seeds, size=(draws, count, seeds))
    means = np.take_along_axis(values[None], drawn, axis=2).mean(axis=2)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile([statistic(each) for each in means], [tail, 1.0 - tail])
    return _widened(statistic(values.mean(axis=1)), float(low), float(high), seeds)


def clustered_interval(
    values: Array, statistic: Statistic = mean, *, level: float = 0.95, draws: int = DRAWS
) -> Interval:
    """As :func:`stratified_interval`, but the workloads are redrawn too, then the seeds within each.

    The interval says what other workloads of the same kind might have shown, and so is the wider one. It is widened by
    sqrt(W / (W - 1)).

    Raises:
        ValueError: when a value is not finite or there is none.
    """
    values = _checked(values)
    count, seeds = values.shape
    rng = np.random.default_rng(0)
    workloads = rng.integers(count, size=(draws, count, 1))
    drawn = values[workloads, rng.integers(seeds, size=(draws, count, seeds))]
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(statistic(drawn.reshape(draws, -1), axis=1), [tail, 1.0 - tail])
    return _widened(float(statistic(values, axis=None)), low, high, count)


def paired_difference(one: Array, other: Array, *, level: float = 0.95, draws: int = DRAWS) -> Interval:
    """Mean of ``one - other`` over paired runs, with the stratified interval; shapes (W, S)."""
    return stratified_interval(np.asarray(one) - np.asarray(other), mean, level=level, draws=draws)


def win_rate(one: Array, other: Array) -> float:
    """Share of paired runs in which ``one`` is the lower; an equal pair counts half."""
    one, other = np.asarray(one), np.asarray(other)
    return float(np.mean((one < other) + 0.5 * (one == other)))


def steps_to_target(updates: NDArray[np.int64], curve: Array, target: float) -> float:
    """Updates at the first point of the curve that is at or below the target; infinite when none is.

    Args:
        updates: Completed updates at each point, increasing, shape (P,).
        curve: Loss at each point, shape (P,); NaN where it was not measured or the run broke.
        target: The loss to reach.
    """
    with np.errstate(invalid="ignore"):
        reached = np.flatnonzero(np.asarray(curve, dtype=np.float64) <= target)
    return float(updates[reached[0]]) if len(reached) else math.inf


def performance_ratios(costs: ArrayLike) -> Array:
    """Cost of each method relative to the lowest on the same workload (Dolan and More 2002).

    Args:
        costs: Positive costs, such as steps to the target, shape (M, W): infinite where a method failed.

    Returns:
        Shape (M, W), at least 1; infinite where a method failed, so also where all did.
    """
    costs = np.asarray(costs, dtype=np.float64)
    best = costs.min(axis=0)
    with np.errstate(invalid="ignore"):
        return np.where(np.isinf(costs), np.inf, costs / best)


def performance_profile(costs: ArrayLike, ratios: ArrayLike) -> Array:
    """Share of the workloads that each method solves within a multiple of the lowest cost.

    Args:
        costs: As in :func:`performance_ratios`, shape (M, W).
        ratios: Multiples, at least 1, shape (T,).

    Returns:
        Shape (M, T), not decreasing along the second axis.
    """
    solved = performance_ratios(costs)[:, :, None] <= np.asarray(ratios, dtype=np.float64) * (1 + 1e-12)
    return np.asarray(solved.mean(axis=1))


def profile_score(costs: ArrayLike, max_ratio: float = MAX_RATIO) -> Array:
    """AlgoPerf's score (Dahl et al. 2023): the mean height of the performance profile from 1 to ``max_ratio``.

    The profile is a staircase, so its integral is exact: each workload adds the part of [1, max_ratio] above its ratio.

    Returns:
        Scores in [0, 1], shape (M,): 1 for a method that is the fastest everywhere.
    """
    earned = np.clip(max_ratio - performance_ratios(costs), 0.0, None) / (max_ratio - 1.0)
    return np.asarray(earned.mean(axis=1))


def expected_best(values: ArrayLike, chosen_by: ArrayLike | None = None) -> Array:
    """What random search over a finite grid finds, in expectation, for each number of trials.

    k of the n configurations are drawn without replacement and the best of them is kept. In order from the best, the
    i-th (from 1) is kept when it is drawn and none before it is: with probability C(n - i, k - 1) / C(n, k).

    Args:
        values: What each configuration is worth, shape (n,), or (n, W) for several workloads with a grid each.
        chosen_by: What the best is chosen by, of the same shape (lower is better); the values themselves if None.

    Returns:
        Expected value after k = 1 .. n trials, of the shape of ``values``.
    """
    values = np.asarray(values, dtype=np.float64)
    keys = values if chosen_by is None else np.asarray(chosen_by, dtype=np.float64)
    ordered = np.take_along_axis(values, np.argsort(keys, axis=0, kind="stable"), axis=0)
    n = len(values)
    probability = np.array([[_share(n, i, k) for i in range(1, n + 1)] for k in range(1, n + 1)])
    return np.asarray(probability @ ordered)


def equivalent_trials(found: ArrayLike, value: float) -> float:
    """Trials after which random search is expected to be as good as ``value``.

    Args:
        found: Expected value after 1 .. n trials (lower is better), from :func:`expected_best`.
        value: What to match.

    Returns:
        Between 1 and n, interpolated; 0 where a single trial is expected to be better; infinite where the whole grid is
        worse.
    """
    found = np.asarray(found, dtype=np.float64)
    # Rounding must not decide whether the whole grid matches its own best.
    slack = 1e-12 * max(1.0, abs(value))
    reached = np.flatnonzero(found <= value + slack)
    if not len(reached):
        return math.inf
    k = int(reached[0])
    if k == 0:
        return 1.0 if found[0] >= value - slack else 0.0
    before, after = found[k - 1], found[k]
    return k + float(np.clip((before - value) / (before - after), 0.0, 1.0))


def sensitivity(losses: ArrayLike, cap: float = CAP) -> Array:
    """How much worse than at the best start each start is, geometric mean over workloads.

    Args:
        losses: A loss for each workload and start, shape (W, K): infinite where the run diverged.
        cap: The largest ratio that counts.

    Returns:
        Shape (K,), at least 1.
    """
    losses = np.asarray(losses, dtype=np.float64)
    return np.asarray(np.exp(log_ratios(losses, losses.min(axis=1, keepdims=True), cap).mean(axis=0)))


def _share(n: int, rank: int, draws: int) -> float:
    """Probability that the best of ``draws`` out of n has this rank, counted from 1."""
    return math.comb(n - rank, draws - 1) / math.comb(n, draws)


def _widened(estimate: float, low: float, high: float, count: int) -> Interval:
    factor = math.sqrt(count / (count - 1)) if count > 1 else 1.0
    return Interval(estimate, estimate + factor * (low - estimate), estimate + factor * (high - estimate))


def _checked(values: Array) -> Array:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError("an interval needs finite values of shape (workloads, seeds)")
    return values
