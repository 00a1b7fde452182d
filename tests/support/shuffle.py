"""Tests in random orders: a pytest plugin (-p shuffle, with RLRATE_ORDER=seed), and a script that runs several."""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys

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
    """Runs the tests in several orders and prints which fail."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("tests", nargs="*", default=["tests/rlrate", "tests/experiments", "tests/reliability"])
    given = parser.parse_args()
    support = str(scoreboard.ROOT / "tests" / "support")
    failed = 0
    for seed in range(given.orders):
        environment = os.environ | {"RLRATE_ORDER": str(seed), "PYTHONPATH": support, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "shuffle", "-p", "no:cacheprovider", *given.tests]
        done = subprocess.run(
            command, cwd=scoreboard.ROOT, env=environment, capture_output=True, text=True, check=False
        )
        print(f"order {seed}: {done.stdout.strip().splitlines()[-1]}", flush=True)
        if done.returncode:
            failed += 1
            print(done.stdout, done.stderr)
    scoreboard.note("orders", given.orders, failed)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
