"""The reliability scoreboard: its rows, and RELIABILITY.md as made from what the tests recorded.

`make soak` and `make test` record what they run (see recorder.py); `make scoreboard` takes the records over into
tests/reliability/figures.json and writes the page. tests/reliability/test_scoreboard.py holds the page to both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

Case = TypeVar("Case")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "RELIABILITY.md"
FIGURES = ROOT / "tests" / "reliability" / "figures.json"
RECORDS = ROOT / "build" / "reliability"
#: How much of the soak to run: 0 in `make test`, 1 in `make soak`, or a share of it.
SOAK = float(os.environ.get("RLRATE_SOAK") or 0)


def cases(fast: int, soak: int) -> int:
    """How many cases to try: few in `make test`, many in `make soak`."""
    return max(fast, round(SOAK * soak))


def some(fast: list[Case], soak: list[Case]) -> list[Case]:
    """The same for cases that are listed."""
    return soak[:: max(1, round(1 / SOAK))] if SOAK else fast


@dataclass(frozen=True)
class Row:
    """A promise, and the tests that hold it.

    Attributes:
        key: Short name; also that of its record when a command and not a test measures it.
        promise: What is promised.
        how: How it is tested.
        tests: Patterns of test ids; none when another command measures it.
        cases: How many cases must hold.
        figure: Name of the measured figure, and how to print it.
        target: What the figure must be, in words.
        least: Smallest figure that is green.
        command: Runs it.
    """

    key: str
    promise: str
    how: str
    tests: tuple[str, ...]
    cases: int
    figure: tuple[str, str] | None = None
    target: str = "no failure"
    least: float | None = None
    command: str = "make soak"


def _own(name: str) -> tuple[str, ...]:
    return (f"tests/reliability/test_{name}.py::*",)


ROWS = (
    Row(
        "contract",
        "LearnedLR behaves as torch's schedulers do",
        "23 rules x 8 optimizers x 1 and 2 parameter groups: state, copies, order of calls, tensors as rates, memory",
        ("tests/rlrate/test_conformance.py::*",),
        368,
        command="pytest tests/rlrate/test_conformance.py",
    ),
    Row(
        "faults",
        "No fault in a training run ends it or drives the rate out of bounds",
        "losses, gradients, weights and rates that become NaN, infinite, huge, missing or are replaced during a run",
        ("tests/rlrate/test_faults.py::*",),
        30,
        command="pytest tests/rlrate/test_faults.py",
    ),
    Row(
        "environment-api",
        "The environments follow Gymnasium's interface",
        "check_env of Gymnasium and of Stable-Baselines3, every family of workloads x both kinds of action, no warning",
        ("tests/envs/test_env.py::test_checkers_pass_without_a_warning*",),
        18,
        command="pytest tests/envs/test_env.py",
    ),
    Row(
        "export-parity",
        "An exported controller acts as the policy that was trained",
        "SB3's predict, the controller and the network written out in NumPy, on random and on rolled out observations",
        _own("export_parity"),
        33_000,
        ("largest difference", "{:.1e}"),
        "at most 1e-6, the same choice where actions are discrete",
    ),
    Row(
        "sane-rate",
        "The rate is finite and within bounds, whatever the training run does",
        "generated runs: losses, gradients and weights that are NaN, infinite, 1e38, subnormal or missing",
        _own("rates"),
        10_000,
    ),
    Row(
        "environment-determinism",
        "The same seed gives the same episode, bit for bit",
        "rollouts of 200 decisions, 6 families x 5 seeds: twice in one process, and in another with other hash seeds; "
        "row i of a batch is run i alone, up to the rounding of batched sums",
        _own("environment"),
        90,
        ("batch against single", "{:.1e}"),
        "bit-equal; 1e-5 for the batch",
    ),
    Row(
        "training-determinism",
        "The same recipe gives the same controller, and a resumed training the same as one that was never stopped",
        "another process with other hash seeds; a cut at each of 16 rollouts (PPO), and at 16 and more updates of "
        "4 kinds of training loops (LearnedLR), each continued by fresh objects with other random states",
        (*_own("training"), "tests/rlrate/test_resume.py::test_a_cut_run_goes_on_bit_equal*"),
        25,
        target="bit-equal",
    ),
    Row(
        "kill",
        "A process that is killed at any moment loses nothing that it had written",
        "SIGKILL at random moments of training, export and comparison (two processes at once, too), and at 4 "
        "to 6 points "
        "around every write; then resumed to the end",
        _own("kill"),
        190,
        target="all files readable, results as if undisturbed",
    ),
    Row(
        "damage",
        "Damaged files are noticed",
        "truncations and flipped bits, and generated contents, over controllers, checkpoints and results",
        _own("damage"),
        7_500,
        ("longest read (CPU s)", "{:.2f}"),
        "a typed error or a repair; no other numbers, none over 2 s",
    ),
    Row(
        "hostile",
        "A file from a stranger runs no code and does no harm",
        "pickles, zips and safetensors built to run code, to exhaust memory or to be misread",
        _own("hostile"),
        12,
        target="all refused, the canary untouched",
    ),
    Row(
        "static",
        "Nothing unpickles or evaluates outside of one named door",
        "every module of the package is parsed and searched for pickle, eval, exec, torch.load and their like",
        _own("static"),
        60,
        target="no call",
    ),
    Row(
        "old-files",
        "Files of earlier versions go on working, those of later ones are named as such",
        "controller, checkpoint, results and scheduler state of this version, kept in tests/golden; the same "
        "with a raised version",
        _own("golden"),
        6,
        target="the same numbers (weights bit for bit, computed ones to 1e-6)",
    ),
    Row(
        "mutants",
        "The tests of the core notice changes of the core",
        "small changes of signals, controller, scheduler and scorer, one at a time: 25 of each, drawn at random",
        (),
        100,
        ("share noticed", "{:.0%}"),
        "at least 80 %",
        0.8,
        "make mutants",
    ),
    Row(
        "branches",
        "The core's branches are run by its tests",
        "branch coverage of signals, controller, scheduler and scorer",
        (),
        1,
        ("lowest share", "{:.1%}"),
        "at least 90 % in each",
        0.9,
        "make branches",
    ),
    Row(
        "orders",
        "No test depends on another",
        "the tests of runtime, experiments and reliability in random orders, but for the slow ones, which start groups "
        "of processes",
        (),
        20,
        target="no failure in 20 orders",
        command="make orders",
    ),
    Row(
        "dependencies",
        "The lowest and the highest allowed versions of the dependencies work",
        "the runtime's tests in fresh environments",
        (),
        2,
        target="both pass",
        command="make dependencies",
    ),
    Row(
        "wheel",
        "The wheel works without the repository",
        "the public tests of the runtime against an installed wheel, in another folder",
        (),
        1,
        target="pass",
        command="make public",
    ),
)


def verdict(row: Row, figures: dict[str, Any]) -> str:
    """green, red, part (all cases held, but not yet all of them were tried) or open (not measured)."""
    found = figures.get(row.key)
    if not found:
        return "open"
    value = found["figures"].get(row.figure[0]) if row.figure else None
    if found["failures"] or (row.least is not None and (value is None or value < row.least)):
        return "red"
    return "green" if found["cases"] >= row.cases else "part"


def render(figures: dict[str, Any]) -> str:
    """RELIABILITY.md."""
    lines = [
        "# Reliability",
        "",
        "Written by `make scoreboard` from what the tests recorded; [how to read and run it](docs/reliability.md).",
        "Status: **green** held in all cases; **part** held, but fewer cases were tried than the target; **red** did",
        "not hold; **open** not measured.",
        "",
        "| Promise | How it is tested | Cases | Measured | Target | Status | Command |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        found = figures.get(row.key, {})
        measured = "-"
        if found:
            value = found["figures"].get(row.figure[0]) if row.figure else None
            failures = found["failures"]
            measured = "no failure" if not failures else f"{failures} failed"
            if row.figure and value is not None:
                measured = f"{row.figure[0]} {row.figure[1].format(value)}" + (f"; {measured}" if failures else "")
            measured += f" ({found['date']}, {found['commit']})"
        target = f"{row.cases:,} cases, {row.target}" if row.cases > 1 else row.target
        cells = [row.promise, row.how, f"{found.get('cases', 0):,}", measured, target, verdict(row, figures)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | `{row.command}` |")
    return "\n".join(lines) + "\n"


def load() -> dict[str, Any]:
    """The figures that were taken over last."""
    return dict(json.loads(FIGURES.read_text("utf-8"))) if FIGURES.exists() else {}


def note(key: str, cases: int, failures: int, **figures: float) -> None:
    """Records what another command than pytest measured, under the key of its row."""
    write(
        key, {key: {"outcome": "passed" if not failures else "failed", "cases": cases, "failures": failures} | figures}
    )


def write(name: str, found: dict[str, Any]) -> None:
    """Records outcomes by test id, for :func:`take`."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    record = {
        "date": _git("log", "-1", "--format=%cs"),
        "commit": _git("rev-parse", "--short=9", "HEAD"),
        "found": found,
    }
    (RECORDS / f"{name}.json").write_text(json.dumps(record, indent=1), "utf-8")


