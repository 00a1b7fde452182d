"""The adapter to Stable-Baselines3, and evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecMonitor

from rlrate import Controller
from rlrate.agents import PopulationVecEnv, by_family, evaluate
from rlrate.control import ControlSpec
from rlrate.envs import TrainingConfig, TrainingVectorEnv


def make() -> PopulationVecEnv:
    return PopulationVecEnv(TrainingVectorEnv(4, draws=2, workload="wine-mlp", optimizer="adam", steps=25), seed=1)


def test_episodes_end_as_sb3_expects() -> None:
    env = VecMonitor(make())
    observations = np.asarray(env.reset())
    assert observations.shape == (4, len(ControlSpec().signals))
    for step in range(4):
        stepped, rewards, dones, infos = env.step(np.zeros((4, 1), np.float32))
        assert dones.all() == (step == 3) and rewards.dtype == np.float32
    assert len(infos) == len(np.asarray(stepped)) == 4
    for row, info in enumerate(infos):
        assert info["terminal_observation"].shape == observations[row].shape
        assert not info["TimeLimit.truncated"]
        assert info["updates"] == 25
        assert info["episode"]["l"] == 4


def test_the_seed_determines_the_runs() -> None:
    first, second = make(), make()
    np.testing.assert_array_equal(first.reset(), second.reset())
    second.seed(2)
    assert not np.array_equal(make().reset(), second.reset())


def test_relative_rewards_compare_the_runs_of_a_draw() -> None:
    def step(relative: bool) -> np.ndarray:
        batch = TrainingVectorEnv(6, draws=2, workload="wine-mlp", optimizer="adam", steps=25)
        env = PopulationVecEnv(batch, seed=1, relative=relative)
        env.reset()
        return np.asarray(env.step(np.linspace(-1, 1, 6, dtype=np.float32)[:, None])[1])

    plain = step(False).reshape(2, 3)
    assert np.ptp(plain) > 0
    np.testing.assert_allclose(step(True).reshape(2, 3), plain - plain.mean(axis=1, keepdims=True), atol=1e-6)


def test_attributes_and_methods_reach_the_batch() -> None:
    env = make()
    assert env.get_attr("draws", indices=[0, 1]) == [2, 2]
    assert env.env_is_wrapped(VecMonitor) == [False] * 4
    env.set_attr("marker", 5)
    assert env.get_attr("marker", 0) == [5]


def test_evaluation_counts_every_run_and_repeats() -> None:
    config = TrainingConfig(workload=["wine-mlp", "diabetes-mlp"], optimizer="adam", steps=60)
    outcomes = evaluate(Controller.constant(0.4), config, draws=3, runs=2)
    assert len(outcomes) == 6
    assert evaluate(Controller.constant(0.4), config, draws=3, runs=2) == outcomes
    families = by_family(outcomes)
    assert sum(len([o for o in outcomes if o.family == family]) for family in families) == 6
    assert not any(outcome.diverged for outcome in outcomes)
    assert np.mean([o.improvement for o in outcomes]) == pytest.approx(
        np.average(
            [v[0] for v in families.values()],
            weights=[len([o for o in outcomes if o.family == family]) for family in families],
        )
    )


@pytest.mark.slow
def test_evaluation_does_not_depend_on_the_processes() -> None:
    config = TrainingConfig(workload=["wine-mlp", "diabetes-mlp"], optimizer="adam", steps=60)
    alone = evaluate(Controller.constant(0.4), config, draws=3, runs=2)
    spread = evaluate(Controller.constant(0.4), config, draws=3, runs=2, workers=2)
    assert [(o.workload, o.steps) for o in spread] == [(o.workload, o.steps) for o in alone]
    for one, other in zip(spread, alone, strict=True):
        assert one.heldout_loss == pytest.approx(other.heldout_loss, rel=1e-4)
