"""A loss on data that is not trained on, handed to the scheduler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlrate import Controller, LearnedLR, SchedulerError
from rlrate.control import SIGNALS, Cadence, ControlSpec

Make = Callable[..., Controller]
SPEC = ControlSpec(tuple(SIGNALS), Cadence(decisions=8, first=3, ramp=3, probe=2))
KNOWN, GAP, EXCESS = (SPEC.signals.index(f"validation_{name}") for name in ("known", "gap", "excess"))


def train(scheduler: LearnedLR, loop: Any, validation: Callable[[int], Any], steps: int = 40) -> list[float]:
    rates = []
    for _ in range(steps):
        loss = loop.backward()
        loop.optimizer.step()
        if (value := validation(loop.step)) is not None:
            scheduler.observe_validation(value)
        scheduler.step(loss)
        rates.append(loop.optimizer.param_groups[0]["lr"])
    return rates


def test_the_controller_sees_it_at_the_next_decision(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 40, make_controller(SPEC))
    decisions = SPEC.cadence.boundaries(40)[:-1].tolist()
    told = {decisions[1] - 1: 2.0, decisions[1]: 4.0, decisions[3]: torch.tensor(1.0, requires_grad=True)}
    train(scheduler, loop, told.get)
    seen = scheduler.report().observations
    assert seen[:, KNOWN].tolist() == [0.0] + [1.0] * (len(decisions) - 1)
    assert (seen[1:3, GAP] == 0.0).all() and (seen[3:, GAP] < 0.0).all()  # from 4.0, as the 2.0 was overtaken, to 1.0
    assert not seen[:, EXCESS].any()


def test_without_it_these_signals_say_nothing(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 40, make_controller(SPEC))
    train(scheduler, loop, lambda _: None)
    assert not scheduler.report().observations[:, KNOWN:].any()


def test_it_changes_nothing_for_a_controller_that_does_not_look(make_loop: Any, make_controller: Make) -> None:
    rates = []
    for validation in (lambda _: None, float):
        loop = make_loop()
        rates.append(train(LearnedLR(loop.optimizer, 40, make_controller()), loop, validation))
    assert rates[0] == rates[1]


def test_one_that_is_not_finite_is_left_aside(make_loop: Any, make_controller: Make) -> None:
    rates = []
    for bad in (None, math.nan, math.inf):
        loop = make_loop()
        scheduler = LearnedLR(loop.optimizer, 40, make_controller(SPEC))
        rates.append(
            train(scheduler, loop, lambda step, bad=bad: bad if step % 9 == 5 else 1 / step)  # type: ignore[misc]
        )
        if bad is not None:
            assert scheduler.report().observations[:, KNOWN].all()
    assert all(math.isfinite(rate) and rate > 0 for run in rates for rate in run[:-1])


@pytest.mark.parametrize("bad", [torch.ones(3), "0.5", [1.0]])
def test_what_is_no_number_is_refused_by_name(make_loop: Any, make_controller: Make, bad: object) -> None:
    scheduler = LearnedLR(make_loop().optimizer, 40, make_controller(SPEC))
    with pytest.raises(SchedulerError, match=r"observe_validation\(loss\) needs"):
        scheduler.observe_validation(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [1, 12, 13, 14, 29])
def test_a_run_goes_on_from_its_state(make_loop: Any, make_controller: Make, cut: int) -> None:
    """Also when the loss was told and no decision was made since."""
    controller = make_controller(SPEC)
    loop = make_loop()
    whole = train(LearnedLR(loop.optimizer, 40, controller), loop, lambda step: 3.0 / step)
    first = make_loop()
    scheduler = LearnedLR(first.optimizer, 40, controller)
    rates = train(scheduler, first, lambda step: 3.0 / step, cut)
    second = make_loop(step=cut)
    second.model.load_state_dict(first.model.state_dict())
    resumed = LearnedLR(second.optimizer, 40, controller)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert rates + train(resumed, second, lambda step: 3.0 / step, 40 - cut) == whole