def take(figures: dict[str, Any], records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Figures with those of the records in place; a record of fewer cases that held does not replace one of more."""
    figures = dict(figures)
    for record in records:
        for row in ROWS:
            found = {
                name: entry
                for name, entry in record["found"].items()
                if name == row.key or any(fnmatchcase(name, pattern) for pattern in row.tests)
            }
            if not found:
                continue
            fresh = _reduce(found.values()) | {"date": record["date"], "commit": record["commit"]}
            before = figures.get(row.key)
            if fresh["failures"] or before is None or before["failures"] or fresh["cases"] >= before["cases"]:
                figures[row.key] = fresh
    return figures


def _reduce(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {"cases": 0, "failures": 0, "figures": {}}
    for entry in entries:
        total["cases"] += entry.get("cases", 1)
        total["failures"] += entry.get("failures", int(entry["outcome"] != "passed"))
        for name in set(entry) - {"cases", "failures", "outcome"}:
            total["figures"][name] = max(entry[name], total["figures"].get(name, entry[name]))
    return total


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Takes over the records and writes the page."""
    paths = sorted(RECORDS.glob("*.json"), key=lambda path: path.stat().st_mtime)
    figures = take(load(), [json.loads(path.read_text("utf-8")) for path in paths])
    FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", "utf-8")
    PAGE.write_text(render(figures), "utf-8")
    for path in paths:
        path.unlink()
    states = {row.key: verdict(row, figures) for row in ROWS}
    for row in ROWS:
        print(f"{states[row.key]:6} {row.key:24} {figures.get(row.key, {}).get('cases', 0):>7,} of {row.cases:,}")
    sys.exit("red" in states.values())


if __name__ == "__main__":
    main()
