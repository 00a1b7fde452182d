"""What a refinement's rollouts show of when to stop: that it is what the runs show, and that nothing of it is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from rlrate import Controller
from rlrate.agents import Recipe, train
from rlrate.agents.watching import Watch, watched
from rlrate.control import USUAL, Cadence, ControlSpec
from rlrate.envs import TrainingVectorEnv
from rlrate.envs.workloads import make_workload
from rlrate.errors import ConfigError

EPOCHS = ("epochs_known", "epoch_updates", "epochs_planned", "epochs_done")
CADENCE = Cadence(decisions=8, first=5, ramp=3)
#: Where runs part, and where the policy is followed again.
PARTED = [(0, 2), (0, 2), (3, 4), (3, 4), (5, 7), (5, 7)]


def rollout(watch: Watch, workload: Any, **settings: Any) -> tuple[np.ndarray, np.ndarray]:
    """A rollout of two draws of three pairs, watched; observations and held-out losses at decisions and at the end."""
    spec = ControlSpec(cadence=CADENCE, signals=USUAL + EPOCHS)
    env = TrainingVectorEnv(12, 2, spec=spec, workload=workload, steps=(50, 90), **settings)
    seen, heldout = [env.reset(seed=1)[0]], [np.concatenate([s.looked_loss for s in env.states])]
    watch.begin(env.states)
    over = False
    while not over:
        observation, _, terminated, _, infos = env.step(np.zeros((12, 1)))
        over = bool(terminated.all())
        seen.append(np.stack(infos["final_obs"]) if over else observation)
        heldout.append(np.concatenate([state.looked_loss for state in env.reached]))
        watch.step(env.reached)
    box = spaces.Box(-4.0, 4.0, (len(USUAL),)), spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(len(seen) - 1, *box, device="cpu", n_envs=12)
    buffer.observations[:] = np.stack(seen)[:-1, :, : len(USUAL)]
    for run, (begin, end) in enumerate(PARTED * 2):
        buffer.values[begin:end, run] = 1.0
    watch.end(0, buffer)
    env.close()
    return np.stack(seen), np.stack(heldout)


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    """Of a policy that is not told of epochs."""
    return Watch(tmp_path, ControlSpec(cadence=CADENCE))


def test_what_is_written_is_what_the_runs_show_once_they_follow_the_policy_again(watch: Watch, tmp_path: Path) -> None:
    seen, heldout = rollout(watch, ["wine-mlp", "breast-cancer-logistic"])
    observations, gain = watched(tmp_path, [0])
    rows = [(k, run) for k in range(1, len(seen) - 1) for run, (_, end) in enumerate(PARTED * 2) if k >= end]
    np.testing.assert_array_equal(observations, [seen[row] for row in rows])
    np.testing.assert_allclose(gain, [np.log(heldout[-1, run] / heldout[k, run]) for k, run in rows], atol=1e-6)
    assert len(np.unique(observations[:, -3])) == 2  # each draw has an epoch of its own
    twice = watched(tmp_path, [0, 0])
    np.testing.assert_array_equal(twice[0], np.concatenate([observations, observations]))


def test_losses_that_may_be_negative_show_nothing(watch: Watch, tmp_path: Path) -> None:
    rollout(watch, lambda rng: replace(make_workload("wine-mlp", rng), signed=True))
    assert watched(tmp_path, [0])[0].shape == (0, len(USUAL) + 4)


def entries(tiny: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tiny training that ends with a refinement, and with what its rollouts showed of when to stop."""
    return {
        **tiny,
        "runs": 48,
        "environment": {**tiny["environment"], "siblings": 2},
        "siblings": {"branch": True, "hold": 1},
        "refinement": {"after": 1, "every": 2, "pool": 2},
        "stopping": {"draws": 0, "rollouts": True},
        **more,
    }


def test_a_training_that_was_stopped_learns_of_all_its_rollouts(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.from_dict(entries(tiny))
    whole = Controller.load(train(recipe, tmp_path / "whole"))
    assert whole.stop and whole.spec.action.patience == 3
    names = ["rollout-1.safetensors", "rollout-2.safetensors"]  # the one before the refinement shows nothing
    assert sorted(path.name for path in (tmp_path / "whole" / "watched").iterdir()) == names

    def stop(done: int, *_: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", progress=stop)
    assert Controller.load(train(out=tmp_path / "stopped", resume=True)) == whole
    damaged = tmp_path / "whole" / "watched" / names[0]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    (tmp_path / "whole" / "stopping.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"rollout-1.safetensors is missing or damaged .*train in another one"):
        train(out=tmp_path / "whole", resume=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"stopping": {"rollouts": 1}}, "stopping.rollouts must be true or false, got 1"),
        ({"refinement": {}}, "stopping.rollouts learns from those of a refinement"),
        ({"stopping": {"rollouts": True, "validation": True}}, "leave out stopping.validation or .rollouts"),
        ({"stopping": {"rollouts": True, "draws": -1}}, "stopping.draws must be an integer, at least 0, got -1"),
        ({"environment": {"siblings": 2, "reward": "train"}}, "needs held-out losses that are not shown"),
        ({"environment": {"siblings": 2, "validation": 0.5}}, "needs held-out losses that are not shown"),
    ],
)
def test_what_rollouts_cannot_teach_is_refused(tiny: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(entries(tiny, **more))
