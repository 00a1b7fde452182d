"""What a scheduler's state says at the edges of a run, and when loading it changes the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rlrate import Controller, LearnedLR, SchedulerError

Make = Callable[..., Controller]
TOTAL = 60


def rate(loop: Any) -> float:
    return float(loop.optimizer.param_groups[0]["lr"])


def test_the_state_counts_every_step(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
    for done in range(TOTAL):
        state = scheduler.state_dict()
        assert (state["last_epoch"], state["step_count"]) == (done, done + 1)
        loop.run(scheduler, 1)


def test_a_state_from_before_the_run_leaves_the_rate(make_loop: Any, make_controller: Make) -> None:
    state = LearnedLR(make_loop().optimizer, TOTAL, make_controller()).state_dict()
    loop = make_loop(lr=123.0)
    LearnedLR(loop.optimizer, TOTAL, make_controller()).load_state_dict(state)
    assert rate(loop) == 123.0


def test_a_state_from_within_the_first_update_sets_it(make_loop: Any, make_controller: Make) -> None:
    first, other = make_loop(), make_loop(lr=123.0)
    scheduler = LearnedLR(first.optimizer, TOTAL, make_controller())
    first.backward()
    first.optimizer.step()
    LearnedLR(other.optimizer, TOTAL, make_controller()).load_state_dict(scheduler.state_dict())
    assert rate(other) == pytest.approx(rate(first), rel=1e-12) != 123.0


@pytest.mark.parametrize("updates", [2, 3])
def test_several_updates_for_one_step_are_counted_and_sampled(
    updates: int, make_loop: Any, make_controller: Make
) -> None:
    """As in a loop that calls step() every few updates: the decisions fall where they would."""
    every, few = make_loop(), make_loop()
    usual, seldom = (LearnedLR(loop.optimizer, TOTAL, make_controller()) for loop in (every, few))
    every.run(usual, TOTAL)
    for _ in range(TOTAL // updates):
        for _ in range(updates):
            loss = few.backward()
            few.optimizer.step()
        seldom.step(loss)
    assert seldom.report().updates[-1] <= TOTAL
    assert len(seldom.report().updates) >= len(usual.report().updates) - 1
    cosine = make_controller().spec.signals.index("gradient_cosine")
    assert seldom.report().observations[:, cosine].any()


@pytest.mark.parametrize("state", [None, [], "state"])
def test_what_is_no_state_is_refused(state: Any, make_loop: Any) -> None:
    scheduler = LearnedLR(make_loop().optimizer, 30, Controller.constant())
    with pytest.raises(SchedulerError, match="this is not the state of a LearnedLR"):
        scheduler.load_state_dict(state)


def test_a_run_that_was_told_of_epochs_goes_on_with_them(make_loop: Any, make_controller: Any) -> None:
    def scheduler(steps_per_epoch: int | None) -> LearnedLR:
        return LearnedLR(make_loop().optimizer, 30, make_controller(), steps_per_epoch=steps_per_epoch)

    state = scheduler(10).state_dict()
    scheduler(10).load_state_dict(state)
    for other in (None, 20):
        with pytest.raises(SchedulerError, match=f"saved with steps_per_epoch=10, this scheduler has {other}"):
            scheduler(other).load_state_dict(state)
    del state["steps_per_epoch"]  # as states were before it was kept
    scheduler(20).load_state_dict(state)
