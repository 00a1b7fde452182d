"""TrainingEnv and TrainingVectorEnv through Gymnasium's and Stable-Baselines3's own checks."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import rlrate.envs
from rlrate.control import USUAL
from rlrate.envs import TrainingConfig, TrainingEnv, TrainingVectorEnv, workload_names
from rlrate.envs.training import sample_draw
from rlrate.errors import ConfigError, WorkloadError

ID = "rlrate/Training-v0"


def rollout(env: TrainingEnv, seed: int, actions: list[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Observations and rewards of an episode under the given actions."""
    observations, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
        if terminated:
            break
    return np.stack(observations), np.array(rewards)


#: Families that the others resemble, as far as an environment can tell.
ALIKE = {"deep-mlp", "attention", "plateau", "ill-conditioned", "noisy-labels", "overfit", "wide-mlp"}
ALIKE |= {"ordinary", "structured"}
FAMILIES = [n for n in workload_names(kind="family") if n not in ALIKE and not n.startswith("training-")]


# What another action space changes does not depend on what is trained.
@pytest.mark.parametrize(
    ("family", "action"), [*((name, "continuous") for name in FAMILIES), *((name, "discrete") for name in FAMILIES[:2])]
)
def test_checkers_pass_without_a_warning(family: str, action: str) -> None:
    env = gymnasium.make(ID, workload=family, optimizer="adam", steps=30, action=action)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gymnasium_check_env(env.unwrapped, skip_render_check=False)
        sb3_check_env(env.unwrapped)


def test_the_episode_is_the_budget_and_the_rewards_telescope() -> None:
    env = TrainingEnv(workload="digits-mlp", optimizer="adam", steps=250)
    observation, info = env.reset(seed=3)
    assert observation.shape == (len(USUAL),)
    assert info["updates"] == 5
    total, steps, terminated = 0.0, 0, False
    while not terminated:
        _, reward, terminated, _, info = env.step(np.array([0.3], np.float32))
        total += reward
        steps += 1
    assert steps == 39
    assert info["updates"] == info["steps"] == 250
    assert total == pytest.approx(info["improvement"])
    assert info["heldout_loss"] < 1.0
    with pytest.raises(ConfigError, match="call reset"):
        env.step(np.array([0.0], np.float32))


@pytest.mark.parametrize("reward", ["heldout", "train", "final"])
def test_rewards_have_the_same_sum_at_the_end(reward: str) -> None:
    env = TrainingEnv(workload="wine-mlp", optimizer="momentum", steps=60, reward=reward)
    _, rewards = rollout(env, 1, [np.array([0.5], np.float32)] * 100)
    assert env.runs is not None
    assert rewards.sum() == pytest.approx(env.runs.improvement[0])
    if reward == "final":
        assert (rewards[:-1] == 0).all()


def test_discrete_actions_are_multipliers() -> None:
    env = TrainingEnv(workload="wine-mlp", optimizer="sgd", steps=400, action="discrete")
    assert env.action_space == gymnasium.spaces.Discrete(5)
    for choice, factor in enumerate(rlrate.envs.MULTIPLIERS):
        _, before = env.reset(seed=1)
        _, _, _, _, after = env.step(choice)
        assert after["lr"] == pytest.approx(before["lr"] * factor, rel=1e-6)


@pytest.mark.parametrize("workload", ["digits-mlp", "digits-cnn-batchnorm", "digits-gru", "quadratic-20"])
def test_a_row_of_the_batch_is_the_single_environment(workload: str) -> None:
    settings: dict[str, Any] = {"workload": workload, "steps": 80, "dtype": "float64"}
    batch = gymnasium.make_vec(ID, num_envs=3, vectorization_mode="vector_entry_point", **settings)
    observations, _ = batch.reset(seed=11)
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 3, 1)).astype(np.float32)
    steps = [batch.step(action) for action in actions]
    for run in range(3):
        env = TrainingEnv(run=run, **settings)
        single, rewards = rollout(env, 11, list(actions[:, run]))
        np.testing.assert_allclose(single[0], observations[run], rtol=1e-5, atol=1e-5)
        for index, reward in enumerate(rewards[:-1]):
            np.testing.assert_allclose(single[index + 1], steps[index][0][run], rtol=1e-5, atol=1e-5)
            assert reward == pytest.approx(steps[index][1][run], rel=1e-6, abs=1e-9)


