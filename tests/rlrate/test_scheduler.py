"""LearnedLR in the loops that people write."""

from __future__ import annotations

import gc
import math
import warnings
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
from rlrate.control import ControlSpec

Make = Callable[..., Controller]
MakeSpec = Callable[..., ControlSpec]
optim = torch.optim

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (optim.SGD, {}),
    "momentum": (optim.SGD, {"momentum": 0.9}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}),
    "adagrad": (optim.Adagrad, {}),
    "rmsprop": (optim.RMSprop, {}),
    "adam": (optim.Adam, {}),
    "adam-fused": (optim.Adam, {"fused": True}),
    "adamw": (optim.AdamW, {}),
    "adamw-foreach": (optim.AdamW, {"foreach": True}),
    "nadam": (optim.NAdam, {}),
    "radam": (optim.RAdam, {}),
    "adamax": (optim.Adamax, {}),
}


@pytest.fixture(params=OPTIMIZERS)
def kind(request: pytest.FixtureRequest) -> dict[str, Any]:
    make, kwargs = OPTIMIZERS[request.param]
    return {"make": make, "kwargs": kwargs}


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


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_given_rate_does_not_matter(name: str, make_loop: Any, make_controller: Make) -> None:
    make, kwargs = OPTIMIZERS[name]
    outcomes = []
    for lr in (1e-8, 1e-3, 0.7, 1e2, 0.0, math.inf):
        loop = make_loop(make, lr=lr, kwargs=kwargs)
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
    assert 1e-5 < ratio < 1e-3  # the specification starts at 1e-4


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
    assert scheduler.report().observations.shape == (0, 22)
    rates = loop.run(scheduler, 60)
    report = scheduler.report()
    assert report.signals == controller.spec.signals
    assert report.updates.tolist() == controller.spec.cadence.boundaries(60)[:-1].tolist()
    assert report.rates.tolist() == [rates[update - 1] for update in report.updates]
    np.testing.assert_allclose(controller.act(report.observations), report.actions, atol=1e-6)
    assert isinstance(report.cuts, int) and report.caps == 0
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


# Groups and kinds of rates --------------------------------------------------------------------------------


def test_two_groups_keep_their_ratio(kind: dict[str, Any], make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=(0.5, 0.05), groups=2, **kind)
    rates = loop.run(LearnedLR(loop.optimizer, 60, make_controller()), 60)
    for first, second in rates:
        assert first == pytest.approx(10 * second)


def test_two_groups_are_held_exactly_by_an_identity(make_loop: Any, make_spec: MakeSpec) -> None:
    loop = make_loop(lr=(0.07, 0.3), groups=2)
    rates = loop.run(LearnedLR(loop.optimizer, 30, Controller.constant(0.0, make_spec())), 30)
    assert rates == [[0.07, 0.3]] * 30


def test_a_frozen_group_stays_frozen(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=(0.0, 0.3), groups=2)
    before = [parameter.clone() for parameter in loop.model[0].parameters()]
    rates = loop.run(LearnedLR(loop.optimizer, 30, make_controller()), 30)
    assert all(first == 0.0 < second for first, second in rates)
    assert all(map(torch.equal, before, loop.model[0].parameters()))


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_a_tensor_rate_is_filled_in_place(make: Any, make_loop: Any, make_controller: Make) -> None:
    floats, tensors = make_loop(make, lr=0.1), make_loop(make, lr=torch.tensor(0.1, dtype=torch.float64))
    rate = tensors.optimizer.param_groups[0]["lr"]
    scheduler = LearnedLR(tensors.optimizer, 60, make_controller())
    expected = floats.run(LearnedLR(floats.optimizer, 60, make_controller()), 60)
    observed = tensors.run(scheduler, 60)
    assert tensors.optimizer.param_groups[0]["lr"] is rate
    np.testing.assert_allclose(observed, expected, rtol=1e-4)
    (last,) = scheduler.get_last_lr()
    assert isinstance(last, torch.Tensor) and last is not rate
    last.fill_(77.0)
    assert float(rate) != 77.0


def test_the_last_rate_is_a_copy_during_the_probe_too(make_loop: Any) -> None:
    loop = make_loop(lr=torch.tensor(0.1))
    scheduler = LearnedLR(loop.optimizer, 60, Controller.constant())
    loop.backward()
    loop.optimizer.step()
    assert scheduler.get_last_lr()[0] is not loop.optimizer.param_groups[0]["lr"]


