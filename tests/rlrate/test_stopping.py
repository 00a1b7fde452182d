"""To stop for good: what a controller advises, when the control follows, and what a user's loop makes of it."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlrate import Controller, ControllerError, LearnedLR
from rlrate.control import SIGNALS, Action, Cadence, ControlSpec, RateControl
from rlrate.control.copies import copies
from rlrate.controller import PLAIN, VERSION
from rlrate.envs.optimizers import make_optimizer
from rlrate.envs.training import Draw
from rlrate.envs.workloads import make_workload
from rlrate.errors import ConfigError
from rlrate.experiments.loops import loop_learned
from rlrate.experiments.runs import run_controlled, run_learned

SPEC = ControlSpec(tuple(SIGNALS), Cadence(decisions=20, first=3, ramp=3, probe=2), Action(patience=3, alarm=10.0))
EARLIEST = 6  # 30 % of the decisions


def advising(above: float, signal: str = "epochs_done") -> Controller:
    """Holds the rate, and advises to stop while a signal is above some value."""
    weight = torch.zeros(1, len(SPEC.signals))
    weight[0, SPEC.signals.index(signal)] = 1.0
    policy = torch.zeros(1, 5), torch.tensor([0.1])
    return Controller((policy,), SPEC, stop=((weight, torch.tensor([-above])),))


def in_a_loop(controller: Controller, updates: int = 200, **told: Any) -> tuple[LearnedLR, list[float]]:
    torch.manual_seed(0)
    weight = torch.ones(3, requires_grad=True)
    scheduler = LearnedLR(torch.optim.SGD([weight], lr=0.1), 200, controller, **told)
    return scheduler, go_on(scheduler, updates)


def go_on(scheduler: LearnedLR, updates: int) -> list[float]:
    rates, (weight,) = [], scheduler.optimizer.param_groups[0]["params"]
    for _ in range(updates):
        scheduler.optimizer.zero_grad()
        loss = ((weight - 3.0) ** 2).sum()
        loss.backward()
        scheduler.optimizer.step()
        scheduler.step(loss)
        rates.append(float(scheduler.optimizer.param_groups[0]["lr"]))
    return rates


def test_the_control_follows_advice_in_a_row_and_not_before_its_time() -> None:
    control = RateControl(SPEC, 4, 200, given=np.full(4, 0.1))
    advice = np.array(
        [[0, 1, 1, 0]] * 5 + [[0, 1, 1, 1]] * 2 + [[0, 1, 0, 1]] + [[1, 1, 0, 0]] * 2 + [[0, 0, 1, 0]] * 5
    )
    when = np.full(4, -1)
    for decision, row in enumerate(advice):
        control.act(np.array([0.5, 0.5, 0.5, math.nan]), row == 1)
        when = np.where(control.patience.stopped & (when < 0), decision, when)
        np.testing.assert_array_equal(control.action, np.where(control.patience.stopped, -1.0, [0.5, 0.5, 0.5, 0.0]))
    # The second as soon as it may be, the third just in time, the others never had three in a row.
    assert when.tolist() == [-1, EARLIEST, EARLIEST, 7]


def test_without_patience_advice_is_left_aside() -> None:
    control = RateControl(ControlSpec(), 1, 200, given=np.ones(1))
    for _ in range(40):
        control.act(np.zeros(1), np.ones(1, bool))
    assert not control.patience.stopped.any() and control.action == 0.0


def test_copies_go_on_stopping() -> None:
    control = RateControl(SPEC, 2, 200, given=np.ones(2))
    for decision in range(EARLIEST + 1):
        control.act(np.zeros(2), np.array([True, decision != EARLIEST - 1]))
    taken = copies(control, np.array([1, 0, 0]))
    assert taken.patience.stopped.tolist() == [False, True, True]
    for other, rows in ((control, [1, 0]), (taken, [0, 1])):
        for _ in range(2):
            other.act(np.zeros(other.runs), np.ones(other.runs, bool))
        assert other.patience.stopped[rows].all()


def test_a_state_from_before_there_was_any_of_this_can_be_loaded() -> None:
    control = RateControl(SPEC, 2, 200, given=np.ones(2))
    state = {name: value for name, value in control.state_dict().items() if name != "patience"}
    control.load_state_dict(state)
    control.act(np.zeros(2), np.ones(2, bool))
    assert not control.patience.stopped.any()


def test_a_loop_that_tells_of_epochs_comes_to_a_stop() -> None:
    controller = advising(math.log10(1 + 8))
    scheduler, rates = in_a_loop(controller, steps_per_epoch=10)
    plain, others = in_a_loop(controller)
    report = scheduler.report()
    assert report.stopped and not plain.report().stopped
    first = int((report.actions == -1.0).argmax())
    assert (report.actions[first:] == -1.0).all() and (report.actions[:first] == plain.report().actions[:first]).all()
    # The third decision after eight epochs.
    assert (report.updates > 80).argmax() == first - 2
    update = int(report.updates[first])
    assert rates[: update - 1] == others[: update - 1] and rates[update] == pytest.approx(others[update] / 2.5**1.1)
    assert rates[-2] < 1e-3 * others[-2]


def test_a_run_that_was_interrupted_stops_where_it_would_have() -> None:
    controller = advising(math.log10(1 + 8))
    _, rates = in_a_loop(controller, steps_per_epoch=10)
    part, before = in_a_loop(controller, 95, steps_per_epoch=10)
    file = io.BytesIO()
    torch.save([part.state_dict(), copy.deepcopy(part.optimizer.state_dict())], file)
    file.seek(0)
    state, optimizer = torch.load(file, weights_only=True)
    weight = part.optimizer.param_groups[0]["params"][0].detach().clone().requires_grad_()
    again = LearnedLR(torch.optim.SGD([weight], lr=0.1), 200, controller, steps_per_epoch=10)
    again.load_state_dict(state)
    again.optimizer.load_state_dict(optimizer)
    assert before + go_on(again, 105) == rates and again.report().stopped


def test_environment_and_loop_stop_at_the_same_decision() -> None:
    controller = advising(math.log10(1 + 8))
    draw = Draw(make_workload("wine-mlp", 0), make_optimizer("adam"), 200)
    alone = loop_learned(draw, 5, controller, given=0.1)
    together = run_learned(draw, [4, 5], controller)
    untold = run_controlled(draw, [4, 5], SPEC, controller.answer, told=False)
    np.testing.assert_allclose(alone.rate[:, 0], together.rate[:, 1], rtol=1e-5)
    assert together.rate[-2, 1] < 1e-3 * untold.rate[-2, 1]
    held = run_learned(draw, [4, 5], advising(9.0))
    np.testing.assert_array_equal(held.heldout_loss, untold.heldout_loss)


def test_the_file_holds_both_networks_and_older_versions_are_told(tmp_path: Path) -> None:
    controller = advising(0.5)
    saved = controller.save(tmp_path / "stops.safetensors")
    assert Controller.load(saved) == controller != replace(controller, stop=advising(0.6).stop)
    assert f'\\"version\\": {VERSION}'.encode() in saved.read_bytes()
    assert f'\\"version\\": {PLAIN}'.encode() in Controller.constant().save(tmp_path / "plain.safetensors").read_bytes()
    data = bytearray(saved.read_bytes())
    data[-2] ^= 4
    saved.write_bytes(data)
    with pytest.raises(ControllerError, match="damaged"):
        Controller.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": replace(SPEC, signals=("progress", "youth"))}, "needs the signal epochs_known"),
        ({"spec": replace(SPEC, action=Action())}, "needs the signal epochs_known and action.patience"),
        ({"stop": ((torch.zeros(2, len(SIGNALS)), torch.zeros(2)),)}, "layer 0 has weight"),
        ({"stop": ((torch.zeros(1, 3), torch.zeros(1)),)}, "layer 0 has weight"),
        ({"stop": ((torch.full((1, len(SIGNALS)), math.nan), torch.zeros(1)),)}, "not finite"),
        ({"layers": ((torch.zeros(1, len(SIGNALS) + 1), torch.zeros(1)),)}, "layer 0 has weight"),
    ],
)
def test_networks_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(advising(0.5), **changes)


@pytest.mark.parametrize("patience", [0, -1, 1.5, True])
def test_patience_is_a_whole_number(patience: Any) -> None:
    with pytest.raises(ConfigError, match="patience, an integer >= 1"):
        Action(patience=patience)
