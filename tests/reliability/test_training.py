"""The same recipe gives the same controller: in another process, and after a stop at any rollout."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlrate import Controller
from rlrate.agents import Recipe, train
from rlrate.agents.checkpoint import read_checkpoint

import retrain
from scoreboard import cases

CUTS = cases(3, 16)


class Stopped(Exception):
    """Stands for the end of the process."""


def test_in_another_process(
    trained: Path, tiny: dict[str, Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """From the beginning, and from where this one stopped."""
    with pytest.raises(Stopped):
        train(Recipe.from_dict(tiny), tmp_path / "begun", progress=stop_after(2))
    jobs = [
        {"recipe": tiny, "out": str(tmp_path / "new"), "resume": False},
        {"recipe": tiny, "out": str(tmp_path / "begun"), "resume": True},
    ]
    done = subprocess.run(
        [sys.executable, retrain.__file__],
        input=json.dumps(jobs),
        env=os.environ | {"PYTHONHASHSEED": "54321"},
        capture_output=True,
        check=True,
        text=True,
    )
    there = json.loads(done.stdout)
    assert there["hash"] != hash("rlrate"), "hashes must differ, else this shows nothing"
    assert there["identities"] == [Controller.load(trained / "controller.safetensors").identity] * 2
    for name in ("new", "begun"):
        assert (tmp_path / name / "progress.csv").read_bytes() == (trained / "progress.csv").read_bytes()
        same(read_checkpoint(tmp_path / name), read_checkpoint(trained))
    record_property("cases", 2)


def stop_after(rollouts: int) -> Callable[[int, int, dict[str, float]], None]:
    def progress(done: int, total: int, row: dict[str, float]) -> None:
        del total, row
        if done >= rollouts:
            raise Stopped

    return progress


def test_stopped_in_any_rollout(
    tiny: dict[str, Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    recipe = Recipe.from_dict({**tiny, "iterations": CUTS + 1})
    whole = tmp_path / "whole"
    expected = train(recipe, whole).read_bytes()
    for cut in range(1, CUTS + 1):
        out = tmp_path / f"cut-{cut}"
        with pytest.raises(Stopped):
            train(recipe, out, progress=stop_after(cut))
        random.seed(cut)
        np.random.seed(cut)
        torch.manual_seed(cut)  # nothing of the process that stopped may matter but its files
        assert train(recipe, out, resume=True).read_bytes() == expected
        assert (out / "progress.csv").read_bytes() == (whole / "progress.csv").read_bytes()
        same(read_checkpoint(out), read_checkpoint(whole))
    record_property("cases", CUTS)


def same(a: Any, b: Any) -> None:
    """Bit-equal in every tensor and number: weights, moments, counters and random states."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            same(one, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