def test_groups_of_a_float_and_a_tensor_rate(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=(0.1, torch.tensor(0.2)), groups=2)
    rates = loop.run(LearnedLR(loop.optimizer, 40, make_controller()), 40)
    np.testing.assert_allclose([b / a for a, b in rates], 2.0, rtol=1e-5)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_group_added_later_joins_with_the_ratio_it_was_given(
    tensor: bool, make_loop: Any, make_controller: Make
) -> None:
    loop = make_loop(lr=torch.tensor(0.1) if tensor else 0.1)
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    loop.run(scheduler, 20)
    extra = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    loop.optimizer.add_param_group({"params": extra[0], "lr": 0.02})
    loop.optimizer.add_param_group({"params": extra[1]})  # the optimizer's default, 0.1
    rates = loop.run(scheduler, 40)
    for first, second, third in rates:
        assert second == pytest.approx(0.2 * first, rel=1e-5)
        assert third == pytest.approx(first, rel=1e-5)
    assert len(scheduler.get_last_lr()) == len(scheduler.base_lrs) == 3
    assert len(scheduler.report().updates) == 7


# Losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda loss: loss,
        lambda loss: loss.detach(),
        lambda loss: loss.item(),
        lambda loss: np.float32(loss.item()),
        lambda loss: np.array(loss.item()),
        lambda loss: np.array([loss.item()]),
        lambda loss: loss.reshape(1, 1),
    ],
)
def test_one_number_in_any_dress(convert: Callable[[Any], Any], make_loop: Any, make_controller: Make) -> None:
    plain, dressed = make_loop(), make_loop()
    expected = plain.run(LearnedLR(plain.optimizer, 30, make_controller()), 30)
    assert (
        dressed.run(LearnedLR(dressed.optimizer, 30, make_controller()), 30, lambda _, loss: convert(loss)) == expected
    )


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (torch.zeros(3), r"got shape \(3,\); pass the mean"),
        (torch.zeros(0), r"got shape \(0,\)"),
        (np.zeros((2, 2)), r"got shape \(2, 2\)"),
        ([0.5], "got list"),
        ("0.5", "got str"),
        ({"loss": 0.5}, "got dict"),
        (1j, "got complex"),
        (torch.zeros((), dtype=torch.complex64), "got complex"),
    ],
)
def test_what_is_not_a_number_is_refused_and_changes_nothing(
    loss: Any, message: str, make_loop: Any, make_controller: Make
) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 30, make_controller())
    loop.run(scheduler, 5)
    loop.backward()
    loop.optimizer.step()
    before = scheduler.last_epoch, scheduler.get_last_lr()
    with pytest.raises(SchedulerError, match=message):
        scheduler.step(loss)
    assert (scheduler.last_epoch, scheduler.get_last_lr()) == before
    scheduler.step(0.5)
    assert scheduler.last_epoch == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e38, 5e-324, 0.0, -1e30])
def test_no_loss_breaks_a_run(bad: float, make_loop: Any, make_controller: Make) -> None:
    for steps in (range(60), range(30, 60), range(0, 60, 7), [0], [2], [59]):
        loop = make_loop()
        scheduler = LearnedLR(loop.optimizer, 60, make_controller())
        chosen = set(steps)
        rates = loop.run(scheduler, 60, lambda step, loss, chosen=chosen: bad if step in chosen else loss)
        assert all(0.0 < rate <= 1e4 for rate in rates)
        assert np.isfinite(scheduler.report().observations).all()


def test_without_losses_the_gradients_decide(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    rates = loop.run(scheduler, 60, loss=lambda *_: None)
    report = scheduler.report()
    assert not report.observations[:, report.signals.index("loss_known")].any()
    assert report.observations[:, report.signals.index("gradient_cosine")].any()
    assert len(set(rates)) > 5


def test_the_graph_of_the_loss_is_not_kept(make_loop: Any) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 1000, Controller.constant())
    loss = loop.backward()
    loop.optimizer.step()
    scheduler.step(loss)
    graph = weakref.ref(loss)
    del loss
    assert graph() is None


# Calls that do not match the updates ----------------------------------------------------------------------


def test_past_the_budget_the_final_rate_stays_and_one_warning_is_given(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 30, make_controller())
    rates = loop.run(scheduler, 30)
    with pytest.warns(UserWarning, match="past its budget of 30 updates and stays at its final rate") as caught:
        rates += loop.run(scheduler, 10)
    assert len(caught) == 1
    assert caught[0].filename.endswith("conftest.py")  # the caller, not the library
    assert set(rates[30:]) == {rates[29]}


def test_more_steps_than_updates_change_nothing_and_one_warning_is_given(make_loop: Any, make_controller: Make) -> None:
    """Accelerate calls step() once for each process."""
    plain, eager = make_loop(), make_loop()
    expected = plain.run(LearnedLR(plain.optimizer, 30, make_controller()), 30)
    scheduler = LearnedLR(eager.optimizer, 30, make_controller())
    observed = []
    with pytest.warns(UserWarning, match=r"without an optimizer.step\(\)") as caught:
        for _ in range(30):
            loss = eager.backward()
            eager.optimizer.step()
            for _ in range(4):
                scheduler.step(loss)
            observed.append(eager.optimizer.param_groups[0]["lr"])
    assert len(caught) == 1
    assert observed == expected


