"""LearnedLR in the loops that people write."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, LinearLR, LRScheduler, SequentialLR

from rlrate import Controller, ControllerError, LearnedLR, SchedulerError
from rlrate.control import USUAL, ControlSpec

Make = Callable[..., Controller]
MakeSpec = Callable[..., ControlSpec]
optim = torch.optim


# What it does in a plain loop -----------------------------------------------------------------------------


def test_the_loop_of_the_readme_runs_with_any_optimizer(
    kind: dict[str, Any], make_loop: Any, make_controller: Make
) -> None:
    loop = make_loop(lr=1e3, **kind)
    model, optimizer = loop.model, loop.optimizer
    first = loop.backward().item()
    scheduler = LearnedLR(optimizer, total_steps=60, controller=make_controller())
    for _ in range(60):
        loss = loop.backward()
        optimizer.step()
        scheduler.step(loss)
        (rate,) = scheduler.get_last_lr()
        assert 0.0 < rate <= 1e4
    assert loop.backward().item() < 2 * first
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    report = scheduler.report()
    assert len(report.updates) == len(report.rates) == len(report.actions) == 7
    assert np.isfinite(report.observations).all()
    assert report.observations[:, report.signals.index("loss_known")].all()


def test_an_identity_controller_changes_nothing_at_all(
    kind: dict[str, Any], make_loop: Any, make_spec: MakeSpec
) -> None:
    """Exactly as ConstantLR(factor=1)."""
    ours, theirs = make_loop(lr=0.013, **kind), make_loop(lr=0.013, **kind)
    identity = Controller.constant(0.0, make_spec())
    rates = ours.run(LearnedLR(ours.optimizer, 50, identity), 60 - 10)
    theirs.run(ConstantLR(theirs.optimizer, factor=1.0), 50, loss=lambda *_: None)
    assert rates == [0.013] * 50
    assert torch.equal(ours.weights, theirs.weights)


def test_a_fixed_multiplier_is_an_exponential_on_the_cadence(make_loop: Any, make_spec: MakeSpec) -> None:
    spec = make_spec(factor=2.0)
    ours, theirs = make_loop(), make_loop()
    learned = LearnedLR(ours.optimizer, 50, Controller.constant(-0.5, spec))
    exponential = ExponentialLR(theirs.optimizer, 2.0**-0.5)
    rates = ours.run(learned, 50)
    expected, ends = [], set(spec.cadence.boundaries(50)[:-1].tolist())
    for update in range(1, 51):
        theirs.backward()
        theirs.optimizer.step()
        if update in ends:
            exponential.step()
        expected.append(theirs.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    torch.testing.assert_close(ours.weights, theirs.weights)


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_the_given_rate_does_not_matter(make: Any, make_loop: Any, make_controller: Make) -> None:
    outcomes = []
    for lr in (1e-8, 1e-3, 0.7, 1e2, 0.0, math.inf):
        loop = make_loop(make, lr=lr)
        outcomes.append((loop.run(LearnedLR(loop.optimizer, 60, make_controller()), 60), loop.weights))
    for rates, weights in outcomes[1:]:
        assert rates == outcomes[0][0]
        assert torch.equal(weights, outcomes[0][1])


def test_the_first_updates_are_negligible(kind: dict[str, Any], make_loop: Any) -> None:
    loop = make_loop(lr=10.0, **kind)
    scheduler = LearnedLR(loop.optimizer, 1000, Controller.constant())
    before = loop.weights
    loop.run(scheduler, 3)
    assert float((loop.weights - before).norm() / before.norm()) < 3e-4  # three of 1e-5, or ten times that for RMSprop
    before = loop.weights
    loop.run(scheduler, 1)
    ratio = float((loop.weights - before).norm() / before.norm())
    assert 1e-4 < ratio < 1e-2  # the specification starts at 1e-3


def test_rates_stay_within_bounds_and_end_near_zero(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 100, Controller.constant(1.0), min_lr=1e-5, max_lr=1e-3)
    rates = loop.run(scheduler, 100)
    assert min(rates[:70]) >= 1e-5 and max(rates) == 1e-3
    assert rates[-1] == pytest.approx(1e-3 * 0.01 / 0.3)


@settings(max_examples=15)
@given(st.integers(1, 45))
def test_any_budget_is_spent(make_loop: Any, make_controller: Make, total: int) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, total, make_controller())
    loop.run(scheduler, total)
    assert scheduler.last_epoch == total


def test_long_budgets_decide_as_often(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 10_000_000, make_controller(ControlSpec()))
    loop.run(scheduler, 40)
    assert scheduler.report().updates[0] == 5


def test_a_controller_may_be_a_file(make_loop: Any, make_controller: Make, tmp_path: Path) -> None:
    path = make_controller().save(tmp_path / "mine.safetensors")
    runs = []
    for controller in (path, str(path), make_controller()):
        loop = make_loop()
        runs.append(loop.run(LearnedLR(loop.optimizer, 40, controller), 40))
    assert runs[0] == runs[1] == runs[2]


def test_the_report_is_what_was_decided(make_loop: Any, make_controller: Make) -> None:
    controller = make_controller()
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, controller)
    assert scheduler.report().observations.shape == (0, len(USUAL))
    rates = loop.run(scheduler, 60)
    report = scheduler.report()
    assert report.signals == controller.spec.signals
    assert report.updates.tolist() == controller.spec.cadence.boundaries(60)[:-1].tolist()
    assert report.rates.tolist() == [rates[update - 1] for update in report.updates]
    np.testing.assert_allclose(controller.act(report.observations), report.actions, atol=1e-6)
    assert isinstance(report.cuts, int) and 0 <= report.caps <= len(report.updates)
    report.rates[:] = 0.0
    assert scheduler.report().rates.all()


def test_interventions_are_counted(make_loop: Any, make_spec: MakeSpec) -> None:
    loop = make_loop(lr=0.01)
    scheduler = LearnedLR(loop.optimizer, 60, Controller.constant(0.0, make_spec(cut=0.5)))
    loop.run(scheduler, 60, loss=lambda step, loss: math.nan if step == 30 else loss)
    assert scheduler.report().cuts == 1
    assert scheduler.get_last_lr() == [pytest.approx(0.0025)]
    loop = make_loop(lr=0.01)
    scheduler = LearnedLR(loop.optimizer, 60, Controller.constant(1.0, make_spec(cap=1e-3)))
    loop.run(scheduler, 60)
    assert scheduler.report().caps > 0


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "message"),
    [
        (0, "must be at least 1, got 0"),
        (-5, "must be at least 1"),
        (100.0, "must be an integer number of optimizer updates, got 100.0"),
        ("100", "must be an integer"),
        (True, "must be an integer .* got True"),
        (np.bool_(True), "must be an integer"),
        (math.inf, "must be an integer"),
    ],
)
def test_a_budget_that_is_none_is_refused(total: Any, message: str, make_loop: Any) -> None:
    with pytest.raises(SchedulerError, match=message):
        LearnedLR(make_loop().optimizer, total, Controller.constant())


@pytest.mark.parametrize("total", [np.int64(7), torch.tensor(7)])
def test_integers_of_other_libraries_are_fine(total: Any, make_loop: Any) -> None:
    assert LearnedLR(make_loop().optimizer, total, Controller.constant()).budget == 7


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0), (1e-3, math.inf), (math.nan, 1.0), (-1.0, 1.0)])
def test_bounds_must_be_ordered(bounds: tuple[float, float], make_loop: Any) -> None:
    with pytest.raises(SchedulerError, match="need 0 < min_lr < max_lr"):
        LearnedLR(make_loop().optimizer, 10, Controller.constant(), min_lr=bounds[0], max_lr=bounds[1])


@pytest.mark.parametrize("bound", [None, "1", True, torch.ones(2), [None]], ids=str)
def test_bounds_are_numbers(bound: Any, make_loop: Any) -> None:
    for name in ("max_lr", "min_lr"):
        with pytest.raises(SchedulerError, match=r"max_lr (must be a learning rate|has 2 entries)|min_lr must be a"):
            LearnedLR(make_loop().optimizer, 10, Controller.constant(), **{name: bound})


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, np.array, lambda bound: [np.float64(bound)]])
def test_bounds_of_other_libraries_are_fine(kind: Any, make_loop: Any) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 100, Controller.constant(1.0), max_lr=kind(1e-3))
    assert max(loop.run(scheduler, 100)) == pytest.approx(1e-3)


@pytest.mark.parametrize("controller", [3, None, [1.0]])
def test_what_is_no_controller_is_refused(controller: Any, make_loop: Any) -> None:
    with pytest.raises(ControllerError, match="a controller is a Controller, the path of a file or a name, got"):
        LearnedLR(make_loop().optimizer, 10, controller)


def test_groups_need_a_rate(make_loop: Any) -> None:
    optimizer = make_loop().optimizer
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(SchedulerError, match="SGD has no learning rate to set"):
        LearnedLR(optimizer, 10, Controller.constant())


def test_optimizers_that_it_cannot_drive_are_refused_by_name(make_loop: Any) -> None:
    for make in (optim.LBFGS, optim.Rprop):
        with pytest.raises(SchedulerError, match=f"{make.__name__} chooses its own step sizes; use LearnedLR with"):
            LearnedLR(make_loop(make).optimizer, 10, Controller.constant())
    with pytest.raises(SchedulerError, match=r"needs a torch.optim.Optimizer, got Linear"):
        LearnedLR(nn.Linear(1, 1), 10, Controller.constant())  # type: ignore[arg-type]
    optimizer = optim.SGD([{"params": []}], lr=0.1)
    with pytest.raises(SchedulerError, match=r"no parameters; pass model.parameters\(\)"):
        LearnedLR(optimizer, 10, Controller.constant())
    optimizer = make_loop().optimizer
    optimizer.step = lambda: None
    with pytest.raises(SchedulerError, match="create the scheduler before compiling"):
        LearnedLR(optimizer, 10, Controller.constant())


def test_an_unknown_controller_is_refused(make_loop: Any) -> None:
    with pytest.raises(ControllerError, match="no controller 'nobody'"):
        LearnedLR(make_loop().optimizer, 10, "nobody")


def test_a_refused_scheduler_leaves_the_optimizer_alone(make_loop: Any) -> None:
    loop = make_loop()
    with pytest.raises(SchedulerError):
        LearnedLR(loop.optimizer, 0, Controller.constant())
    assert loop.optimizer.param_groups[0].keys() == make_loop().optimizer.param_groups[0].keys()
    assert not loop.optimizer._optimizer_step_pre_hooks


# torch's conventions --------------------------------------------------------------------------------------


def test_it_is_a_scheduler_that_begins_at_the_given_rate(make_loop: Any) -> None:
    loop = make_loop(lr=0.3)
    scheduler = LearnedLR(loop.optimizer, 10, Controller.constant())
    assert isinstance(scheduler, LRScheduler)
    assert scheduler.get_last_lr() == scheduler.base_lrs == [0.3]
    assert loop.optimizer.param_groups[0]["lr"] == loop.optimizer.param_groups[0]["initial_lr"] == 0.3
    assert not hasattr(scheduler, "total_steps")  # Accelerate would stop stepping by it


def test_get_lr_outside_of_step_warns_and_changes_nothing(make_loop: Any, make_controller: Make) -> None:
    plain, curious = make_loop(), make_loop()
    expected = plain.run(LearnedLR(plain.optimizer, 30, make_controller()), 30)
    scheduler = LearnedLR(curious.optimizer, 30, make_controller())
    observed = curious.run(scheduler, 15)
    curious_loss = curious.backward()
    curious.optimizer.step()
    with pytest.warns(UserWarning, match=r"please use get_last_lr\(\)"):
        assert scheduler.get_lr() == scheduler.get_last_lr()
    scheduler.step(curious_loss)
    observed.append(curious.optimizer.param_groups[0]["lr"])
    assert observed + curious.run(scheduler, 14) == expected


def test_a_scheduler_that_nobody_holds_is_freed_at_once_and_lets_go(make_loop: Any) -> None:
    loop = make_loop(lr=0.3)
    gc.disable()
    try:
        scheduler = LearnedLR(loop.optimizer, 30, Controller.constant())
        loop.run(scheduler, 8)
        reference = weakref.ref(scheduler)
        del scheduler
        assert reference() is None
    finally:
        gc.enable()
    rate = loop.optimizer.param_groups[0]["lr"]
    loop.backward()
    loop.optimizer.step()
    assert loop.optimizer.param_groups[0]["lr"] == rate


def test_a_closure_does_not_keep_it_either(make_loop: Any) -> None:
    loop = make_loop()
    gc.disable()
    try:
        scheduler = LearnedLR(loop.optimizer, 30, Controller.constant())
        loop.optimizer.step(loop.backward)
        reference = weakref.ref(scheduler)
        del scheduler
        assert reference() is None
    finally:
        gc.enable()


def test_after_a_warm_up_it_begins_where_the_warm_up_ends(make_loop: Any, make_spec: MakeSpec) -> None:
    loop = make_loop(lr=1.0)
    warm = LinearLR(loop.optimizer, start_factor=0.1, total_iters=3)
    learned = LearnedLR(loop.optimizer, 30, Controller.constant(0.0, make_spec()))
    both = SequentialLR(loop.optimizer, [warm, learned], [3])
    rates = [loop.optimizer.param_groups[0]["lr"]]
    for _ in range(33):
        loop.backward()
        loop.optimizer.step()
        both.step()
        rates.append(loop.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates[:4], [0.1, 0.4, 0.7, 1.0])
    assert rates[3:] == [1.0] * 31
    assert learned.report().updates.tolist() == learned.controller.spec.cadence.boundaries(30)[:-1].tolist()


def test_after_a_warm_up_a_start_of_its_own_is_probed_then(make_loop: Any) -> None:
    loop = make_loop(lr=0.01)
    warm = LinearLR(loop.optimizer, start_factor=0.1, total_iters=10)
    learned = LearnedLR(loop.optimizer, 100, Controller.constant())
    both = SequentialLR(loop.optimizer, [warm, learned], [10])
    rates = []
    for _ in range(110):
        loop.backward()
        loop.optimizer.step()
        both.step()
        rates.append(loop.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates[:9], np.linspace(0.001, 0.01, 11)[1:10])  # untouched by the probe
    assert rates[10] < 1e-3
    assert learned.report().updates[-1] < 100
    assert 0 < rates[-1] < rates[60]


def test_another_scheduler_may_follow(make_loop: Any, make_spec: MakeSpec) -> None:
    loop = make_loop(lr=1.0)
    learned = LearnedLR(loop.optimizer, 20, Controller.constant(0.0, make_spec()))
    constant = ConstantLR(loop.optimizer, factor=0.5, total_iters=100)
    both = SequentialLR(loop.optimizer, [learned, constant], [20])
    for _ in range(25):
        loop.backward()
        loop.optimizer.step()
        both.step()
    assert loop.optimizer.param_groups[0]["lr"] == 0.5


def test_in_a_chain_it_is_stepped(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    learned = LearnedLR(loop.optimizer, 30, make_controller())
    chain = ChainedScheduler([learned])
    for _ in range(30):
        loop.backward()
        loop.optimizer.step()
        chain.step()
    assert len(learned.report().updates) == 7
