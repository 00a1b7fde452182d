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
from rlrate.agents.model import make_model
from rlrate.agents.rollout import BranchRolloutBuffer, SiblingRolloutBuffer
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


BRANCH = replace(TINY, siblings={"hold": 2, "branch": True})


def test_siblings_part_once_and_follow_the_policy_before_and_after() -> None:
    env = PopulationVecEnv(BRANCH.make_env(), seed=1)
    policy: Any = make_model(BRANCH, env).policy
    torch.manual_seed(0)
    observations = torch.zeros(400, len(BRANCH.spec.signals))
    mean = policy(observations, deterministic=True)[0]
    begins, lengths = set(), set()
    for _ in range(3):
        policy.begin_rollout(1.0)
        steps = [policy(observations) for _ in range(BRANCH.episode_length)]
        added = torch.stack([actions - mean for actions, _, _ in steps])[:, :, 0].detach()
        marked = torch.stack([values for _, values, _ in steps])[:, :, 0].detach()
        np.testing.assert_allclose(added[marked == 0], 0.0, atol=1e-7)
        assert (added[marked == 1].abs() > 0.1).all()
        for group in range(100):
            own, apart = added[:, 4 * group : 4 * group + 4], marked[:, 4 * group : 4 * group + 4]
            assert (apart == apart[:, :1]).all(), "siblings part and meet together"
            (where,) = np.nonzero(apart[:, 0].numpy())
            begins.add(int(where[0]))
            lengths.add(len(where))
            assert np.array_equal(where, np.arange(where[0], where[0] + len(where)))
            rows = own[where].numpy()
            np.testing.assert_allclose(rows, np.tile(rows[:1], (len(where), 1)), atol=1e-6)  # held
            assert len(np.unique(rows[0].round(3))) >= 2
            assert abs(rows[0].sum()) < 1e-5  # as bold as timid
            assert np.abs(rows.sum(axis=0)).max() <= 3.0 + 1e-4
    assert begins == set(range(BRANCH.episode_length - 2))
    assert lengths >= {2, 3, 4}


def test_pairs_go_as_far_either_way_but_not_always_as_far() -> None:
    recipe = replace(BRANCH, environment={**BRANCH.environment, "siblings": 2})
    policy: Any = make_model(recipe, PopulationVecEnv(recipe.make_env(), seed=1)).policy
    torch.manual_seed(0)
    observations = torch.zeros(400, len(recipe.spec.signals))
    mean = policy(observations, deterministic=True)[0]
    policy.begin_rollout(1.0)
    added = sum((policy(observations)[0] - mean).detach() for _ in range(recipe.episode_length))
    pairs = np.asarray(added).reshape(200, 2)
    np.testing.assert_allclose(pairs.sum(axis=1), 0.0, atol=1e-5)
    sizes = np.abs(pairs[:, 0])
    assert 0.3 < sizes.min() < 1.2  # a quarter of the longest way, or less where the run ends first
    assert 2.0 < sizes.max() <= 3.0 + 1e-4


def test_only_detours_are_learned_from_and_by_the_whole_return() -> None:
    buffer = BranchRolloutBuffer(
        4, spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), n_envs=4, draws=2, siblings=2, floor=1e-9
    )
    marks = np.array([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32)
    rewards = np.random.default_rng(0).normal(size=(4, 4))
    for row, mark in zip(rewards, marks, strict=True):
        buffer.add(np.zeros((4, 2)), np.zeros((4, 1)), row, np.zeros(4), torch.from_numpy(mark), torch.zeros(4))
    buffer.compute_returns_and_advantage(torch.zeros(4), np.ones(4))
    ends = rewards.sum(axis=0)
    # of two siblings one is a standard deviation above their mean, the other below
    signs = np.sign([ends[0] - ends[1], ends[1] - ends[0], ends[2] - ends[3], ends[3] - ends[2]])
    np.testing.assert_allclose(buffer.advantages, marks * signs, rtol=1e-5)


@pytest.mark.parametrize("recipe", [TINY, BRANCH], ids=["held", "branch"])
def test_a_training_by_comparison_moves_the_policy_and_can_be_resumed(tmp_path: Path, recipe: Recipe) -> None:
    whole = Controller.load(train(recipe, tmp_path / "whole"))
    stopped = tmp_path / "stopped"

    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, stopped, progress=stop)
    resumed = Controller.load(train(recipe, stopped, resume=True))
    start = Controller.load(
        train(replace(recipe, algorithm={**TINY.algorithm, "learning_rate": 1e-12}), tmp_path / "start")
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
    with pytest.raises(ConfigError, match=r"siblings takes hold, .* true or false, got \{'hold': 0\}"):
        recipe(siblings={"hold": 0})
    with pytest.raises(ConfigError, match="siblings takes hold"):
        recipe(siblings={"held": 3})
    with pytest.raises(ConfigError, match="siblings takes hold"):
        recipe(siblings={"floor": "low"})
    with pytest.raises(ConfigError, match="siblings takes hold"):
        recipe(siblings={"branch": 1})
    with pytest.raises(ConfigError, match="siblings teach PPO with continuous actions only"):
        recipe(action="discrete")
    with pytest.raises(ConfigError, match="siblings must be a positive integer, got 0"):
        Recipe(environment={**environment, "siblings": 0}).make_env()
