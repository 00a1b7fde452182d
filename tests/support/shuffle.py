"""Tests in random orders: a pytest plugin (-p shuffle, with RLRATE_ORDER=seed), and a script that runs several."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import scoreboard


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Shuffles the modules, and the tests in each: their fixtures are then still made once."""
    rng = random.Random(int(os.environ["RLRATE_ORDER"]))
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    names = list(modules)
    rng.shuffle(names)
    for name in names:
        rng.shuffle(modules[name])
    items[:] = [item for name in names for item in modules[name]]


def main() -> None:
    """Runs the tests in several orders, some at once, and prints which fail."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("tests", nargs="*", default=["tests/rlrate", "tests/experiments", "tests/reliability"])
    given = parser.parse_args()
    failed = 0
    with ThreadPoolExecutor(given.at_once) as pool:
        for seed, done in enumerate(pool.map(partial(one_order, given.tests), range(given.orders))):
            print(f"order {seed}: {done.stdout.strip().splitlines()[-1]}", flush=True)
            if done.returncode:
                failed += 1
                print(done.stdout, done.stderr, flush=True)
    scoreboard.note("orders", given.orders, failed)
    sys.exit(failed > 0)


def one_order(tests: list[str], seed: int) -> subprocess.CompletedProcess[str]:
    """All tests in one process, but for the slow ones, which start clusters of processes of their own."""
    support = str(scoreboard.ROOT / "tests" / "support")
    environment = os.environ | {"RLRATE_ORDER": str(seed), "PYTHONPATH": support, "OMP_NUM_THREADS": "1"}
    options = ["-q", "-n0", "-m", "not slow", "-p", "shuffle", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    return subprocess.run(command, cwd=scoreboard.ROOT, env=environment, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    main()
