"""Teaching by comparing runs that share their seed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlrate.agents import PopulationVecEnv, Recipe, train
from rlrate.agents.rollout import SiblingRolloutBuffer
from rlrate.agents.train import make_model
from rlrate.controller import Controller
from rlrate.envs import TrainingVectorEnv
from rlrate.errors import ConfigError

TINY = Recipe(
    iterations=3,
    runs=8,
    draws=2,
    environment={"workload": "wine-mlp", "optimizer": "adam", "steps": 60, "siblings": 4},
    cadence={"decisions": 10, "ramp": 4},
    policy={"net": [8], "log_std_init": -1.0},
    algorithm={"batch_size": 36, "n_epochs": 2},
    siblings={"hold": 4},
)


def test_siblings_differ_by_their_actions_alone() -> None:
    env = TrainingVectorEnv(8, draws=2, siblings=2, workload="wine-mlp", optimizer="adam", steps=25)
    observations = env.reset(seed=1)[0].reshape(4, 2, -1)
    np.testing.assert_allclose(observations[:, 0], observations[:, 1], atol=1e-5)
    assert np.ptp(observations[:2, 0], axis=0).max() > 1e-3  # another seed
    rewards = env.step(np.zeros((8, 1), np.float32))[1].reshape(4, 2)
    np.testing.assert_allclose(rewards[:, 0], rewards[:, 1], atol=1e-5)
    rewards = env.step(np.tile(np.array([[-1.0], [1.0]], np.float32), (4, 1)))[1].reshape(4, 2)
    assert np.abs(np.diff(rewards, axis=1)).min() > 1e-5


def test_exploration_keeps_its_direction_for_some_decisions() -> None:
    env = PopulationVecEnv(TINY.make_env(), seed=1)
    policy: Any = make_model(TINY, env).policy
    torch.manual_seed(0)
    observations = torch.zeros(6, len(TINY.spec.signals))
    mean = policy(observations, deterministic=True)[0]
    policy.begin_rollout(1.0)
    noise = []
    for _ in range(9):
        actions, _, log_prob = policy(observations)
        noise.append((actions - mean).detach().numpy()[:, 0])
        np.testing.assert_allclose(
            log_prob.detach(), policy.evaluate_actions(observations, actions)[1].detach(), rtol=1e-5
        )
    for step in range(1, 9):
        assert np.array_equal(noise[step], noise[step - 1]) == (step % 4 != 0)
    assert 0.1 < np.std(noise) < 0.8  # of exp(-1) = 0.37
    policy.begin_rollout(0.1)
    assert policy.log_std.exp().item() == pytest.approx(0.5 * math.exp(-1.0))
    policy.begin_rollout(0.75)
    assert policy.log_std.exp().item() == pytest.approx(math.exp(-1.0))
    assert not np.array_equal((policy(observations)[0] - mean).detach().numpy()[:, 0], noise[-1])


def test_advantages_compare_siblings_from_where_their_noise_began() -> None:
    def advantages(rewards: Any, floor: float = 1e-9) -> np.ndarray:
        buffer = SiblingRolloutBuffer(
            4, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), n_envs=8, draws=2, siblings=2, hold=2, floor=floor
        )
        zeros = torch.zeros(8)
        for row in rewards:
            buffer.add(np.zeros((8, 2)), np.zeros((8, 1)), row, np.zeros(8), zeros, zeros)
        buffer.compute_returns_and_advantage(zeros, np.ones(8))
        return np.asarray(buffer.advantages)

    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(4, 8))
    first = rewards.sum(axis=0).reshape(4, 2)
    found = advantages(rewards)
    relative = (first - first.mean(axis=1, keepdims=True)).reshape(2, 4)
    expected = relative / np.sqrt(np.square(relative).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(found[0], expected.ravel(), rtol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[2], found[3])
    assert not np.allclose(found[1], found[2])
    # What a draw's rewards are worth in nats, and what all siblings share, makes no difference; noise stays small.
    np.testing.assert_allclose(advantages(rewards * np.repeat([1.0, 50.0], 4)), found, rtol=1e-4)
    np.testing.assert_allclose(advantages(rewards + np.repeat(rng.normal(size=(4, 4)), 2, axis=1)), found, atol=1e-4)
    assert np.abs(advantages(rewards * 1e-3, floor=0.1)).max() < 0.1


def test_a_training_by_comparison_moves_the_policy_and_can_be_resumed(tmp_path: Path) -> None:
    whole = Controller.load(train(TINY, tmp_path / "whole"))
    stopped = tmp_path / "stopped"

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(TINY, stopped, progress=stop)
    resumed = Controller.load(train(TINY, stopped, resume=True))
    start = Controller.load(
        train(replace(TINY, algorithm={**TINY.algorithm, "learning_rate": 1e-12}), tmp_path / "start")
    )
    for (weight, bias), (other, bias2), (first, _) in zip(whole.layers, resumed.layers, start.layers, strict=True):
        assert torch.equal(weight, other) and torch.equal(bias, bias2)
        assert not torch.allclose(weight, first, atol=1e-5)


def test_recipes_that_cannot_compare_are_refused() -> None:
    def recipe(**changes: Any) -> Recipe:
        return Recipe.from_dict({**TINY.to_dict(), **changes})

    environment = TINY.environment
    with pytest.raises(ConfigError, match="a number that divides the 4 runs of a draw and is at least 2, got 3"):
        recipe(environment={**environment, "siblings": 3})
    with pytest.raises(ConfigError, match="at least 2, got 1"):
        recipe(environment={"workload": "wine-mlp", "steps": 60})
    with pytest.raises(ConfigError, match=r"siblings takes hold, an integer >= 1, and floor > 0, got \{'hold': 0\}"):
        recipe(siblings={"hold": 0})
    with pytest.raises(ConfigError, match="siblings takes hold"):
        recipe(siblings={"held": 3})
    with pytest.raises(ConfigError, match="siblings takes hold"):
        recipe(siblings={"floor": "low"})
    with pytest.raises(ConfigError, match="siblings teach PPO with continuous actions only"):
        recipe(action="discrete")
    with pytest.raises(ConfigError, match="siblings must be a positive integer, got 0"):
        Recipe(environment={**environment, "siblings": 0}).make_env()
