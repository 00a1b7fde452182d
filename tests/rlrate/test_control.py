"""The control as a whole: whatever it is fed, rates are finite and within bounds."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from rlrate.control import LIMIT, Action, Cadence, ControlSpec, RateControl
from rlrate.control.control import WINDOW
from rlrate.errors import ConfigError

Array = NDArray[np.float64]
EXTREME = [0.0, math.nan, math.inf, -math.inf, 1e38, 1e-45, 5e-324, 1.7e308, -1.7e308, 1.0, -1.0, 2.0]
anything = st.sampled_from(EXTREME) | st.floats()
SMALL = Cadence(decisions=8, first=3, ramp=3, probe=2)
ALARMED = ControlSpec(cadence=SMALL, action=Action(alarm=4.0))


class Feed:
    """Plays a training run to a control: the same losses and samples for the same seed."""

    def __init__(self, runs: int, seed: int = 0, unit: float = 1.0) -> None:
        self.runs, self.unit = runs, unit
        self.rngs = [np.random.default_rng([seed, run]) for run in range(runs)]

    def __call__(self, control: RateControl, updates: int | None = None) -> list[Array]:
        seen: list[Array] = []
        if control.updates == 0 and control.probing:
            control.set_probe(np.full(self.runs, 2.0), np.full(self.runs, 3.0), 100)
        for _ in range(updates or control.total_steps or 0):
            draws = np.stack([rng.random(40) for rng in self.rngs], axis=1)
            losses = self.unit * (draws[0] * 0.1 + np.exp(-control.updates / 40))
            losses = np.where(draws[1] < 0.02, np.nan, np.where(draws[1] > 0.98, 100 * losses, losses))
            samples = draws[2:30].reshape(4, 7, self.runs) * 1e-3 if control.wants_samples() else None
            if samples is not None:  # of gg, gp, pp, uu, ww, gu, layer: the gradient is in the loss's unit
                samples = samples * self.unit ** np.array([2, 2, 2, 0, 0, 1, 0])[:, None]
            control.look(losses)
            control.advance(losses, samples)
            seen.append(control.rates)
            if control.decision_due:
                seen += list(control.observe().T)
                control.act(2 * draws[31] - 1)
        return seen


def control(spec: ControlSpec | None = None, runs: int = 1, total: int | None = 100, **kwargs: Any) -> RateControl:
    kwargs = {"given": np.full(runs, 0.1), **kwargs}
    return RateControl(spec or ALARMED, runs, total, **kwargs)


def rule(**entries: Any) -> ControlSpec:
    off = {"start": None, "cap": None, "cut": None, "anneal": 0.0}
    return ControlSpec(cadence=SMALL, action=Action(**{**off, **entries}))


@settings(max_examples=150)
@given(st.data(), st.integers(1, 60), st.integers(1, 3))
def test_rates_are_finite_and_within_bounds_whatever_comes(data: st.DataObject, total: int, runs: int) -> None:
    per_run = arrays.arrays(np.float64, runs, elements=anything)
    start = data.draw(st.sampled_from([None, 1e-4, 0.5]))
    anneal = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    alarm = data.draw(st.sampled_from([None, 1e-3, 10.0]))
    rules = Action(start=start, anneal=anneal, check=data.draw(st.integers(1, 6)), alarm=alarm)
    spec = ControlSpec(cadence=SMALL, action=rules)
    it = control(spec, runs, total, given=np.full(runs, data.draw(st.floats(1e-12, 1e6))), min_rate=1e-8, max_rate=10.0)
    if it.probing:
        it.set_probe(np.abs(data.draw(per_run)), np.abs(data.draw(per_run)), data.draw(st.integers(0, 10**9)))
    while not it.done:
        count = data.draw(st.integers(1, 5))
        shape = (data.draw(st.integers(0, 3)), 7, runs)
        samples = data.draw(arrays.arrays(np.float64, shape, elements=anything)) if it.wants_samples(count) else None
        losses = data.draw(st.none() | per_run)
        if losses is not None:
            it.look(losses)
        it.advance(losses, samples, count)
        if it.decision_due:
            observation = it.observe()
            assert np.isfinite(observation).all() and (np.abs(observation) <= LIMIT).all()
            it.act(data.draw(per_run))
        rates = it.rates
        assert np.isfinite(rates).all()
        assert (rates <= 10.0).all()
        assert (rates > 0.0).all()
        assert (rates >= 1e-8 * spec.action.envelope(1 - 1 / total)).all()


@settings(max_examples=20)
@given(st.integers(0, 2**20), st.integers(1, 200))
def test_runs_together_equal_each_alone(seed: int, total: int) -> None:
    together = np.stack(Feed(3, seed)(control(runs=3, total=total)))
    for run in range(3):
        feed = Feed(1)
        feed.rngs = [np.random.default_rng([seed, run])]
        np.testing.assert_allclose(np.stack(feed(control(total=total)))[:, 0], together[:, run], rtol=1e-6, atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 2**20), st.floats(1e-4, 1e4))
def test_the_unit_of_the_loss_changes_nothing(seed: int, unit: float) -> None:
    plain, scaled = Feed(2, seed)(control(runs=2)), Feed(2, seed, unit)(control(runs=2))
    np.testing.assert_allclose(np.stack(scaled), np.stack(plain), rtol=1e-4, atol=1e-4)


@settings(max_examples=20)
@given(st.integers(0, 2**20), st.integers(1, 150), st.integers(1, 7))
def test_updates_may_be_told_in_batches_that_close_nothing(seed: int, total: int, check: int) -> None:
    """What the scheduler does, to look at losses once a block."""
    rng = np.random.default_rng(seed)
    losses = rng.random(total)
    losses[rng.random(total) < 0.1] = np.nan
    spec = ControlSpec(cadence=SMALL, action=Action(check=check, anneal=0.9))
    one, batched = control(spec, total=total), control(spec, total=total)
    waiting: list[float] = []
    for update, loss in enumerate(losses):
        samples = rng.random((2, 7, 1)) * 1e-3 if one.wants_samples() else None
        one.advance(losses[update : update + 1], samples)
        waiting.append(loss)
        if batched.closes(len(waiting), len(waiting)):
            batched.advance(np.array(waiting)[:, None], samples, len(waiting))
            waiting.clear()
        if one.decision_due:
            np.testing.assert_array_equal(batched.observe(), one.observe())
            for each in (one, batched):
                each.act(np.array([0.7]))
        np.testing.assert_array_equal(batched.rates_at(batched.updates + len(waiting)), one.rates)


def test_state_continues_bit_equal() -> None:
    for cut in (0, 1, 2, 5, 6, 33, 99):
        whole = control(runs=2)
        feed = Feed(2)
        feed(whole, cut) if cut else None
        file = io.BytesIO()
        torch.save(whole.state_dict(), file)
        file.seek(0)
        resumed = control(runs=2)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        twin = Feed(2)
        for mine, theirs in zip(twin.rngs, feed.rngs, strict=True):
            mine.bit_generator.state = theirs.bit_generator.state
        if cut == 0:
            resumed.set_probe(np.full(2, 2.0), np.full(2, 3.0), 100)
        rest = feed(whole, 100 - cut)
        np.testing.assert_array_equal(np.stack(twin(resumed, 100 - cut)), np.stack(rest))


def test_a_state_shares_no_memory_with_the_run() -> None:
    it = control()
    state = it.state_dict()
    it.signals.best += 5.0
    it.log_rate += 1.0
    assert state["signals"]["best"].isnan().all()
    assert state["log_rate"].item() == math.log(0.1)


@pytest.mark.parametrize("spoil", ["missing", "shape", "kind", "part"])
def test_a_state_that_does_not_fit_is_refused(spoil: str) -> None:
    state = control().state_dict()
    if spoil == "missing":
        del state["updates"]
    elif spoil == "shape":
        state = control(runs=2).state_dict()
    elif spoil == "kind":
        state["updates"] = "many"
    else:
        state["guard"] = None
    with pytest.raises(ConfigError, match=r"lacks|is not what it was"):
        control().load_state_dict(state)


# The rules, one by one ------------------------------------------------------------------------------------


def test_without_rules_the_given_rate_is_held_exactly() -> None:
    for given_rate in (0.1, 0.3, 1e-5, 7.0):
        it = control(rule(), given=np.array([given_rate]))
        for _ in range(100):
            it.advance(np.array([1.0]), np.full((1, 7, 1), 0.5))
            if it.decision_due:
                it.observe()
                it.act(np.zeros(1))
            assert it.rates[0] == given_rate


def run_to_decision(it: RateControl, loss: float = 1.0, ratio: float = 1e-3, layer: float = 1e-3) -> None:
    sample = np.array([1.0, math.nan, math.nan, ratio**2, 1.0, ratio, layer**2]).reshape(1, 7, 1)
    while not it.decision_due:
        it.advance(np.array([loss]), sample if it.wants_samples() else None)
    it.observe()


def test_the_cap_holds_a_raise_back_to_its_size() -> None:
    it = control(rule(cap=0.01))
    run_to_decision(it, ratio=0.008)
    it.act(np.array([1.0]))
    assert it.rates[0] == pytest.approx(0.1 * 0.01 / 0.008)
    assert it.interventions["cap"][0] == 1


def test_the_cap_brings_a_rate_down_that_is_too_high() -> None:
    it = control(rule(cap=0.01))
    run_to_decision(it, ratio=0.1)
    it.act(np.array([0.0]))
    assert it.rates[0] == pytest.approx(0.01)


def test_the_cap_lets_smaller_steps_pass() -> None:
    it = control(rule(cap=0.01))
    run_to_decision(it, ratio=1e-3)
    it.act(np.array([1.0]))
    assert it.rates[0] == pytest.approx(0.25)
    assert it.interventions["cap"][0] == 0


def feed_losses(it: RateControl, losses: list[float]) -> Array:
    for loss in losses:
        it.advance(np.array([loss]))
    return it.rates


def test_a_spike_cuts_and_the_rate_can_recover() -> None:
    spec = replace(rule(cut=0.5, check=2), cadence=Cadence(decisions=5, first=20, ramp=1))
    it = control(spec)
    steady = [1.0, 1.01, 0.99, 1.0]
    assert feed_losses(it, steady)[0] == 0.1
    assert feed_losses(it, [30.0, 31.0])[0] == pytest.approx(0.05)
    assert it.interventions["cut"][0] == 1
    assert feed_losses(it, [30.0, 31.0])[0] == pytest.approx(0.05)  # one event, one cut
    assert feed_losses(it, steady * 3)[0] == pytest.approx(0.05)
    assert it.decision_due
    it.observe()
    it.act(np.array([1.0]))
    assert it.rates[0] == pytest.approx(0.125)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_cuts_twice(bad: float) -> None:
    it = control(rule(cut=0.5, check=2))
    feed_losses(it, [1.0, 1.0])
    assert feed_losses(it, [1.0, bad])[0] == pytest.approx(0.025)
    assert it.observe()[0, list(it.signals.names).index("cuts")] == 1.0


def test_blind_runs_neither_see_nor_cut() -> None:
    it = control(rule(cut=0.5, check=1), runs=2, blind=np.array([True, False]))
    it.advance(np.array([1.0, 1.0]))
    it.advance(np.array([math.nan, math.nan]))
    np.testing.assert_allclose(it.rates, [0.1, 0.025])
    assert it.observe()[:, list(it.signals.names).index("loss_known")].tolist() == [0.0, 1.0]


def test_the_start_is_a_relative_update_size() -> None:
    it = control(rule(start=1e-3))
    it.set_probe(np.array([4.0]), np.array([8.0]), 4)
    probe = it.rates[0]
    assert probe == pytest.approx(1e-5 * 8.0 / 4.0)
    sample = np.array([16.0, math.nan, math.nan, (probe * 4.0) ** 2, 64.0, 1.0, 0.0]).reshape(1, 7, 1)
    assert it.wants_samples(2)
    it.advance(np.array([1.0]))
    assert it.probing and it.rates[0] == probe
    it.advance(np.array([1.0]), sample)
    assert not it.probing
    assert it.rates[0] == pytest.approx(1e-3 * 8.0 / 4.0)  # SGD: |u| = rate |g|


@pytest.mark.parametrize(
    ("total", "start"), [(None, 1e-3), (4000, 1e-3), (400, 1e-3), (200, 4e-3), (100, 1.6e-2), (50, 5e-2), (1, 5e-2)]
)
def test_short_budgets_start_higher(total: int | None, start: float) -> None:
    def started(spec: ControlSpec, **given: Any) -> float:
        it = control(spec, total=total, **given)
        assert it.start is not None
        return float(it.start[0])

    spec = rule(start=1e-3, short=400)
    assert started(spec) == pytest.approx(start)
    assert started(spec, start=np.array([2e-3])) == 2e-3, "a run that is given its start"
    assert started(rule(start=1e-3)) == 1e-3, "files without the rule"
    assert started(rule(start=0.2, short=400)) == 0.2, "never lower than without"
    assert control(rule(start=None, short=400), total=total).start is None
    assert ControlSpec.from_dict(spec.to_dict()) == spec and "short" not in rule(start=1e-3).to_dict()["action"]


@pytest.mark.parametrize("short", [0, -1, 1.5, True])
def test_the_bound_of_short_budgets_is_a_whole_number(short: Any) -> None:
    with pytest.raises(ConfigError, match="short, an integer >= 1"):
        Action(short=short)


def test_the_anneal_goes_to_zero_and_no_further() -> None:
    it = control(rule(anneal=0.5), total=10)
    rates = [it.rates[0]]
    for _ in range(10):
        it.advance(None)
        rates.append(it.rates[0])
    np.testing.assert_allclose(rates, [0.1] * 6 + [0.08, 0.06, 0.04, 0.02, 0.02])


def test_gradients_are_sampled_before_decisions_only() -> None:
    it = control(ControlSpec(), total=1000)
    it.set_probe(np.ones(1), np.ones(1), 1)
    sampled = []
    for update in range(1000):
        if it.sampling:
            sampled.append(update)
        it.advance(None)
        if it.decision_due:
            it.observe()
            it.act(np.zeros(1))
    ends = ControlSpec().cadence.boundaries(1000)
    expected = {0, 1, 2} | {end - back for end in ends for back in range(1, WINDOW + 1)}
    assert set(sampled) == expected


def test_samples_stay_few_when_nobody_tells_the_control_of_updates() -> None:
    it = control(rule(), total=1000)
    assert sum(it.samples_at(position) for position in range(100_000)) <= WINDOW


def test_a_specification_survives_its_dictionary() -> None:
    spec = ControlSpec(("progress", "capped"), SMALL, Action(factor=2.0, multipliers=(0.5, 1.0, 2.0), cap=None))
    assert ControlSpec.from_dict(spec.to_dict()) == spec
    assert replace(spec, cadence=Cadence()) != spec


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("signals",), "progress"),
        (("signals",), ["progress", 3]),
        (("signals",), []),
        (("signals",), ["mood"]),
        (("cadence",), None),
        (("cadence", "decisions"), "40"),
        (("cadence", "more"), 1),
        (("action", "factor"), "2"),
        (("action", "factor"), None),
        (("action", "multipliers"), 5),
        (("action", "multipliers"), ["a", "b"]),
        (("action", "start"), []),
        (("more",), 1),
    ],
)
def test_an_illegal_specification_is_refused(path: tuple[str, ...], value: object) -> None:
    data = ControlSpec().to_dict()
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises((ConfigError, ValueError)):
        ControlSpec.from_dict(data)
