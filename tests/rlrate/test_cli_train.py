"""rlrate train, export and inspect."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlrate import ConfigError, Controller, agents
from rlrate.cli import terminal
from rlrate.cli.app import INTERRUPTED
from rlrate.control import SIGNALS, USUAL

from command_line import WORKLOAD, fail, run, succeed

RECIPE = """
seed = 3
iterations = 2
runs = 4
draws = 2
[environment]
workload = ["wine-mlp", "breast-cancer-logistic"]
steps = [60, 90]
[cadence]
decisions = 10
first = 5
ramp = 3
[policy]
net = [8]
[algorithm]
n_epochs = 2
batch_size = 12
"""

ALONE = ("--workers", 1)  # processes take seconds to start


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A training folder, and what --json said of it."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.toml").write_text(RECIPE)
    printed = succeed("train", "--recipe", folder / "tiny.toml", "--out", folder / "run", "--json", *ALONE)
    return folder / "run", json.loads(printed)


def test_train_writes_the_files_and_json_names_them(trained: tuple[Path, dict[str, Any]]) -> None:
    out, printed = trained
    names = {"controller.safetensors", "ppo.zip", "progress.csv", "config.json"}
    assert names <= {Path(file).name for file in printed["files"]}
    assert all(Path(file).exists() for file in printed["files"])
    assert printed["controller"] == str(out / "controller.safetensors")
    assert printed["identity"] == Controller.load(out / "controller.safetensors").identity
    assert printed["last"]["iteration"] == 2


def test_train_reports_each_rollout_and_says_what_to_try_next(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "my_file.py").write_text(WORKLOAD)
    result = run(
        *("train", "--recipe", recipe, "--out", tmp_path / "run", "--iterations", 1, "--runs", 2, "--draws", 1),
        *("--workload", f"{tmp_path / 'my_file.py'}:make", "--optimizer", "adam", "--steps", 60, "--seed", 5),
    )
    assert result.exit_code == 0, result.output
    assert "rollout 1/1  return " in result.stderr and " left" in result.stderr
    for text in ("controller.safetensors", "rlrate inspect", "rlrate compare --controller", "rlrate.LearnedLR("):
        assert text in result.stdout
    assert f"--workload {tmp_path / 'my_file.py'}:make --optimizer adam" in result.stdout, "what it was trained on"
    used = Controller.load(tmp_path / "run/controller.safetensors").provenance["recipe"]
    assert (used["seed"], used["runs"], used["draws"], used["iterations"]) == (5, 2, 1, 1)
    assert used["environment"]["optimizer"] == "adam" and used["environment"]["steps"] == 60
    assert used["algorithm"]["batch_size"] == 6, "as many minibatches as the recipe has"


def test_train_tells_of_work_beside_the_rollouts_how_much_of_it_is_left(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + "[stopping]\ndraws = 10\nruns = 4\n")
    result = run("train", "--recipe", recipe, "--out", tmp_path / "run", "--json", *ALONE)
    assert result.exit_code == 0, result.output
    told = re.findall(r"rollout 2/2  learning when to stop, (\d+)%  (\S+) of it left", result.stderr)
    assert [share for share, _ in told] == [str(10 * tenth) for tenth in range(1, 11)]
    assert told[-1] == ("100", "0:00")
    assert "return_mean" in json.loads(result.stdout)["last"], "the last rollout's figures"
    assert "stopping" not in json.loads(result.stdout)["last"]


def test_what_is_left_beside_the_rollouts_is_reckoned_by_what_of_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr("rlrate.cli.terminal.time.monotonic", lambda: now)
    with terminal.Steps("rollout") as steps:
        reports: list[tuple[int, Callable[[], None]]] = [
            (30, lambda: steps.beside(0, 3, "imitating", 0.25)),
            (90, lambda: steps.beside(0, 3, "imitating", 1.0)),
            (20, lambda: steps.line(1, 3, "first")),
            (10, lambda: steps.line(3, 3, "last")),
            (15, lambda: steps.beside(3, 3, "stopping", 0.2)),
        ]
        for seconds, call in reports:
            now += seconds
            call()
    assert capsys.readouterr().err.splitlines() == [
        "rollout 0/3  imitating, 25%  1:30 of it left",
        "rollout 0/3  imitating, 100%  0:00 of it left",
        "rollout 1/3  first  0:40 left",
        "rollout 3/3  last  0:00 left",
        "rollout 3/3  stopping, 20%  1:00 of it left",
    ]


def test_train_with_several_seeds_counts_their_rollouts(recipe: Path, tmp_path: Path) -> None:
    result = run("train", "--recipe", recipe, "--out", tmp_path / "run", "--seeds", 2, "--iterations", 1, *ALONE)
    assert result.exit_code == 0, result.output
    assert "rollout 1/2  return " in result.stderr and "rollout 2/2  return " in result.stderr
    assert "seed-3/" in result.stdout and "seed-4/" in result.stdout
    used = Controller.load(tmp_path / "run/controller.safetensors")
    assert used.provenance["recipe"]["seeds"] == 2
    one = Controller.load(tmp_path / "run/seed-4/controller.safetensors")
    assert len(used.layers[0][1]) == 2 * len(one.layers[0][1])


@pytest.mark.parametrize("given", [(), ("--algo", "a2c"), ("--from", "first.safetensors")])
def test_options_and_what_comes_first(given: tuple[str, ...], recipe: Path, tmp_path: Path) -> None:
    two = tmp_path / "two.toml"
    two.write_text('extends = "tiny.toml"\nfirst = "tiny.toml"\niterations = 1\n')
    if "--from" in given:
        assert run("train", "--recipe", recipe, "--out", tmp_path / "alone", *ALONE).exit_code == 0
        given = ("--from", str(tmp_path / "alone" / "controller.safetensors"))
    options = ("--seed", 5, "--workload", "wine-mlp", "--steps", 70, *given, *ALONE)
    result = run("train", "--recipe", two, "--out", tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    used = Controller.load(tmp_path / "run/controller.safetensors").provenance["recipe"]
    assert (tmp_path / "run" / "first").exists() == (not given)
    if given:  # a controller takes its place, and what another algorithm does not know is left out
        assert used["first"] == {} and "rollout 1/1  return " in result.stderr
        return
    assert "rollout 1/3  return " in result.stderr and "rollout 3/3  return " in result.stderr
    first = Controller.load(tmp_path / "run/first/controller.safetensors").provenance["recipe"]
    for one in (used, first):
        assert (one["seed"], one["environment"]["workload"], one["environment"]["steps"]) == (5, "wine-mlp", 70)
    assert (used["iterations"], first["iterations"]) == (1, 2)


def test_train_with_another_algorithm_drops_settings_of_the_first(recipe: Path, tmp_path: Path) -> None:
    arguments = ("train", "--recipe", recipe, "--out", tmp_path / "run", "--algo", "a2c", "--action", "discrete")
    result = run(*arguments, "--iterations", 1, *ALONE)
    assert result.exit_code == 0, result.output
    assert "settings of ppo do not apply to a2c" in result.stderr
    controller = Controller.load(tmp_path / "run/controller.safetensors")
    assert controller.head == "argmax"
    assert controller.provenance["recipe"]["algorithm"] == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "dmo"], "unknown recipe 'dmo': did you mean 'demo'"),
        (["--recipe", "missing.toml"], "cannot read the recipe missing.toml"),
        (["--workload", "wine-mpl"], "unknown workload 'wine-mpl': did you mean 'wine-mlp'"),
        (["--workload", "missing.py:make"], "no file 'missing.py'"),
        (["--optimizer", "adm"], "unknown optimizer 'adm': did you mean 'adam'"),
        (["--algo", "pp"], "unknown algorithm 'pp': did you mean 'ppo'"),
        (["--algo", "dqn"], "pass --action discrete"),
        (["--action", "both"], "unknown action space 'both'"),
        (["--steps", "many"], "--steps is a number of updates or LOW,HIGH"),
        (["--steps", "1,2,3"], "--steps is a number of updates or LOW,HIGH"),
        (["--steps", "900,300"], "low <= high"),
        (["--steps", "10"], "budgets of at least"),
        (["--backend", "rey"], "unknown backend 'rey': did you mean 'ray'"),
        (["--iterations", "0"], "iterations must be a positive integer, got 0"),
        (["--runs", "4", "--draws", "3"], "3 does not divide 4"),
        (["--resume"], "Was it written by `rlrate train --out`?"),
    ],
)
def test_train_refuses_bad_options_before_it_touches_the_folder(
    options: list[str], message: str, tmp_path: Path
) -> None:
    assert message in fail("train", "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_train_refuses_a_folder_in_use_and_a_file(trained: tuple[Path, dict[str, Any]], recipe: Path) -> None:
    out, _ = trained
    assert "is not empty" in fail("train", "--out", out, "--recipe", recipe)
    assert "is a file" in fail("train", "--out", recipe)


def test_resume_may_repeat_options_but_not_change_them(trained: tuple[Path, dict[str, Any]]) -> None:
    out, printed = trained
    again = json.loads(succeed("train", "--out", out, "--resume", "--seed", 3, "--json", *ALONE))
    assert again["identity"] == printed["identity"]
    assert "with seed 3 and not 4" in fail("train", "--out", out, "--resume", "--seed", 4)


@pytest.mark.parametrize(("given", "expected"), [((), 5), (("--workers", 3), 3)])
def test_train_uses_all_cores_unless_told(
    given: tuple[Any, ...], expected: int, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*arguments: Any, workers: int, **others: Any) -> Path:
        raise ConfigError(f"asked for {workers}")

    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(agents, "train", train)
    assert f"asked for {expected}" in fail("train", "--recipe", recipe, "--out", tmp_path / "run", *given)


def test_export_writes_the_controller_of_the_training(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, printed = trained
    target = tmp_path / "mine.safetensors"
    assert succeed("export", out, "--out", target).startswith(str(target))
    assert Controller.load(target).identity == printed["identity"]
    assert json.loads(succeed("export", out, "--json"))["identity"] == printed["identity"]
    assert "is a folder" in fail("export", out, "--out", tmp_path)
    assert "its config.json is missing" in fail("export", tmp_path / "nothing")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from rlrate.cli import main; main()", "train", "--out", "my run"]
    process = subprocess.Popen(
        [*command, "--recipe", recipe, "--iterations", "500", "--workers", "2"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stderr is not None
        assert [process.stderr.readline().partition("return")[0] for _ in range(2)] == [
            "rollout   1/500  ",
            "rollout   2/500  ",
        ]
        process.send_signal(signal.SIGINT)
        printed, noted = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == INTERRUPTED, noted
    assert printed == ""
    assert "stopped; saved after rollout " in noted
    assert "rlrate train --out 'my run' --resume" in noted
    assert "rlrate export 'my run'" in noted
    succeed("export", tmp_path / "my run")


def test_inspect_shows_signals_cadence_rules_and_provenance(trained: tuple[Path, dict[str, Any]]) -> None:
    out, printed = trained
    text = succeed("inspect", out / "controller.safetensors", "--steps", 200)
    for name in USUAL:
        assert name in text and SIGNALS[name][:40] in text
    for part in (printed["identity"], "decides 9 times", "1/2.5 to 2.5", "last 30% of the budget", "stable_baselines3"):
        assert part in text


def test_inspect_as_json(trained: tuple[Path, dict[str, Any]]) -> None:
    out, printed = trained
    facts = json.loads(succeed("inspect", out / "controller.safetensors", "--steps", 200, "--json"))
    controller = Controller.load(out / "controller.safetensors")
    assert facts["identity"] == printed["identity"]
    assert facts["control"] == controller.spec.to_dict()
    assert facts["decides_after"] == controller.spec.cadence.boundaries(200)[:-1].tolist()
    assert facts["provenance"]["recipe"]["seed"] == 3


def test_inspect_refuses_what_is_no_controller(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, _ = trained
    assert "no controller 'defualt'" in fail("inspect", "defualt")
    assert "pickle" in fail("inspect", out / "ppo.zip")
    assert "folder" in fail("inspect", out)
    assert "--steps must be at least 1" in fail("inspect", out / "controller.safetensors", "--steps", 0)
