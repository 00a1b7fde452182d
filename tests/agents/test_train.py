"""Training a controller: what it writes, that it repeats, that it resumes."""

from __future__ import annotations

import csv
import json
import multiprocessing
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate import Controller
from rlrate.agents import Recipe, export, train
from rlrate.envs import make_workload
from rlrate.errors import ConfigError


class Killed(Exception):
    """Stands for the end of the process."""


def kill_after(rollouts: int) -> Any:
    def progress(done: int, total: int, row: dict[str, float]) -> None:
        del total, row
        if done >= rollouts:
            raise Killed

    return progress


def test_it_writes_what_it_promises(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names >= {"controller.safetensors", "ppo.zip", "progress.csv", "config.json", "checkpoint.pt"}
    config = json.loads((trained / "config.json").read_text())
    assert Recipe.from_dict(config["recipe"]).digest == config["digest"]
    assert {"torch", "numpy", "stable_baselines3"} <= set(config["versions"])
    with (trained / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    assert all(np.isfinite(float(row["return_mean"])) for row in rows)
    assert {"action_mean", "action_std", "diverged"} <= set(rows[0])
    assert any(name.startswith("improvement/") for name in rows[0])
    controller = Controller.load(trained / "controller.safetensors")
    assert controller.provenance["digest"] == config["digest"]
    assert list((trained / "tensorboard").glob("events*"))


def test_the_same_seed_gives_the_same_file_and_another_does_not(
    trained: Path, tiny: dict[str, Any], tmp_path: Path
) -> None:
    again = train(Recipe.from_dict(tiny), tmp_path / "again")
    assert again.read_bytes() == (trained / "controller.safetensors").read_bytes()
    other = train(Recipe.from_dict({**tiny, "seed": 4}), tmp_path / "other")
    assert Controller.load(other).identity != Controller.load(again).identity


@pytest.mark.slow
def test_the_number_of_processes_does_not_matter(trained: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    spread = train(Recipe.from_dict(tiny), tmp_path / "spread", workers=2)
    assert spread.read_bytes() == (trained / "controller.safetensors").read_bytes()
    assert not multiprocessing.active_children()
    own = make_workload("wine-mlp", 0)
    recipe = replace(Recipe.from_dict(tiny), environment={"workload": lambda: own, "steps": 60})
    with pytest.raises(ConfigError, match=r"cannot be sent to other processes .* or use workers=1"):
        train(recipe, tmp_path / "own", workers=2)
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("rollouts", [1, 2, 3])
def test_killed_and_resumed_is_never_killed(rollouts: int, trained: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(Recipe.from_dict(tiny), out, progress=kill_after(rollouts))
    assert not (out / "controller.safetensors").exists()
    # Nothing of the dead process but its files may matter.
    np.random.seed(99)
    path = train("demo", out, resume=True)  # the folder's own recipe counts
    assert path.read_bytes() == (trained / "controller.safetensors").read_bytes()
    assert (out / "progress.csv").read_text() == (trained / "progress.csv").read_text()


def test_weighted_workloads_are_drawn_in_the_order_of_the_recipe_when_resumed(
    tiny: dict[str, Any], tmp_path: Path
) -> None:
    environment = {**tiny["environment"], "workload": {"training-mlp-regression": 2, "plateau": 1}}
    recipe = Recipe.from_dict({**tiny, "environment": environment})
    whole = train(recipe, tmp_path / "whole").parent
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", progress=kill_after(1))
    resumed = train(out=tmp_path / "run", resume=True).parent
    for name in ("controller.safetensors", "progress.csv"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes()


def test_a_torn_checkpoint_falls_back_to_the_one_before(trained: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(Recipe.from_dict(tiny), out, progress=kill_after(3))
    checkpoint = out / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    path = train("demo", out, resume=True)
    assert path.read_bytes() == (trained / "controller.safetensors").read_bytes()


def test_resuming_a_finished_training_changes_nothing(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    before = (out / "controller.safetensors").read_bytes()
    assert train("demo", out, resume=True).read_bytes() == before


def test_export_reads_a_training_folder(trained: Path, tmp_path: Path) -> None:
    path = export(trained, tmp_path / "c.safetensors")
    assert Controller.load(path).identity == Controller.load(trained / "controller.safetensors").identity


def test_a_folder_whose_recipe_meant_something_else_is_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    file = tmp_path / "run/config.json"
    record = json.loads(file.read_text())
    assert record["specification"] == Controller.load(trained / "controller.safetensors").spec.to_dict()
    changed = {**record["specification"], "cadence": {**record["specification"]["cadence"], "ramp": 2}}
    file.write_text(json.dumps({**record, "specification": changed}))
    message = r"\(cadence\.ramp was 2 and is 3\); go on with the version of rlrate that began it \(\d"
    with pytest.raises(ConfigError, match=message):
        train("demo", tmp_path / "run", resume=True)
    for source in ("run", "run/ppo.zip"):
        with pytest.raises(ConfigError, match=message):
            export(tmp_path / source, tmp_path / "c.safetensors", trust=True)
    del record["specification"]  # as folders of the first days
    file.write_text(json.dumps(record))
    path = export(tmp_path / "run", tmp_path / "c.safetensors")
    assert Controller.load(path).identity == Controller.load(trained / "controller.safetensors").identity


@pytest.mark.slow
def test_it_learns(tiny: dict[str, Any], tmp_path: Path) -> None:
    """A real check of the whole chain: the log improvement must rise well above that of an untrained policy."""
    recipe = Recipe.from_dict(
        {
            **tiny,
            "iterations": 18,
            "runs": 16,
            "environment": {"workload": "wine-mlp", "optimizer": "adam", "steps": 60, "start": 1e-4},
            "algorithm": {"n_epochs": 8, "batch_size": 48, "learning_rate": 2e-3},
        }
    )
    returns: list[float] = []
    train(recipe, tmp_path / "run", progress=lambda done, total, row: returns.append(row["return_mean"]))
    assert np.mean(returns[-3:]) > np.mean(returns[:2]) + 0.5


@pytest.mark.parametrize(
    ("algo", "action", "settings"),
    [
        ("a2c", "continuous", {}),
        ("ppo", "discrete", {"n_epochs": 1, "batch_size": 12}),
        ("sac", "continuous", {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
        ("td3", "continuous", {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
        ("ddpg", "continuous", {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
        ("dqn", "discrete", {"learning_starts": 8, "buffer_size": 100, "batch_size": 8}),
    ],
)
def test_other_algorithms_come_through_the_same_door(
    algo: str, action: str, settings: dict[str, Any], tiny: dict[str, Any], tmp_path: Path
) -> None:
    recipe = Recipe.from_dict({**tiny, "algo": algo, "action": action, "iterations": 1, "algorithm": settings})
    controller = Controller.load(train(recipe, tmp_path / "run"))
    model = _load_policy(tmp_path / "run")
    observations = np.random.default_rng(0).uniform(-4, 4, (200, len(controller.spec.signals))).astype(np.float32)
    predicted, _ = model.predict(observations, deterministic=True)
    choices = controller.spec.action.choices
    expected = predicted[:, 0] if choices is None else choices[predicted]
    np.testing.assert_allclose(controller.act(observations), expected, atol=1e-6)
    if algo not in ("ppo", "a2c"):
        with pytest.raises(ConfigError, match="replay buffer"):
            train(recipe, tmp_path / "run", resume=True)


def _load_policy(out: Path) -> Any:
    from rlrate.agents.train import restore

    return restore(out)[0]


def test_bad_recipes_and_folders(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="demo"):
        Recipe.load("dmeo")
    with pytest.raises(ConfigError, match="ppo"):
        Recipe.from_dict({**tiny, "algo": "pppo"})
    with pytest.raises(ConfigError, match="discrete"):
        Recipe.from_dict({**tiny, "algo": "dqn"})
    with pytest.raises(ConfigError, match="sac needs continuous actions; pass --action continuous"):
        Recipe.from_dict({**tiny, "algo": "sac", "action": "discrete"})
    with pytest.raises(ConfigError, match=r"recipe 'tiny': .*'decision'"):
        Recipe.from_dict({**tiny, "cadence": {"decision": 10}}).make_env()
    with pytest.raises(ConfigError, match="unknown activation 'gelu'; known: tanh, relu"):
        train(Recipe.from_dict({**tiny, "policy": {"activation": "gelu"}}), tmp_path / "gelu")
    with pytest.raises(ConfigError, match="unknown recipe entries"):
        Recipe.from_dict({**tiny, "iteration": 3})
    with pytest.raises(ConfigError, match="at least 50 updates"):
        train(Recipe.from_dict({**tiny, "environment": {"steps": 20}}), tmp_path / "short")
    with pytest.raises(ConfigError, match="not empty"):
        train(Recipe.from_dict(tiny), trained)
    with pytest.raises(ConfigError, match="nothing to resume"):
        train("demo", tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match="refuses it"):
        train(replace(Recipe.from_dict(tiny), algorithm={"clip": 1}), tmp_path / "bad")
    assert not list(tmp_path.iterdir())  # the same folder can be given again
    with pytest.raises(ConfigError, match=r"2 runs in 2 draws have no company; raise runs, lower draws, or set"):
        Recipe.from_dict({**tiny, "runs": 2, "relative_reward": True})
    assert Recipe.from_dict({**tiny, "runs": 4, "relative_reward": True}).relative_reward
    broken = tmp_path / "broken.toml"
    broken.write_text("iterations = \n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Recipe.load(broken)