def test_the_batch_resets_in_the_step_that_ends_an_episode() -> None:
    env = TrainingVectorEnv(4, draws=2, workload=["wine-mlp"], optimizer="adam", steps=20)
    env.reset(seed=0)
    ended = None
    for _ in range(3):
        observations, _, terminated, truncated, infos = env.step(np.zeros((4, 1), np.float32))
        assert not truncated.any()
        if terminated.any():
            ended = infos
    assert ended is not None and terminated.all()
    assert (ended["updates"] == 5).all()
    assert (ended["final_info"]["updates"] == 20).all()
    assert all(final.shape == observations[0].shape for final in ended["final_obs"])
    assert not np.array_equal(ended["final_obs"][0], observations[0])


def test_seeds_determine_episodes_and_differ() -> None:
    def first(seed: int, episode: int = 0) -> np.ndarray:
        env = TrainingVectorEnv(4, draws=2, steps=40)
        return env.reset(seed=seed, options={"episode": episode})[0]

    np.testing.assert_array_equal(first(1), first(1))
    assert not np.array_equal(first(1), first(2))
    assert not np.array_equal(first(1), first(1, episode=1))


def test_workloads_are_drawn_as_often_as_their_weights_say() -> None:
    def draws(workload: Any) -> list[str]:
        config = TrainingConfig(workload=workload, optimizer="adam", steps=20)
        return [sample_draw(config, (0, seed)).workload.family for seed in range(40)]

    weighted = draws({"plateau": 1, "wide-mlp": 3})
    assert weighted == draws(["plateau", "wide-mlp", "wide-mlp", "wide-mlp"])
    assert 4 <= weighted.count("plateau") <= 18


def test_an_episode_can_be_begun_again_by_number() -> None:
    env = TrainingVectorEnv(2, workload="wine-mlp", optimizer="adam", steps=20)
    env.reset(seed=5)
    second, _ = env.reset()
    again, _ = TrainingVectorEnv(2, workload="wine-mlp", optimizer="adam", steps=20).reset(
        seed=5, options={"episode": 1}
    )
    np.testing.assert_array_equal(second, again)


def test_a_run_that_breaks_ends_with_finite_numbers() -> None:
    def explode(output: Any, target: Any) -> Any:
        return ((output - target) ** 2).mean() * float("inf")

    base = rlrate.envs.make_workload("diabetes-mlp", np.random.default_rng(0))
    from dataclasses import replace

    env = TrainingEnv(workload=lambda rng: replace(base, loss=explode), optimizer="sgd", steps=40)
    with pytest.raises(WorkloadError):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workload": "digits-mpl"}, "digits-mlp"),
        ({"optimizer": "adan"}, "adam"),
        ({"action": "discreet"}, "continuous, discrete"),
        ({"steps": 0}, "positive integer"),
        ({"workload": {"wine-mlp": 0}}, "weighted by positive integers, got .'wine-mlp', 0."),
        ({"workload": {}}, "weighted by positive integers"),
        ({"steps": (10, 5)}, "low <= high"),
        ({"steps": (1, 2, 3)}, r"expected a number or \(low, high\), got \(1, 2, 3\)"),
        ({"render_mode": "human"}, "unknown render_mode 'human'; known: 'ansi'"),
        ({"reward": "validation"}, "heldout, train, final"),
        ({"start": 2.0}, r"\(0, 1\)"),
        ({"dtype": "bfloat16"}, "float32"),
        ({"batch": 3}, "unknown settings"),
        ({"run": -1}, "run must be"),
    ],
)
def test_bad_settings_name_cause_and_mend(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, WorkloadError), match=message):
        TrainingEnv(**settings).reset(seed=0)


def test_seeds_of_its_own_differ_from_one_environment_to_the_next() -> None:
    first, second = (TrainingEnv(workload="wine-mlp", optimizer="sgd", steps=20) for _ in range(2))
    assert not np.array_equal(first.reset()[0], second.reset()[0])


def test_vector_environment_refuses_what_it_cannot_share() -> None:
    with pytest.raises(ConfigError, match="multiple of draws"):
        TrainingVectorEnv(5, draws=2)
    with pytest.raises(ConfigError, match="one integer seed"):
        TrainingVectorEnv(2, workload="wine-mlp", optimizer="sgd").reset(seed=[1, 2])


def test_render_is_one_line() -> None:
    env = gymnasium.make(ID, workload="wine-mlp", optimizer="sgd", steps=20, render_mode="ansi")
    env.reset(seed=0)
    text = env.render()
    assert isinstance(text, str) and "lr" in text and "\n" not in text
