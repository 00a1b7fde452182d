"""Single losses that rise far too high cut the rate at once."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rlrate import Controller, LearnedLR
from rlrate.control import Action, Cadence, ControlSpec, RateControl, SpikeGuard
from rlrate.controller import linear_layers
from rlrate.envs import make_optimizer, make_workload
from rlrate.envs.plain import plain_run
from rlrate.envs.training import Draw, TrainingConfig, TrainingRuns

Array = NDArray[np.float64]
#: One long interval, and nothing but the guard.
RULES = Action(start=None, cap=None, anneal=0.0, check=5, alarm=10.0)
SPEC = ControlSpec(cadence=Cadence(decisions=2, first=500, ramp=1), action=RULES)


def control(spec: ControlSpec = SPEC, runs: int = 1) -> RateControl:
    return RateControl(spec, runs, 1000, given=np.full(runs, 0.1))


def play(it: RateControl, *losses: float) -> float:
    """The rate after these losses."""
    for loss in losses:
        it.look(np.full(it.runs, loss))
        it.advance(np.full(it.runs, loss))
    return float(it.rates[0])


def calm(count: int = 20, unit: float = 1.0, shift: float = 0.0) -> list[float]:
    """A loss that falls from 2 to 1, with noise of 0.05."""
    noise = np.random.default_rng(0).normal(size=count)
    return [unit * (1.0 + 0.8**i + 0.05 * noise[i] + shift) for i in range(count)]


@pytest.mark.parametrize("shift", [0.0, -10.0])
@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_a_loss_that_multiplies_cuts_before_the_block_is_full(unit: float, shift: float) -> None:
    it = control()
    assert play(it, *calm(unit=unit, shift=shift)) == 0.1
    assert play(it, unit * (5.0 + shift)) == pytest.approx(0.05)
    assert it.interventions["cut"][0] == 1
    late = control(replace(SPEC, action=replace(RULES, alarm=None)))
    assert play(late, *calm(unit=unit, shift=shift), unit * (5.0 + shift)) == 0.1


def test_the_higher_the_loss_the_more_cuts() -> None:
    rates = []
    for loss in (4.0, 40.0, 400.0, 4e3, 4e9, math.inf):
        it = control()
        rates.append(play(it, *calm(), loss))
    np.testing.assert_allclose(rates, 0.1 * 0.5 ** np.array([1, 2, 3, 4, 4, 4]))


def test_within_a_block_only_a_loss_that_is_higher_still_cuts_again() -> None:
    it = control()
    first = play(it, *calm(), 5.0)
    assert play(it, 5.0, 4.5) == first
    assert play(it, 12.0) < first


def test_what_is_not_a_number_is_left_to_the_block() -> None:
    it = control()
    assert play(it, *calm(), math.nan) == 0.1
    assert play(it, 1.0, 1.0, 1.0, 1.0) == pytest.approx(0.025)


@pytest.mark.parametrize("heavy", [False, True])
def test_noise_hardly_ever_raises_an_alarm(heavy: bool) -> None:
    guard, rng, runs = SpikeGuard(500, 10.0), np.random.default_rng(0), 500
    found = 0.0
    for _ in range(100):
        draws = rng.standard_t(5, size=(5, runs)) if heavy else rng.normal(size=(5, runs))
        found += sum(float((guard.alarms(row) > 0).sum()) for row in 1.0 + 0.3 * draws)
        guard.spikes(1.0 + 0.3 * draws)
    assert found / runs < (0.3 if heavy else 0.02)


def test_runs_whose_loss_is_withheld_raise_none() -> None:
    it = RateControl(SPEC, 2, 1000, given=np.full(2, 0.1), blind=np.array([True, False]))
    play(it, *calm(), 400.0)
    np.testing.assert_allclose(it.rates, [0.1, 0.0125])


@given(st.lists(st.floats(-1e3, 1e3), min_size=12, max_size=40), st.floats(0.1, 10.0))
def test_one_run_and_several_do_the_same(losses: list[float], alarm: float) -> None:
    spec = replace(SPEC, action=replace(RULES, alarm=alarm))
    alone, several = control(spec), control(spec, 3)
    for loss in losses:
        assert play(alone, loss) == pytest.approx(play(several, loss), rel=1e-12)
    assert alone.interventions["cut"][0] == several.interventions["cut"][2]


def test_a_specification_without_alarm_is_written_as_it_was_before_there_was_one() -> None:
    plain = ControlSpec().to_dict()
    assert "alarm" not in plain["action"]
    assert ControlSpec.from_dict(plain) == ControlSpec()
    assert ControlSpec.from_dict(SPEC.to_dict()) == SPEC


def test_states_of_before_there_were_alarms_are_read() -> None:
    it = control(replace(SPEC, action=replace(RULES, alarm=None)))
    play(it, *calm())
    state = it.state_dict()
    del state["guard"]["ceiling"]
    resumed = control(replace(SPEC, action=replace(RULES, alarm=None)))
    resumed.load_state_dict(state)
    assert play(resumed, *[9.0] * 5) == play(it, *[9.0] * 5) == pytest.approx(0.05)


# In training loops ----------------------------------------------------------------------------------------


def raising(spec: ControlSpec) -> Controller:
    """A controller that always raises the rate by as much as it can."""
    width = len(spec.signals)
    return Controller(linear_layers([(torch.zeros(1, width), torch.ones(1))]), spec)


def test_environment_and_scheduler_cut_at_the_same_updates() -> None:
    # Five times the rate at each decision, and no cap: the run breaks, again and again.
    rules = Action(factor=5.0, cap=None, alarm=6.0, anneal=0.1)
    spec = ControlSpec(cadence=Cadence(decisions=20, first=6, ramp=4), action=rules)
    controller = raising(spec)
    draw = Draw(make_workload("digits-mlp", np.random.default_rng(0)), make_optimizer("sgd"), 160)
    runs = TrainingRuns(TrainingConfig(spec=spec, dtype="float64"), draw, [3])
    expected, looks = [], 0
    while not runs.done:
        before = runs.control.interventions["cut"][0]
        inside = len(runs._waiting) > 0
        runs.update()
        looks += bool(inside and len(runs._waiting) > 0 and runs.control.interventions["cut"][0] > before)
        if runs.control.decision_due:
            runs.control.act(controller.act(runs.control.observe()))
        expected.append(float(runs.rates[0]))
    assert looks >= 2  # alarms, within blocks

    run = plain_run(draw.workload, draw.optimizer, 3, torch.float64)
    scheduler = LearnedLR(run.optimizer, draw.steps, controller)
    found = []
    for _ in range(draw.steps):
        loss = run.backward()
        run.optimizer.step()
        scheduler.step(loss)
        found.append(float(scheduler.get_last_lr()[0]))
    np.testing.assert_allclose(found[:-1], expected[:-1], rtol=1e-5)
    assert scheduler.report().cuts == runs.control.interventions["cut"][0]


def explode(rate: float, alarm: float | None) -> float:
    """The largest loss of a linear regression by SGD, once the rate is ``rate`` after 30 updates."""
    spec = replace(SPEC, action=replace(RULES, alarm=alarm, start=None))
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(20, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.01)
    scheduler = LearnedLR(optimizer, 1000, raising(spec))
    largest = 0.0
    for update in range(60):
        if update == 30:
            scheduler._driver.control.log_rate = np.log([rate])
            scheduler._write_rates()
        inputs = torch.randn(64, 20, generator=generator)
        loss = (inputs @ weight - inputs.sum(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
        largest = max(largest, float(loss.detach()))
    return largest


def test_a_run_that_explodes_within_a_block_is_caught() -> None:
    with_alarm, without = explode(4.0, 10.0), explode(4.0, None)
    assert without > 1e3 * with_alarm


def test_a_run_cut_within_a_block_looks_at_no_loss_twice() -> None:
    def run(cut: int | None) -> list[Any]:
        parameter = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        scheduler = LearnedLR(optimizer, 1000, raising(SPEC))
        rates = []
        for update, loss in enumerate([*calm(), 400.0, 900.0, 1.0, 1.0, 1.0, *[1.0] * 5]):
            if update == cut:
                states = copy.deepcopy((scheduler.state_dict(), optimizer.state_dict()))
                optimizer = torch.optim.SGD([parameter], lr=5.0)
                scheduler = LearnedLR(optimizer, 1000, raising(SPEC))
                scheduler.load_state_dict(states[0])
                optimizer.load_state_dict(states[1])
            parameter.grad = torch.ones(1)
            optimizer.step()
            scheduler.step(loss)
            rates.append(scheduler.get_last_lr()[0])
        return rates

    whole = run(None)
    assert min(whole) < 0.1
    for cut in (20, 21, 22, 24, 25):
        assert run(cut) == whole
