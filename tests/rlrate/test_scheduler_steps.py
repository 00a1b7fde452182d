"""Losses and calls of every kind, and calls that do not match the updates."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlrate import Controller, LearnedLR, SchedulerError
from rlrate.control import ControlSpec
from rlrate.ranks import Ranks
from rlrate.scheduler import LATE

Make = Callable[..., Controller]
MakeSpec = Callable[..., ControlSpec]
optim = torch.optim


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


@pytest.mark.parametrize("loaded", [False, True])
def test_of_two_processes_each_may_call_once(
    loaded: bool, make_loop: Any, make_controller: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Accelerate does: only a call more than there are processes is one too many."""
    loop, controller = make_loop(), make_controller()
    scheduler = LearnedLR(loop.optimizer, 30, controller)
    loop.run(scheduler, 10)
    if loaded:
        fresh = LearnedLR(loop.optimizer, 30, controller)
        fresh.load_state_dict(scheduler.state_dict())
        scheduler = fresh
    monkeypatch.setattr(Ranks, "size", property(lambda ranks: 2))
    scheduler.step()  # warnings are errors
    with pytest.warns(UserWarning, match="without an optimizer.step"):
        scheduler.step()


@pytest.mark.parametrize(("updates", "late"), [(LATE + 2, False), (LATE + 3, True)])
def test_called_too_late_for_a_decision_it_says_so(
    updates: int, late: bool, make_loop: Any, make_spec: MakeSpec
) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 300, Controller.constant(spec=make_spec(start=1e-3)))
    assert scheduler._driver.control.next_event == 2
    for _ in range(updates):
        loss = loop.backward()
        loop.optimizer.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scheduler.step(loss)
    told = [str(w.message) for w in caught if "too late for a decision" in str(w.message)]
    assert len(told) == late
    assert all(f"once for {updates} updates" in text for text in told)


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


def test_a_loss_that_is_never_told_is_asked_for_once(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    with pytest.warns(UserWarning, match="was told no loss so far") as told:
        loop.run(scheduler, 60, loss=lambda *_: None)
    assert len(told) == 1 and told[0].filename.endswith("conftest.py"), "of the line that calls step()"


def test_a_loss_that_is_told_now_and_then_is_not_asked_for(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run(scheduler, 60, loss=lambda step, loss: loss if step % 5 == 0 else None)


def test_a_loss_that_is_lost_is_told_once(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    with pytest.warns(UserWarning, match="the loss of update [0-9]+ is nan") as told:
        loop.run(scheduler, 60, loss=lambda step, loss: math.nan if step > 30 else loss)
    assert len(told) == 1 and told[0].filename.endswith("conftest.py")


def test_the_number_of_an_epoch_is_no_loss(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    with pytest.warns(UserWarning, match=r"step\(0\) was given an integer, which counts as the training loss") as told:
        loop.run(scheduler, 60, loss=lambda step, loss: step)
    assert len(told) == 1 and told[0].filename.endswith("conftest.py")
