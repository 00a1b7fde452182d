"""The command line, as a newcomer and as a script meet it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import rlrate
from rlrate import Controller
from rlrate.cli import app
from rlrate.cli.app import ERROR, INTERRUPTED
from rlrate.cli.terminal import Steps, clock
from rlrate.control import SIGNALS

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

WORKLOAD = """
import torch
from torch import nn
from rlrate.envs import Workload

def make():
    data = torch.randn(40, 3), torch.randn(40, 1)
    return Workload("mine", "user", lambda: nn.Linear(3, 1), data, data, nn.functional.mse_loss, 8)
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="rlrate")


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: object) -> str:
    """The message of a command that must end with one line on stderr and nothing on stdout."""
    result = run(*arguments)
    assert result.exit_code == ERROR, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-1].startswith("error: "), lines
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    return lines[-1]


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
    printed = succeed("train", "--recipe", folder / "tiny.toml", "--out", folder / "run", "--json")
    return folder / "run", json.loads(printed)


# Help ---------------------------------------------------------------------------------------------


def commands() -> list[str]:
    return [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_the_commands_are_those_of_the_documentation() -> None:
    assert commands() == ["train", "export", "inspect", "compare", "workloads", "bench"]


@pytest.mark.parametrize("command", commands())
def test_help_begins_with_what_the_command_does_and_an_example(command: str) -> None:
    text = " ".join(succeed(command, "--help").split())
    usage, _, rest = text.partition("Options")
    assert f"Example: rlrate {command}" in usage
    assert usage.index(". ") < usage.index("Example:")
    assert "--help" in rest


def test_help_needs_no_training_library(tmp_path: Path) -> None:
    code = """
import sys
from rlrate.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
heavy = {"gymnasium", "stable_baselines3", "sklearn", "matplotlib", "scipy", "pandas", "optuna"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "loaded: []", done.stderr


def test_version() -> None:
    assert succeed("--version") == f"rlrate {rlrate.__version__}\n"


def test_a_mistyped_command_is_answered_with_the_right_one() -> None:
    result = run("tran")
    assert result.exit_code == ERROR
    assert "Did you mean 'train'" in result.stderr


# Train and export ---------------------------------------------------------------------------------


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
    used = Controller.load(tmp_path / "run/controller.safetensors").provenance["recipe"]
    assert (used["seed"], used["runs"], used["draws"], used["iterations"]) == (5, 2, 1, 1)
    assert used["environment"]["optimizer"] == "adam" and used["environment"]["steps"] == 60
    assert used["algorithm"]["batch_size"] == 6, "as many minibatches as the recipe has"


def test_train_with_another_algorithm_drops_settings_of_the_first(recipe: Path, tmp_path: Path) -> None:
    arguments = ("train", "--recipe", recipe, "--out", tmp_path / "run", "--algo", "a2c", "--action", "discrete")
    result = run(*arguments, "--iterations", 1)
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
    again = json.loads(succeed("train", "--out", out, "--resume", "--seed", 3, "--json"))
    assert again["identity"] == printed["identity"]
    assert "with seed 3 and not 4" in fail("train", "--out", out, "--resume", "--seed", 4)


def test_export_writes_the_controller_of_the_training(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    out, printed = trained
    target = tmp_path / "mine.safetensors"
    assert succeed("export", out, "--out", target).startswith(str(target))
    assert Controller.load(target).identity == printed["identity"]
    assert json.loads(succeed("export", out, "--json"))["identity"] == printed["identity"]
    assert "is a folder" in fail("export", out, "--out", tmp_path)
    assert "no checkpoint" in fail("export", tmp_path / "nothing")


def test_ctrl_c_saves_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from rlrate.cli import main; main()", "train", "--out", "my run"]
    process = subprocess.Popen(
        [*command, "--recipe", recipe, "--iterations", "500"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


def test_ctrl_c_in_any_command_ends_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> Controller:
        raise KeyboardInterrupt

    monkeypatch.setattr(Controller, "load", interrupted)
    result = run("inspect", "default")
    assert (result.exit_code, result.stderr) == (INTERRUPTED, "stopped\n")


# Inspect and workloads ----------------------------------------------------------------------------


def test_inspect_shows_signals_cadence_rules_and_provenance(trained: tuple[Path, dict[str, Any]]) -> None:
    out, printed = trained
    text = succeed("inspect", out / "controller.safetensors", "--steps", 200)
    for name, meaning in SIGNALS.items():
        assert name in text and meaning[:40] in text
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


def test_workloads_lists_all_and_shows_a_sample(tmp_path: Path) -> None:
    from rlrate.envs import workload_names

    assert [entry["name"] for entry in json.loads(succeed("workloads", "--json"))] == workload_names()
    table = succeed("workloads")
    assert all(name in table for name in workload_names())
    facts = json.loads(succeed("workloads", "digits-mlp", "--json"))
    assert facts["parameters"] == 64 * 64 + 64 + 64 * 10 + 10
    assert facts["train"]["inputs"] == "float32 (64,)"
    (tmp_path / "my_file.py").write_text(WORKLOAD)
    assert "Linear(in_features=3, out_features=1" in succeed("workloads", f"{tmp_path / 'my_file.py'}:make")
    assert succeed("workloads", "cnn", "--seed", 3) == succeed("workloads", "cnn", "--seed", 3)
    assert "did you mean 'cnn'" in fail("workloads", "cn")


# Compare and bench --------------------------------------------------------------------------------


def test_compare_prints_its_table_and_writes_its_files(tmp_path: Path) -> None:
    controller = Controller.constant(0.3).save(tmp_path / "constant.safetensors")
    arguments = (
        *("compare", "--workload", "wine-mlp", "--optimizer", "adam", "--steps", 40, "--schedule", "constant"),
        *("--grid", 3, "--seeds", 2, "--tuning-seeds", 1, "--controller", controller, "--out", tmp_path / "out"),
    )
    text = succeed(*arguments)
    assert "learned" in text and "constant" in text
    assert "learned / best tuned schedule of the same optimizer: " in text
    assert str(tmp_path / "out/results.json") in text and ".png" in text
    result = run(*arguments, "--json")
    printed = json.loads(result.stdout)
    assert {row["method"] for row in printed["rows"]} == {"constant", "learned"}
    assert printed["settings"]["seeds"] == 2 and printed["summary"]["all"]["runs"] == 2
    assert "comparing" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "wine"], "unknown workload 'wine'"),
        (["--optimizer", "adm"], "unknown optimizer 'adm'"),
        (["--schedule", "cosin"], "unknown schedule 'cosin': did you mean 'cosine'"),
        (["--grid", "0"], "grid must be a positive integer"),
    ],
)
def test_compare_refuses_bad_options(options: list[str], message: str, tmp_path: Path) -> None:
    controller = Controller.constant().save(tmp_path / "constant.safetensors")
    assert message in fail("compare", "--controller", controller, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_bench_prints_the_figures_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlrate.envs import bench

    figures = {"threads": 1, "mlp": {"ratio": 12.25}}
    monkeypatch.setattr(bench, "environment_benchmark", lambda: figures, raising=False)
    assert json.loads(succeed("bench", "environment", "--json")) == figures
    assert succeed("bench", "environment") == "threads: 1\nmlp\n  ratio: 12.25\n"
    assert "unknown benchmark 'enviroment': did you mean 'environment'" in fail("bench", "enviroment")


# Errors -------------------------------------------------------------------------------------------


def test_debug_shows_the_traceback_wherever_it_stands() -> None:
    for arguments in ("--debug inspect missing", "inspect missing --debug"):
        done = subprocess.run(
            [sys.executable, "-c", "from rlrate.cli import main; main()", *arguments.split()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "Traceback" in done.stderr and "ControllerError" in done.stderr


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [("gymnasium", "workloads", "train"), ("stable_baselines3", "export x", "train"), ("sklearn", "", "train")],
)
def test_a_missing_extra_is_named_with_its_mend(missing: str, command: str, extra: str) -> None:
    command = command or "workloads wine-mlp"
    code = f"import sys; sys.modules[{missing!r}] = None; from rlrate.cli import main; main({command.split()})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == ERROR, done.stderr
    assert f'pip install "rlrate[{extra}]"' in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_the_first_step_pays_for_the_set_up() -> None:
    with Steps("step") as steps:
        steps._begun -= 10.0
        assert steps.remaining(1, 3) == pytest.approx(20.0, rel=0.1)
        steps._first = (1, steps._begun + 8.0)
        assert steps.remaining(2, 3) == pytest.approx(2.0, rel=0.1)
    assert [clock(5), clock(65), clock(3723)] == ["0:05", "1:05", "1:02:03"]
