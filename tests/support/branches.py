"""Branch coverage of the core by the tests that belong to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import mutants
import scoreboard

LEAST = 0.9


def main() -> None:
    """Runs the tests under coverage and prints the share of branches of each module."""
    patterns = {pattern for _, own in mutants.TARGETS.values() for pattern in own}
    tests = sorted({str(path) for pattern in patterns for path in (scoreboard.ROOT / "tests").glob(pattern)})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-n0",
                "--cov",
                "--cov-branch",
                f"--cov-report=json:{report}",
                *tests,
            ],
            cwd=scoreboard.ROOT,
            env=os.environ | {"COVERAGE_FILE": str(Path(folder) / "data"), "COVERAGE_CORE": "ctrace"},
            check=False,
        )
        if done.returncode:
            sys.exit("the tests fail")
        files = json.loads(report.read_text("utf-8"))["files"]
    shares = {}
    for file, _ in mutants.TARGETS.values():
        summary = files[file]["summary"]
        shares[file] = summary["covered_branches"] / max(summary["num_branches"], 1)
        print(f"{file}: {summary['covered_branches']} of {summary['num_branches']} branches, {shares[file]:.1%}")
        for start, end in files[file]["missing_branches"]:
            print(f"  not run: from line {start} to {end}")
    lowest = min(shares.values())
    scoreboard.note(
        "branches", len(shares), sum(share < LEAST for share in shares.values()), **{"lowest share": lowest}
    )
    sys.exit(lowest < LEAST)


if __name__ == "__main__":
    main()
