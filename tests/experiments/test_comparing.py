"""``rlrate compare --suite``: stopped, gone on with, refused."""

from __future__ import annotations

import functools
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlrate.cli.app import INTERRUPTED
from rlrate.cli.terminal import Steps
from rlrate.experiments import load, oracle
from rlrate.experiments.suite import load_suite

from command_line import fail, run, succeed

TOML = """
title = "Two methods"
seeds = 2
tuning_seeds = 1
rates = 2
schedules = ["constant"]
entrants = ["learned", "adam"]

[[problem]]
workload = "wine-mlp"
optimizer = "momentum"
steps = 20
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small = functools.partial(oracle.save_oracle, steps=10, seeds=1)
    monkeypatch.setattr(oracle, "save_oracle", small)
    path = tmp_path / "two.toml"
    path.write_text(TOML)
    return path


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("compare", "--suite", suite, "--out", tmp_path / "out", "--workers", 1)
    monkeypatch.setattr("sys.argv", ["rlrate", *map(str, command)])

    def stop(_: Steps, done: int, total: int, text: str) -> None:
        if done >= total / 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "step", stop)
        stopped = run(*command)
    assert stopped.exit_code == INTERRUPTED
    assert "finished runs are kept in" in stopped.stderr and "stopped" in stopped.stderr
    assert not load(tmp_path / "out").complete
    kept = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert kept

    printed = succeed(*command)
    assert "Two methods" in printed and "wine-mlp momentum 20" in printed and "8 runs" in printed
    assert (tmp_path / "out" / "results.jsonl").read_bytes().startswith(kept)
    facts = json.loads(succeed(*command, "--json"))
    assert facts["complete"] and facts["title"] == "Two methods" and facts["seeds"] == [1000, 1001]
    assert {Path(name).name for name in facts["files"]} == {"oracle.json", "results.jsonl", "suite.json"}
    assert facts["command"] == shlex.join(["rlrate", *map(str, command)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "wine-mlp"], "--workload and --suite exclude each other"),
        (["--backend", "rey"], "unknown backend 'rey': did you mean 'ray'"),
        (["--workers", "-1"], "workers must be a positive integer"),
        (["--controller", "none"], "no controller 'none'"),
    ],
)
def test_bad_options(options: list[str], message: str, suite: Path, tmp_path: Path) -> None:
    assert message in fail("compare", "--suite", suite, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_another_suite_is_not_mixed_in(suite: Path, tmp_path: Path) -> None:
    command = ("compare", "--suite", suite, "--out", tmp_path / "out", "--workers", 1)
    succeed(*command)
    suite.write_text(TOML.replace("seeds = 2", "seeds = 3"))
    assert "holds another comparison, which differs in seeds" in fail(*command)


def test_the_example_of_the_documentation_is_a_suite(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "commands.md"
    blocks: list[Any] = re.findall(r"```toml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    text = next(block for block in blocks if "[[problem]]" in block)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert len(load_suite(str(path)).problems) == 2
