"""What a controller is told of epochs: the same from a loop that says how long they are as from an environment."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rlrate import LearnedLR, SchedulerError
from rlrate.control import SIGNALS, Cadence, ControlSpec
from rlrate.controller import Controller
from rlrate.envs import TrainingConfig, TrainingRuns, TrainingVectorEnv
from rlrate.envs.optimizers import make_optimizer
from rlrate.envs.training import Draw
from rlrate.envs.workloads import make_workload
from rlrate.errors import ConfigError

TOLD = ("epochs_known", "epoch_updates", "epochs_planned", "epochs_done")
SPEC = ControlSpec(TOLD, Cadence(decisions=8, first=3, ramp=3, probe=2))


def runs_of(workload: str, steps: int, untold: list[bool]) -> TrainingRuns:
    draw = Draw(make_workload(workload, 0), make_optimizer("adam"), steps)
    return TrainingRuns(TrainingConfig(spec=SPEC), draw, range(len(untold)), untold=np.array(untold))


def in_a_loop(steps: int | None, **told: Any) -> np.ndarray:
    """Observations of the scheduler in a loop of 60 updates."""
    weight = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    scheduler = LearnedLR(optimizer, steps, Controller.constant(0.0, SPEC), **told)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
    return scheduler.report().observations


def test_loop_and_environment_tell_the_same() -> None:
    runs = runs_of("wine-mlp", 60, [False, True])
    epoch = -(-len(runs.draw.workload.train[0]) // runs.draw.workload.batch_size)
    observed = [runs.begin()]
    while not runs.done:
        observed.append(runs.step(np.zeros(2))[0])
    told = in_a_loop(60, steps_per_epoch=epoch)
    np.testing.assert_array_equal(told, np.stack(observed)[: len(told), 0])
    assert (np.stack(observed)[:, 1] == 0.0).all() and (in_a_loop(60) == 0.0).all()
    np.testing.assert_allclose(told[:, :3], [[1.0, math.log10(epoch) / 2, math.log10(60 / epoch) / 2]] * len(told))
    ends = SPEC.cadence.boundaries(60)[: len(told)]
    np.testing.assert_allclose(told[:, 3], np.log10(1 + np.array(ends) / epoch), rtol=1e-6)


def test_without_a_budget_the_epochs_to_come_are_not_known() -> None:
    told = in_a_loop(None, steps_per_epoch=10)
    assert (told[:, 0] == 1.0).all() and (told[:, 2] == 0.0).all() and (np.diff(told[:, 3]) > 0.0).all()


def test_copies_are_told_the_same() -> None:
    runs = runs_of("wine-mlp", 60, [False, True])
    runs.begin()
    taken = runs.take([1, 0, 1])
    np.testing.assert_array_equal(taken.step(np.zeros(3))[0][:, 0], [0.0, 1.0, 0.0])


def test_a_share_of_the_runs_is_not_told_and_is_otherwise_the_same() -> None:
    def begin(share: float, spec: ControlSpec) -> np.ndarray:
        env = TrainingVectorEnv(40, workload="wine-mlp", steps=30, withhold_epochs=share, withhold_loss=0.3, spec=spec)
        return env.reset(seed=1)[0]

    assert 5 < begin(0.5, SPEC)[:, 0].sum() < 35
    assert (begin(0.0, SPEC)[:, 0] == 1.0).all() and (begin(1.0, SPEC) == 0.0).all()
    np.testing.assert_array_equal(begin(0.5, ControlSpec()), begin(0.0, ControlSpec()))


def test_they_are_no_part_of_what_policies_see_unless_asked() -> None:
    assert set(TOLD) <= set(SIGNALS) and not set(TOLD) & set(ControlSpec().signals)


@pytest.mark.parametrize("bad", [0, -3, 2.5, True, "ten"])
def test_an_epoch_is_a_number_of_updates(bad: Any) -> None:
    with pytest.raises(SchedulerError, match="steps_per_epoch must be"):
        in_a_loop(60, steps_per_epoch=bad)
    with pytest.raises(ConfigError, match="withhold_epochs must lie in"):
        TrainingConfig(withhold_epochs=-0.1)
