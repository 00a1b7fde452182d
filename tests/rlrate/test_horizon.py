"""Budgets that are not known, and runs that are ended on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate import Controller, LearnedLR, SchedulerError
from rlrate.control import Action, Cadence, ControlSpec
from rlrate.control.horizon import NOMINAL, Horizon

Make = Callable[..., Controller]


def ends(horizon: Horizon, count: int) -> list[int]:
    found = [horizon.end(interval) for interval in range(count)]
    return [end for end in found if end is not None]


def test_intervals_of_an_unknown_budget_grow_and_then_stay() -> None:
    lengths = np.diff([0, *ends(Horizon(Cadence(), Action(), None), 200)])
    assert len(lengths) == 200 and lengths[0] == 5
    assert (np.diff(lengths) >= -1).all()
    assert np.ptp(lengths[20:]) <= 1 and 100 < lengths[-1] < 2000


def test_progress_stops_short_of_the_anneal() -> None:
    horizon = Horizon(Cadence(), Action(), None)
    progress = [horizon.progress(updates) for updates in range(0, 10 * NOMINAL, 500)]
    assert progress[0] == 0.0 and 0.6 < progress[-1] < 0.7
    assert (np.diff(progress) >= 0).all()
    assert not horizon.done(10**12) and horizon.envelope(10**12) == 1.0


@pytest.mark.parametrize("total", [None, 300])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_run_is_ended_on_demand(total: int | None, steps: int, make_loop: Any, make_spec: Any) -> None:
    loop = make_loop(lr=0.1)
    scheduler = LearnedLR(loop.optimizer, total, Controller.constant(0.0, make_spec()))
    assert set(loop.run(scheduler, 100)) == {0.1}
    scheduler.anneal(steps)
    rates = [0.1, *loop.run(scheduler, steps)]
    np.testing.assert_allclose(rates[:-1], 0.1 * (1.0 - np.arange(steps) / steps))
    assert 0.0 < rates[-1] <= rates[-2]
    with pytest.warns(UserWarning, match=f"past its budget of {100 + steps} updates"):
        loop.run(scheduler, 3)


def test_an_anneal_is_saved_and_resumed(make_loop: Any, make_controller: Make) -> None:
    for total in (None, 500):
        loop, rest = make_loop(), make_loop()
        scheduler = LearnedLR(loop.optimizer, total, make_controller())
        loop.run(scheduler, 70)
        scheduler.anneal(60)
        loop.run(scheduler, 20)
        resumed = LearnedLR(rest.optimizer, total, make_controller())
        resumed.load_state_dict(scheduler.state_dict())
        rest.model.load_state_dict(loop.model.state_dict())
        rest.step = loop.step
        assert rest.run(resumed, 40) == loop.run(scheduler, 40)
        assert resumed.report().updates.tolist() == scheduler.report().updates.tolist()


def test_the_policy_sees_the_end_come(make_loop: Any) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, None, Controller.constant(0.0, ControlSpec()))
    loop.run(scheduler, 200)
    scheduler.anneal(100)
    loop.run(scheduler, 100)
    report = scheduler.report()
    progress = report.observations[:, report.signals.index("progress")]
    assert (np.diff(progress) > 0).all() and progress[-1] > 0.9
    assert (report.updates > 200).sum() >= 8


@pytest.mark.parametrize("steps", [0, -1, 1.5, True])
def test_an_anneal_takes_a_number_of_updates(steps: Any, make_loop: Any) -> None:
    scheduler = LearnedLR(make_loop().optimizer, None, Controller.constant())
    with pytest.raises(SchedulerError, match="steps must be"):
        scheduler.anneal(steps)


def test_each_group_has_its_bound(make_loop: Any) -> None:
    loop = make_loop(lr=(0.1, 0.01), groups=2)
    scheduler = LearnedLR(loop.optimizer, 200, Controller.constant(1.0), max_lr=[1e-2, 5e-3])
    rates = np.array(loop.run(scheduler, 200))
    assert rates[:, 0].max() == 1e-2 and rates[:, 1].max() == 5e-3
    assert rates[3, 0] == pytest.approx(10 * rates[3, 1])
    with pytest.raises(SchedulerError, match="max_lr has 3 entries and the optimizer 2 parameter groups"):
        LearnedLR(loop.optimizer, 200, Controller.constant(), max_lr=[1.0, 1.0, 1.0])


def test_the_report_as_a_picture(make_loop: Any, make_controller: Make, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    loop.run(scheduler, 60)
    path = scheduler.report().plot(tmp_path / "run.png")
    assert path.read_bytes().startswith(b"\x89PNG")
