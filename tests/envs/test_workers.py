"""Draws that are trained in other processes."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlrate.envs import TrainingConfig, TrainingVectorEnv, make_workload
from rlrate.envs.processes import process_context
from rlrate.envs.workers import HOSTS, Draws, LocalHost, ProcessHost, _serve, spread
from rlrate.errors import ConfigError, RlrateError, WorkloadError

CONFIG = TrainingConfig(workload="wine-mlp", optimizer="adam", steps=20)


@pytest.fixture
def host() -> Iterator[ProcessHost]:
    host = ProcessHost(CONFIG, 2)
    yield host
    host.close()
    assert not multiprocessing.active_children()


def test_a_process_begins_anew() -> None:
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        with ProcessPoolExecutor(1, process_context()) as pool:
            assert pool.submit(torch.get_default_dtype).result() == usual
    finally:
        torch.set_default_dtype(usual)


def kill(host: ProcessHost) -> None:
    pid = host._process.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_process_answers_as_this_one_does_until_it_dies(host: ProcessHost) -> None:
    here = Draws(CONFIG, 2)
    for method, argument in (("begin", {3: (1, 0, 3)}), ("step", {3: np.array([0.5, -0.5])})):
        host.ask(method, argument)
        theirs, ours = host.answer()[3], getattr(here, method)(argument)[3]
        np.testing.assert_array_equal(theirs.observation, ours.observation)
        np.testing.assert_array_equal(theirs.reward, ours.reward)
        assert (theirs.family, theirs.done, list(theirs.facts)) == (ours.family, ours.done, list(ours.facts))
    host.ask("step", {4: np.zeros(2)})
    with pytest.raises(RlrateError, match=r"(?s)a worker process failed:.*KeyError: 4"):
        host.answer()
    host.ask("begin", {0: (1, 0, 0)})
    kill(host)
    with pytest.raises(RlrateError, match=r"a worker process died .*Use fewer runs or workers"):
        for _ in range(2):  # the answer may have been sent before the end
            host.answer()
    host.ask("begin", {0: (1, 0, 0)})
    with pytest.raises(RlrateError, match=r"a worker process died \(exit code -9\)"):
        host.answer()


def test_draws_that_were_lost_are_trained_again_to_the_same_decision() -> None:
    seeds, actions = {3: (1, 0, 3), 5: (1, 0, 5)}, np.random.default_rng(0).uniform(-1, 1, (2, 3, 2))
    first, second = Draws(CONFIG, 2), Draws(CONFIG, 2)
    first.begin(seeds)
    for u in actions[0]:
        last = first.step({3: u})
    last |= first.step({5: actions[1, 0]})
    again = second.rebuild({3: (seeds[3], list(actions[0])), 5: (seeds[5], [actions[1, 0]])})
    following = [draws.step({3: np.zeros(2), 5: np.ones(2)}) for draws in (first, second)]
    for ours, theirs in ((last, again), following):
        for index in seeds:
            np.testing.assert_array_equal(theirs[index].observation, ours[index].observation)
            np.testing.assert_array_equal(theirs[index].reward, ours[index].reward)
            np.testing.assert_array_equal(theirs[index].facts["lr"], ours[index].facts["lr"])


def test_a_process_whose_parent_was_killed_ends_without_a_word() -> None:
    threads = torch.get_num_threads()
    ours, theirs = multiprocessing.Pipe()
    ours.send(("begin", {0: (1, 0, 0)}))
    ours.close()
    try:
        _serve(theirs, CONFIG, 2)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from rlrate.envs import TrainingConfig\n"
        "from rlrate.envs.workers import ProcessHost\n"
        "host = ProcessHost(TrainingConfig(workload='wine-mlp'), 2)\n"
        "host.ask('begin', {0: (1, 0, 0)})\n"
        "host.answer()\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True)
    last = ran.stderr.strip().splitlines()[-1]
    assert "failed to start (exit code 1); a script that uses several workers must do so under `if __name__ ==" in last


def test_a_workload_that_cannot_be_sent_is_refused_at_once() -> None:
    workload = make_workload("wine-mlp", 0)
    with pytest.raises(ConfigError, match=r"cannot be sent to other processes .* or use workers=1"):
        TrainingVectorEnv(4, draws=2, workers=2, workload=lambda: workload)
    TrainingVectorEnv(4, draws=2, workers=1, workload=lambda: workload)
    TrainingVectorEnv(4, draws=1, workers=2, workload=lambda: workload)  # one draw needs no other process
    if importlib.util.find_spec("ray"):
        with pytest.raises(ConfigError, match=r"cannot be sent .* or use the local backend with workers=1"):
            TrainingVectorEnv(4, workers=1, backend="ray", workload=lambda: workload)
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        TrainingVectorEnv(4, workers=0)


def test_a_backend_is_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'rey': did you mean 'ray'"):
        TrainingVectorEnv(4, backend="rey")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r'needs ray, which is not installed: pip install "rlrate\[ray\]"'):
        TrainingVectorEnv(4, backend="ray")


def test_after_a_failure_the_runs_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []

    class Failing(LocalHost):
        closed = False

        def answer(self) -> Any:
            if self is made[0]:
                raise WorkloadError("out of data")
            return super().answer()

        def close(self) -> None:
            self.closed = True

    def make_hosts(config: TrainingConfig, runs: int, workers: int) -> list[Failing]:
        made.extend(Failing(config, runs) for _ in range(workers))
        return made[-workers:]

    monkeypatch.setitem(HOSTS, "local", make_hosts)
    batch = TrainingVectorEnv(4, draws=2, workers=2, workload="wine-mlp", optimizer="adam", steps=20)
    with pytest.raises(WorkloadError, match="out of data"):
        batch.reset(seed=0)
    assert all(host.closed for host in made)
    with pytest.raises(ConfigError, match=r"call reset\(\)"):
        batch.step(np.zeros((4, 1), np.float32))
    batch.reset(seed=0)
    batch.step(np.zeros((4, 1), np.float32))
    assert len(made) == 4


@given(st.lists(st.floats(0.0, 1e3), min_size=1, max_size=20), st.integers(1, 5))
def test_moving_draws_lightens_the_busiest_host(costs: list[float], hosts: int) -> None:
    def busiest(owners: dict[int, int]) -> float:
        return max(sum(costs[i] for i, owner in owners.items() if owner == host) for host in range(hosts))

    before = {index: index % hosts for index in range(len(costs))}
    after = spread(dict(enumerate(costs)), hosts, before)
    assert after.keys() == before.keys() and set(after.values()) <= set(range(hosts))
    assert busiest(after) <= busiest(before)
    if len(costs) > 1 and hosts > 1 and sorted(costs)[-2] > 0:
        alone = {index: 0 for index in before}
        assert busiest(spread(dict(enumerate(costs)), hosts, alone)) < busiest(alone) or sum(costs) < 1.1 * max(costs)


@pytest.mark.slow
def test_where_a_draw_is_trained_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def rollout() -> list[Any]:
        batch = TrainingVectorEnv(6, draws=3, workers=2, workload="wine-mlp", steps=20)
        seen: list[Any] = [batch.reset(seed=4)[0]]
        while not seen[-1].all() or len(seen) < 3:
            observation, reward, done, _, _ = batch.step(np.full((6, 1), 0.5, np.float32))
            seen += [observation, reward, done]
        batch.close()
        return seen

    monkeypatch.setattr("rlrate.envs.env.spread", lambda costs, hosts, owners: {0: 0, 1: 1, 2: 0})
    kept = rollout()
    monkeypatch.setattr("rlrate.envs.env.spread", lambda costs, hosts, owners: {i: 1 - o for i, o in owners.items()})
    moved = rollout()
    assert len(kept) == len(moved)
    for one, other in zip(kept, moved, strict=True):
        np.testing.assert_array_equal(one, other)
