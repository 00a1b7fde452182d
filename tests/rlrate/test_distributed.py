"""Several processes that train one model: same rates in all of them, as if there were one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from . import distributed

SCRIPT = Path(__file__).parent / "distributed.py"


CASES = ("ddp", "group", "fsdp", "lacking", "silent", "nan", "alone", "told", "told-both", "untold")
Seen = dict[str, dict[str, Any]]


def together(cases: tuple[str, ...], folder: Path, size: int) -> list[Seen]:
    """What each of the processes saw."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(size), str(folder), *cases],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    return together(CASES, tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    """One process with the joint batch."""
    with torch.random.fork_rng():
        return distributed.run("one", 0, 1)


@pytest.mark.parametrize("case", ["ddp", "group", "fsdp"])
def test_two_processes_are_as_one(case: str, pair: list[Seen], one: dict[str, Any]) -> None:
    first, second = (seen[case] for seen in pair)
    assert first["rates"] == second["rates"]
    assert torch.equal(first["weights"], second["weights"])
    assert torch.equal(first["observations"], second["observations"])
    np.testing.assert_allclose(first["rates"], one["rates"], rtol=1e-5)
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first["observations"], one["observations"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["lacking", "silent", "nan"])
def test_processes_agree_even_when_one_of_them_knows_less(case: str, pair: list[Seen]) -> None:
    first, second = (seen[case] for seen in pair)
    assert first["rates"] == second["rates"]
    assert len(set(first["rates"])) > 10
    assert first["cuts"] == second["cuts"] == (1 if case == "nan" else first["cuts"])


def test_the_validation_loss_of_the_first_process_counts(pair: list[Seen]) -> None:
    first, second = pair
    for case in ("told", "told-both", "untold"):
        assert first[case]["rates"] == second[case]["rates"]
    assert first["told"]["rates"] == first["told-both"]["rates"]
    assert first["told"]["rates"] != first["untold"]["rates"]


def test_a_process_may_stay_alone(pair: list[Seen]) -> None:
    first, second = (seen["alone"] for seen in pair)
    assert first["rates"] != second["rates"]
