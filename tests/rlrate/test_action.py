"""The action map: bounded multipliers, the cap, the guard and the final anneal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlrate.control import Action, SpikeGuard
from rlrate.errors import ConfigError


@given(st.floats(1.001, 100), st.floats())
def test_multipliers_stay_within_the_factor(factor: float, u: float) -> None:
    log_multiplier = Action(factor=factor).log_multiplier(np.array([u]))
    assert np.isfinite(log_multiplier).all()
    assert abs(log_multiplier[0]) <= math.log(factor)


def test_the_ends_are_the_factor_and_zero_keeps() -> None:
    action = Action(factor=2.5)
    multipliers = np.exp(action.log_multiplier(np.array([-1.0, 0.0, 1.0, math.nan])))
    np.testing.assert_allclose(multipliers, [0.4, 1.0, 2.5, 1.0])


def test_discrete_choices_are_those_multipliers() -> None:
    action = Action(factor=2.0, multipliers=(0.5, 1.0, 2.0))
    assert action.choices is not None
    np.testing.assert_allclose(np.exp(action.log_multiplier(action.choices.astype(float))), [0.5, 1.0, 2.0])
    assert Action().choices is None


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_envelope_only_falls(progress: float, anneal: float) -> None:
    action = Action(anneal=anneal)
    assert 0.0 <= action.envelope(progress) <= 1.0
    assert action.envelope(min(1.0, progress + 0.1)) <= action.envelope(progress)


def test_the_envelope_is_linear_over_the_last_part() -> None:
    action = Action(anneal=0.4)
    np.testing.assert_allclose(
        [action.envelope(p) for p in (0.0, 0.6, 0.7, 0.9, 1.0)], [1, 1, 0.75, 0.25, 0], atol=1e-12
    )
    assert Action(anneal=0.0).envelope(1.0) == 1.0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"factor": 1.0}, "factor > 1, got 1.0"),
        ({"factor": math.inf}, "factor > 1"),
        ({"factor": math.nan}, "factor > 1"),
        ({"multipliers": (1.0,)}, "at least two multipliers"),
        ({"multipliers": (0.5, 3.0)}, "within 1/factor .. factor"),
        ({"multipliers": (0.0, 1.0)}, "at least two multipliers"),
        ({"start": 0.0}, "start in"),
        ({"start": 1.0}, "start in"),
        ({"cap": 0.0}, "cap in"),
        ({"cap": 1.5}, "cap in"),
        ({"cut": 1.0}, "cut in"),
        ({"cut": math.nan}, "cut in"),
        ({"check": 0}, "check >= 1"),
        ({"check": 2.5}, "check >= 1"),
        ({"alarm": 0.0}, "alarm > 0"),
        ({"alarm": math.nan}, "alarm > 0"),
        ({"anneal": -0.1}, "anneal in"),
        ({"anneal": 1.1}, "anneal in"),
    ],
)
def test_illegal_entries_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Action(**entries)


# The guard ------------------------------------------------------------------------------------------------


def blocks(losses: list[float], size: int = 5, noise: float = 0.01) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    rng = np.random.default_rng(0)
    return [level + noise * rng.normal(size=(size, 1)) for level in losses]


def spikes(losses: list[float], **kwargs: Any) -> list[bool]:
    guard = SpikeGuard(1)
    return [bool(guard.spikes(block)[0][0]) for block in blocks(losses, **kwargs)]


def test_a_falling_loss_is_no_spike() -> None:
    assert not any(spikes([2.0 * 0.9**i for i in range(30)]))


def test_a_loss_that_jumps_is_a_spike_once() -> None:
    found = spikes([2.0, 1.8, 1.6, 1.5, 1.4, 1.4, 1.4, 5.0, 5.0, 5.0])
    assert found == [False] * 7 + [True] + [False] * 2


def test_a_loss_that_keeps_rising_is_cut_again() -> None:
    assert sum(spikes([1.0] * 5 + [2.0**i for i in range(1, 8)])) >= 6


@pytest.mark.parametrize("level", [1.0, 0.0, -3.0])
def test_a_constant_loss_is_no_spike(level: float) -> None:
    assert not any(spikes([level] * 20, noise=0.0))


@pytest.mark.parametrize("sizes", [(5,), (5, 1), (5, 3), (5, 1, 2)])
def test_noise_alone_is_hardly_ever_a_spike(sizes: tuple[int, ...]) -> None:
    """Intervals end where they end, so blocks of one or two losses stand between the full ones."""
    guard, rng, runs = SpikeGuard(1000), np.random.default_rng(0), 1000
    found = 0
    for block in range(120):
        found += int(guard.spikes(1.0 + 0.3 * rng.normal(size=(sizes[block % len(sizes)], runs)))[0].sum())
    assert found / runs < 0.15


@pytest.mark.parametrize("shift", [0.0, -10.0])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_neither_unit_nor_sign_of_the_loss_matters_for_a_jump(unit: float, shift: float) -> None:
    losses = [unit * (loss + shift) for loss in (2.0, 1.8, 1.6, 1.5, 1.4, 5.0)]
    assert spikes(losses, noise=0.01 * unit) == [False] * 5 + [True]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e308])
def test_a_loss_that_is_not_finite_is_told_apart_and_forgotten(bad: float) -> None:
    guard = SpikeGuard(2)
    good = np.full((5, 2), 1.0) + 0.01 * np.random.default_rng(0).normal(size=(5, 2))
    guard.spikes(good)
    block = good.copy()
    block[2, 0] = bad
    spiked, broken = guard.spikes(block)
    assert broken.tolist() == [True, False]
    assert spiked.tolist() == [False, False]
    assert not any(mask.any() for mask in guard.spikes(good))