def test_a_step_before_the_first_update_changes_nothing(make_loop: Any) -> None:
    loop = make_loop(lr=0.3)
    scheduler = LearnedLR(loop.optimizer, 30, Controller.constant())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.step()
    assert {str(w.message)[:8] for w in caught} == {"Detected", "LearnedL"}  # torch's own, and ours
    assert scheduler.get_last_lr() == [0.3]


def test_several_updates_for_each_step_are_all_counted(make_loop: Any, make_controller: Make) -> None:
    """A scheduler that is stepped once an epoch."""
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    for _ in range(6):
        for _ in range(10):
            loss = loop.backward()
            loop.optimizer.step()
        scheduler.step(loss)
    assert scheduler.report().updates.tolist() == [10, 20, 30, 40, 50]


def test_samples_do_not_pile_up_when_steps_are_forgotten(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    for _ in range(200):
        loop.backward()
        loop.optimizer.step()
    state = scheduler.state_dict()["watch"]["sampler"]
    assert len(state["samples"]) <= 4


def test_a_step_that_is_skipped_is_no_update(make_loop: Any, make_controller: Make) -> None:
    """As by a GradScaler that found infinities."""
    plain, amp = make_loop(), make_loop()
    expected = plain.run(LearnedLR(plain.optimizer, 30, make_controller()), 30)
    scheduler = LearnedLR(amp.optimizer, 30, make_controller())
    observed = []
    with pytest.warns(UserWarning, match="a step that a GradScaler skipped is no cause for concern"):
        for step in range(30):
            loss = amp.backward()
            if step == 10:
                scheduler.step(math.inf)
            amp.optimizer.step()
            scheduler.step(loss)
            observed.append(amp.optimizer.param_groups[0]["lr"])
    assert observed == expected


def test_no_gradients_give_one_warning(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 30, make_controller())
    with pytest.warns(UserWarning, match=r"found no gradients: call loss.backward\(\)") as caught:
        for _ in range(30):
            loop.optimizer.step()
            scheduler.step(1.0)
            assert 0.0 < scheduler.get_last_lr()[0] <= 1e4
    assert len(caught) == 1


def test_some_missing_gradients_are_nothing_to_warn_of(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    loop.model[0].requires_grad_(False)
    loop.run(LearnedLR(loop.optimizer, 30, make_controller()), 30)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, 1e30])
def test_no_gradient_breaks_the_rate(bad: float, make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 30, make_controller())
    for step in range(30):
        loss = loop.backward()
        if step in (0, 1, 4, 20):
            loop.model[0].weight.grad.fill_(bad)
        loop.optimizer.step()
        scheduler.step(loss)
        assert 0.0 < scheduler.get_last_lr()[0] <= 1e4


def test_sparse_gradients(make_controller: Make) -> None:
    embedding = nn.Embedding(10, 3, sparse=True)
    optimizer = optim.SGD(embedding.parameters(), lr=0.1)
    scheduler = LearnedLR(optimizer, 30, make_controller())
    for step in range(30):
        optimizer.zero_grad()
        loss = embedding(torch.tensor([step % 10, 3])).square().mean()
        loss.backward()
        optimizer.step()
        scheduler.step(loss)
    assert scheduler.report().observations[:, scheduler.report().signals.index("gradient_initial")].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64])
def test_parameters_of_any_kind(dtype: torch.dtype, make_controller: Make) -> None:
    weight = nn.Parameter(torch.randn(20, dtype=torch.float32).to(dtype))
    optimizer = optim.Adam([weight], lr=0.1)
    scheduler = LearnedLR(optimizer, 30, make_controller())
    for _ in range(30):
        optimizer.zero_grad()
        loss = weight.abs().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
        assert 0.0 < scheduler.get_last_lr()[0] <= 1e4


@pytest.mark.parametrize("named", [False, True])
def test_a_closure_gives_the_same_run(kind: dict[str, Any], named: bool, make_loop: Any, make_controller: Make) -> None:
    plain, closed = make_loop(**kind), make_loop(**kind)
    expected = plain.run(LearnedLR(plain.optimizer, 30, make_controller()), 30)
    scheduler = LearnedLR(closed.optimizer, 30, make_controller())
    observed = []
    for _ in range(30):
        loss = closed.optimizer.step(closure=closed.backward) if named else closed.optimizer.step(closed.backward)
        scheduler.step(loss)
        observed.append(closed.optimizer.param_groups[0]["lr"])
    assert observed == expected
    assert torch.equal(plain.weights, closed.weights)


# Arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "message"),
    [
        (0, "must be at least 1, got 0"),
        (-5, "must be at least 1"),
        (100.0, "must be an integer number of optimizer updates, got 100.0"),
        ("100", "must be an integer"),
        (None, "must be an integer"),
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
