"""Accelerate makes the decisions of the plain loop, in one process and in two, without an integration."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.scheduler import AcceleratedScheduler

from rlrate import LearnedLR

from . import accelerated, runs

EPOCHS, BATCHES = accelerated.EPOCHS, accelerated.BATCHES
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate": 2},
    "split": {"split": True},
    "free": {"step_scheduler_with_optimizer": False},
    "out": {"order": "out"},
    "trainer": {},
}


@pytest.fixture(autouse=True)
def no_state_is_left() -> Iterator[None]:
    accelerated.forget()
    yield
    accelerated.forget()
    gc.collect()


def expected(*, epochs: int = EPOCHS, batches: int = BATCHES, size: int = runs.BATCH, **more: Any) -> Any:
    model = runs.network()
    optimizer = runs.make_optimizer(model)
    updates = epochs * batches // more.get("accumulate", 1)
    scheduler = LearnedLR(optimizer, updates, runs.controller())
    rates = runs.plain_loop(model, optimizer, scheduler, epochs, batches, size=size, **more)
    assert len(rates) == updates and len({rate for rate, _ in rates}) > 8
    return rates


@pytest.mark.parametrize("order", ["before", "after", "out"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_process(order: str, accumulate: int) -> None:
    run = accelerated.train(order=order, accumulate=accumulate)
    assert run["rates"] == expected(accumulate=accumulate)
    assert isinstance(run["scheduler"], LearnedLR if order == "out" else AcceleratedScheduler)
    assert run["scheduler"].get_last_lr() == runs.rates_of(run["learned"].optimizer)


# Of torch, about any scheduler that is made after prepare; Accelerate silences it where pytest does not interfere.
@pytest.mark.filterwarnings("ignore:Seems like `optimizer.step:UserWarning")
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_update_that_a_grad_scaler_skips_does_not_count(order: str) -> None:
    run = accelerated.train(order=order, overflows=BATCHES)  # the first batch of the second epoch
    model = runs.network()
    optimizer = runs.make_optimizer(model)
    scheduler = LearnedLR(optimizer, EPOCHS * BATCHES, runs.controller())
    rates = runs.plain_loop(model, optimizer, scheduler, EPOCHS, BATCHES, leave_out=BATCHES)
    assert run["learned"].updates == EPOCHS * BATCHES - 1
    assert run["rates"][:BATCHES] + run["rates"][BATCHES + 1 :] == rates


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_state_that_accelerate_saves_and_loads(order: str, tmp_path: Path) -> None:
    whole = accelerated.train(order=order, folder=tmp_path / "state")["rates"]
    accelerated.forget()
    rest = accelerated.train(order=order, resume=tmp_path / "state")["rates"]
    assert rest == whole[2 * BATCHES :] == expected()[2 * BATCHES :]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("two")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.accelerated", str(rank), str(folder), json.dumps(CASES)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes(case: str, pair: list[dict[str, Any]]) -> None:
    first, second = (seen[case] for seen in pair)
    assert first == second
    if case == "split":  # each has a half of every batch
        rates = expected(batches=BATCHES)
    else:  # every other batch, which is to have batches of twice the size
        more = {"clip": 1.0} if case == "trainer" else {"accumulate": CASES[case].get("accumulate", 1)}
        rates = expected(batches=BATCHES // 2, size=2 * runs.BATCH, **more)
    # Processes sum their gradients in another order: a processor may round the difference past 1e-6 in 108 updates.
    torch.testing.assert_close(first["rates"], rates, rtol=1e-5, atol=0.0)


def test_two_processes_step_it_twice_without_a_warning(pair: list[dict[str, Any]]) -> None:
    for seen in pair:
        assert seen["warnings"] == []
        assert seen["plain"]["calls"] == 2 * seen["plain"]["updates"]
        assert seen["split"]["calls"] == seen["split"]["updates"]
