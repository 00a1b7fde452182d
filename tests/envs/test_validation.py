"""Runs whose policy is shown a validation loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lively import lively_controller

from rlrate import LearnedLR
from rlrate.control import SIGNALS, USUAL, Cadence, ControlSpec
from rlrate.envs import TrainingEnv, TrainingVectorEnv, make_optimizer, make_workload
from rlrate.envs.plain import plain_run
from rlrate.envs.training import INTERMEDIATE_EXAMPLES, Draw, TrainingConfig, TrainingRuns
from rlrate.envs.workload import check_workload
from rlrate.errors import ConfigError, WorkloadError

SPEC = ControlSpec(tuple(SIGNALS), Cadence(decisions=12, first=5, ramp=4))
NEW = slice(len(USUAL), len(USUAL) + 3)
KNOWN = SPEC.signals.index("validation_known")


def test_the_parts_share_no_example() -> None:
    workload = make_workload("digits-mlp", np.random.default_rng(0))
    split = workload.with_validation(50)
    assert split.validation is not None and len(split.validation[0]) == len(split.validation[1]) == 50
    for index in (0, 1):
        joined = torch.cat([split.validation[index], split.heldout[index]])
        assert torch.equal(joined, workload.heldout[index])
    check_workload(split)
    assert split.with_validation(10) is split


def test_at_most_half_of_the_examples_are_taken() -> None:
    workload = make_workload("digits-mlp", np.random.default_rng(0))
    small = replace(workload, heldout=(workload.heldout[0][:7], workload.heldout[1][:7])).with_validation(64)
    assert small.validation is not None and len(small.validation[0]) == 3 and len(small.heldout[0]) == 4
    alone = make_workload("noisy-quadratic", np.random.default_rng(0))
    assert len(alone.heldout[0]) == 1 and alone.with_validation(64) is alone


def test_a_validation_part_of_another_shape_is_refused() -> None:
    workload = make_workload("digits-mlp", np.random.default_rng(0))
    inputs, targets = workload.heldout
    with pytest.raises(WorkloadError, match="validation inputs"):
        check_workload(replace(workload, validation=(inputs[:, :5], targets)))


def test_the_share_of_runs_that_are_shown_it() -> None:
    config = TrainingConfig(workload="digits-mlp", optimizer="adam", steps=60, validation=0.5, spec=SPEC)
    runs = TrainingRuns.sample(config, (1, 0), range(200))
    shown = runs.validated > 0
    assert 0.4 < shown.mean() < 0.6
    assert set(runs.validated.tolist()) == {0, 1, 2, 4}
    observation = runs.begin()
    np.testing.assert_array_equal(observation[:, KNOWN], shown)
    while not runs.done:
        observation, _ = runs.step(np.full(200, 0.2))
        assert not observation[~shown, NEW].any()
    assert observation[shown, NEW].any()


@pytest.mark.parametrize("every", [1, 2, 4])
def test_it_is_shown_at_every_so_many_decisions(every: int) -> None:
    draw = Draw(make_workload("digits-mlp", np.random.default_rng(0)), make_optimizer("adam"), 60)
    runs = TrainingRuns(TrainingConfig(spec=SPEC), draw, [1, 2], validated=np.array([every, 0]))
    seen = [runs.begin()]
    while not runs.done:
        seen.append(runs.step(np.full(2, 0.3))[0])
    gap = np.stack(seen)[:-1, 0, SPEC.signals.index("validation_gap")]
    changed = gap[1:] != gap[:-1]
    assert changed.tolist() == [decision % every == 0 for decision in range(1, len(seen) - 1)]


def test_the_end_is_judged_by_other_examples() -> None:
    config = TrainingConfig(workload="digits-mlp", optimizer="adam", steps=60, validation=1.0, spec=SPEC)
    runs = TrainingRuns.sample(config, (1, 0), range(2))
    before = make_workload("digits-mlp", np.random.default_rng(0)).heldout
    assert len(runs.draw.workload.heldout[0]) == len(before[0]) - INTERMEDIATE_EXAMPLES
    runs.begin()
    total = np.zeros(2)
    while not runs.done:
        total += runs.step(np.full(2, 0.3))[1]
    np.testing.assert_array_equal(runs.heldout_loss, runs.population.heldout()[0].double().numpy())
    assert (runs.population.validation().double().numpy() != runs.heldout_loss).all()
    np.testing.assert_allclose(total, runs.improvement)


def test_environment_and_scheduler_are_the_same_run() -> None:
    steps, controller = 220, lively_controller(2, SPEC)
    start = SPEC.action.start
    assert start is not None
    env = TrainingEnv(
        workload="digits-mlp", optimizer="adam", steps=steps, start=start, dtype="float64", validation=1.0, spec=SPEC
    )
    observation, _ = env.reset(seed=5)
    assert env.runs is not None
    seen, terminated = [observation], False
    every = int(env.runs.validated[0])
    while not terminated:
        observation, _, terminated, _, _ = env.step(controller.act(observation[None]).astype(np.float32))
        seen.append(observation)
    workload, seed = env.runs.draw.workload, env.runs.seeds[0]
    assert workload.validation is not None
    inputs, targets = workload.validation[0].double(), workload.validation[1]

    served = lively_controller(2, SPEC)
    run = plain_run(workload, env.runs.draw.optimizer, seed, torch.float64)
    scheduler = LearnedLR(run.optimizer, steps, served, steps_per_epoch=workload.epoch)
    shown = SPEC.cadence.boundaries(steps)[:-1][::every].tolist()
    for update in range(1, steps + 1):
        loss = run.backward()
        run.optimizer.step()
        if update in shown:
            with torch.no_grad():
                scheduler.observe_validation(workload.loss(run.model.eval()(inputs), targets))
            run.model.train()
        scheduler.step(loss)
    np.testing.assert_allclose(np.stack(served.seen), np.stack(seen[:-1]), rtol=1e-5, atol=1e-5)
    assert np.stack(served.seen)[:, KNOWN].all()


def test_a_row_of_the_batch_is_the_single_environment() -> None:
    settings: dict[str, Any] = {
        "workload": "digits-mlp",
        "optimizer": "sgd",
        "steps": 60,
        "validation": 0.5,
        "spec": SPEC,
    }
    batch = TrainingVectorEnv(6, 1, dtype="float64", **settings)
    together, _ = batch.reset(seed=4)
    singles = [TrainingEnv(run=index, dtype="float64", **settings) for index in range(6)]
    alone = [env.reset(seed=4)[0] for env in singles]
    for _ in range(8):
        np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5, atol=1e-6)
        action = together[:, :1] - 0.3
        together, *_ = batch.step(action)
        alone = [env.step(row)[0] for env, row in zip(singles, action, strict=True)]
    assert together[:, KNOWN].any() and not together[:, KNOWN].all()


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_a_share(share: float) -> None:
    with pytest.raises(ConfigError, match="validation must lie in"):
        TrainingConfig(validation=share)
