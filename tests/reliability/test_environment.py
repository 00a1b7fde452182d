"""The same seed gives the same episode: again, in another process, and in a batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from rlrate.envs import TrainingVectorEnv

import rollouts
from scoreboard import cases

SEEDS = range(cases(1, 5))
DECISIONS = cases(30, 200)
RUNS = 3
JOBS = [(family, seed, DECISIONS) for family in rollouts.FAMILIES for seed in SEEDS]


@pytest.fixture(scope="module")
def here() -> list[str]:
    return [rollouts.digest(rollouts.single(*job)) for job in JOBS]


def test_again(here: list[str], record_property: Callable[[str, object], None]) -> None:
    assert [rollouts.digest(rollouts.single(*job)) for job in JOBS] == here
    assert len(set(here)) == len(here), "another seed or family is another episode"
    record_property("cases", len(JOBS))


def test_in_another_process(here: list[str], record_property: Callable[[str, object], None]) -> None:
    done = subprocess.run(
        [sys.executable, rollouts.__file__],
        input=json.dumps(JOBS),
        env=os.environ | {"PYTHONHASHSEED": "12345"},
        capture_output=True,
        check=True,
        text=True,
    )
    there = json.loads(done.stdout)
    assert there["hash"] != hash("rlrate"), "hashes must differ, else this shows nothing"
    assert there["digests"] == here
    record_property("cases", len(JOBS))


def test_in_a_batch(record_property: Callable[[str, object], None]) -> None:
    """In double precision: a batch adds up in another order, and networks at the edge of chaos blow that up."""
    largest = 0.0
    for family, seed, decisions in JOBS:
        settings = rollouts.settings(family, decisions, dtype="float64")
        batch = TrainingVectorEnv(RUNS, **settings)
        batch.reset(seed=seed)
        steps = [batch.step(action) for action in rollouts.actions(seed, decisions, RUNS)]
        batch.close()
        run = seed % RUNS
        alone = rollouts.single(family, seed, decisions, run, RUNS, dtype="float64")
        for row, (observations, rewards, ended, _, _) in zip(alone, steps, strict=False):
            if not ended.any():
                together = np.array([*observations[run].tolist(), rewards[run]])
                largest = max(largest, float(np.abs(row - together).max()))
    assert largest <= 1e-5
    record_property("cases", len(JOBS))
    record_property("batch against single", largest)
