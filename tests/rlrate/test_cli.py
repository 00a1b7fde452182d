"""The command line, as a newcomer and as a script meet it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import rlrate
from rlrate import Controller
from rlrate.cli import app, main
from rlrate.cli.app import ERROR, INTERRUPTED
from rlrate.cli.terminal import Steps, clock
from rlrate.errors import ControllerError

from command_line import WORKLOAD, fail, run, succeed

# Help ---------------------------------------------------------------------------------------------


def commands() -> list[str]:
    return [command.callback.__name__ for command in app.registered_commands if command.callback]


def test_the_commands_are_those_of_the_documentation() -> None:
    assert commands() == ["train", "export", "inspect", "compare", "report", "workloads", "bench"]


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


# Workloads, compare and bench ---------------------------------------------------------------------------


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


@pytest.mark.slow
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


@pytest.mark.parametrize("arguments", ["--debug inspect missing", "inspect missing --debug"])
def test_debug_lets_the_error_through_wherever_it_stands(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ControllerError):  # Python prints its traceback
        main(arguments.split())
    with pytest.raises(SystemExit):
        main(["inspect", "missing"])
    assert "Traceback" not in capsys.readouterr().err


# One process that has imported torch alone, forked for every case: each imports the rest without one library.
WITHOUT = """
import contextlib, io, json, os, sys
import torch
said = {}
for missing, command in json.loads(sys.argv[1]).items():
    pipe, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        sys.modules[missing] = None
        out, err, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                from rlrate.cli import main
                main(command.split())
            except SystemExit as end:
                code = end.code
        os.write(theirs, json.dumps([code, out.getvalue(), err.getvalue()]).encode())
        os._exit(0)
    os.close(theirs)
    said[missing] = json.loads(open(pipe).read())
print(json.dumps(said))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_missing_extra_is_named_with_its_mend() -> None:
    cases = {"gymnasium": "workloads", "stable_baselines3": "export x", "sklearn": "workloads wine-mlp"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(cases)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said.keys() == cases.keys()
    for code, printed, noted in said.values():
        assert code == ERROR, noted
        assert 'pip install "rlrate[train]"' in noted
        assert "Traceback" not in noted and printed == ""


def test_the_first_step_pays_for_the_set_up() -> None:
    with Steps("step") as steps:
        steps._begun -= 10.0
        assert steps.remaining(1, 3) == pytest.approx(20.0, rel=0.1)
        steps._first = (1, steps._begun + 8.0)
        assert steps.remaining(2, 3) == pytest.approx(2.0, rel=0.1)
    assert [clock(5), clock(65), clock(3723)] == ["0:05", "1:05", "1:02:03"]


def test_ctrl_c_in_any_command_ends_with_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> Controller:
        raise KeyboardInterrupt

    monkeypatch.setattr(Controller, "load", interrupted)
    result = run("inspect", "default")
    assert (result.exit_code, result.stderr) == (INTERRUPTED, "stopped\n")
