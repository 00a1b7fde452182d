"""The results of a comparison on disk: append-only, safe against crashes, one JSON row a run.

Runs that are trained together form a cell; a cell's rows are appended at once, synced, under a lock, so that several
processes may write. What a crash can leave behind is a torn tail: it is ignored by readers and cut off by the next
writer. Damage elsewhere is an error. Each line carries a checksum.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from rlrate.errors import ConfigError, ResultsError
from rlrate.storage import write_atomically

__all__ = ["ROLES", "Curve", "Results", "Row", "Store", "load"]

SCHEMA = 1
ROWS, SUITE, _LOCK = "results.jsonl", "suite.json", ".lock"

#: What a row is for: choosing a peak rate, the report, sensitivity to the rate given at the start, or what a
#: configuration that was not chosen ends with on the reported seeds.
ROLES = ("tune", "report", "start", "grid")

#: Parts of ``suite.json`` that decide what the runs are; the others may differ when a comparison is gone on with.
_CONFIGURATION = (
    *("schema", "seeds", "tuning_seeds", "rates", "schedules", "entrants", "whole_grid"),
    *("problems", "controller"),
)


@dataclass(frozen=True, eq=False)
class Curve:
    """The course of a run.

    Attributes:
        updates: Completed updates at each point, shape (P,).
        train_loss: Mean training loss since the point before, shape (P,).
        rate: Learning rate of the update at each point, shape (P,).
        heldout_updates: Completed updates at each look at the held-out set, shape (H,).
        heldout_loss: Held-out loss there, shape (H,).
    """

    updates: NDArray[np.int64]
    train_loss: NDArray[np.float64]
    rate: NDArray[np.float64]
    heldout_updates: NDArray[np.int64]
    heldout_loss: NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One training run.

    Attributes:
        key: Hash of the run's configuration; unique.
        problem: Name of the problem in the suite.
        workload: Name of the workload.
        kind: The suite's word for this sort of problem.
        optimizer: That of the problem, also where the method replaces it.
        steps: Budget in updates.
        batch: Examples per update.
        method: Name of the method.
        group: "schedule", "learned", "control", "default", "self-tuning" or "search".
        role: One of :data:`ROLES`.
        budget: Trials that were spent on the method's setting.
        peak: Peak rate; None where the method finds its rate itself.
        start: Learning rate that was given, in role "start".
        seed: Determines initial weights and batches.
        heldout_loss: Final held-out loss, infinite where not finite.
        heldout_accuracy: Final accuracy; None where the workload has no classes.
        diverged: Whether the final loss is not finite.
        updates: Updates made, those of a search included.
        seconds: Wall time of the cell over its runs.
        curve: The course of the run; None but in role "report".
        versions: Of what determines the result.
        cell: Hash of the cell's configuration.
        cell_rows: Rows of the cell.
        cell_index: Which of them this is.
    """

    key: str
    problem: str
    workload: str
    kind: str
    optimizer: str
    steps: int
    batch: int
    method: str
    group: str
    role: str
    budget: int
    peak: float | None
    start: float | None
    seed: int
    heldout_loss: float
    heldout_accuracy: float | None
    diverged: bool
    updates: int
    seconds: float
    curve: Curve | None
    versions: Mapping[str, str]
    cell: str
    cell_rows: int
    cell_index: int


@dataclass(frozen=True)
class Results:
    """What is in a comparison's folder.

    Attributes:
        suite: ``suite.json``: settings, controller, command.
        rows: Sorted by problem, method, role, peak and seed.
    """

    suite: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def missing(self) -> int:
        """Runs that are still to be made."""
        return int(self.suite["runs"]) - len(self.rows)

    @property
    def complete(self) -> bool:
        """Whether every run has been made."""
        return self.missing == 0


def load(folder: str | Path) -> Results:
    """Reads a comparison, finished or not; changes nothing.

    Raises:
        ResultsError: There is none, or it is damaged; the message names file and line.
    """
    folder = Path(folder)
    suite = _read_suite(folder)
    path = folder / ROWS
    cells, _ = _parse(path.read_bytes() if path.exists() else b"", path)
    return Results(suite, sort_rows(suite, [row for rows in cells.values() for row in rows]))


def sort_rows(suite: Mapping[str, Any], rows: Sequence[Row]) -> tuple[Row, ...]:
    """In an order that does not depend on when the rows were written."""
    problems = {problem["name"]: index for index, problem in enumerate(suite["problems"])}
    methods = {name: index for index, name in enumerate(suite["methods"])}

    def place(row: Row) -> tuple[Any, ...]:
        position = problems.get(row.problem, len(problems)), methods.get(row.method, len(methods))
        return (*position, ROLES.index(row.role), row.start or 0.0, row.peak or 0.0, row.seed, row.key)

    return tuple(sorted(rows, key=place))


class Store:
    """A comparison's folder, open for writing.

    Args:
        folder: Created if missing.
        suite: What ``suite.json`` is to hold.

    Raises:
        ConfigError: The folder holds a comparison of another configuration.
        ResultsError: Its results are damaged.
    """

    def __init__(self, folder: str | Path, suite: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / ROWS
        self._lock = FileLock(self.folder / _LOCK)
        self._end = 0
        self._cells: dict[str, list[Row]] = {}
        with self._lock:
            if (self.folder / SUITE).exists():
                _check_same(self.folder, _read_suite(self.folder), suite)
            elif self._path.exists():
                raise ResultsError(f"{self._path} has no {SUITE} beside it: give another folder, or delete it")
            else:
                text = json.dumps(to_json(dict(suite)), indent=1) + "\n"
                write_atomically(self.folder / SUITE, text.encode())
            self._catch_up()

    def __contains__(self, cell: str) -> bool:
        return cell in self._cells

    def rows(self, cell: str) -> list[Row]:
        """Rows of a finished cell."""
        return self._cells[cell]

    def refresh(self) -> None:
        """Reads what other processes have written."""
        if self._path.exists() and self._path.stat().st_size != self._end:
            with self._lock:
                self._catch_up()

    def append(self, cell: str, rows: Sequence[Row]) -> None:
        """Writes the rows of a finished cell; when this returns they are on disk.

        A cell that another process has finished in the meantime is not written again.
        """
        lines = b"".join(_encode(row) for row in rows)
        with self._lock:
            self._catch_up()
            if cell in self._cells:
                return
            with open(self._path, "ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            self._end += len(lines)
            self._cells[cell] = list(rows)

    def _catch_up(self) -> None:
        """Reads what was added and cuts off a torn tail; needs the lock."""
        if not self._path.exists():
            self._path.touch()
        with open(self._path, "r+b") as file:
            file.seek(self._end)
            data = file.read()
            cells, good = _parse(data, self._path, skipped=self._end)
            if good < len(data):
                file.truncate(self._end + good)
                file.flush()
                os.fsync(file.fileno())
        self._end += good
        self._cells |= cells


def to_json(value: Any) -> Any:
    """``value`` with numbers that JSON lacks as strings: "inf", "-inf", "nan"."""
    if isinstance(value, Mapping):
        return {key: to_json(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, np.ndarray):
        return to_json(value.tolist())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _encode(row: Row) -> bytes:
    data = {f.name: getattr(row, f.name) for f in fields(Row)}
    if row.curve is not None:
        data["curve"] = {f.name: getattr(row.curve, f.name) for f in fields(Curve)}
    body = json.dumps(to_json(data), allow_nan=False)
    return f'{body[:-1]}, "crc": "{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def _decode(line: bytes) -> Row:
    """Raises a ValueError, TypeError or KeyError for a line that is not a row."""
    head, mark, tail = line.rpartition(b', "crc": "')
    body = head + b"}"
    if not mark or tail != f'{zlib.crc32(body):08x}"}}'.encode():
        raise ValueError("the checksum does not fit")
    data = json.loads(body)
    for name in ("heldout_loss", "heldout_accuracy", "peak", "start", "seconds"):
        data[name] = None if data[name] is None else float(data[name])
    if data["curve"] is not None:
        curve = data["curve"]
        for name in ("updates", "heldout_updates"):
            curve[name] = np.array(curve[name], np.int64)
        for name in ("train_loss", "rate", "heldout_loss"):
            curve[name] = np.array([float(value) for value in curve[name]])
        data["curve"] = Curve(**curve)
    return Row(**data)


def _parse(data: bytes, path: Path, skipped: int = 0) -> tuple[dict[str, list[Row]], int]:
    """The finished cells in ``data``, and the number of bytes they fill.

    Raises:
        ResultsError: Something before the last cell is damaged.
    """
    cells: dict[str, list[Row]] = {}
    group: list[Row] = []
    good = position = number = 0
    fault = ""
    for line in data.splitlines(keepends=True):
        number += 1
        try:
            if not line.endswith(b"\n"):
                raise ValueError("the line has no end")
            row = _decode(line[:-1])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            fault = fault or f"line {number}{f' after byte {skipped}' if skipped else ''}: {error}"
            continue
        if fault:  # sound rows follow, so this is no torn tail
            raise ResultsError(f"{path} is damaged, {fault}: restore it, or start anew in another folder")
        position += len(line)
        if row.cell_index != len(group) or (group and row.cell != group[0].cell):
            fault = f"line {number}: it does not follow the line before"
            raise ResultsError(f"{path} is damaged, {fault}: restore it, or start anew in another folder")
        group.append(row)
        if len(group) == row.cell_rows:
            cells.setdefault(row.cell, group)
            group, good = [], position
    return cells, good


def _read_suite(folder: Path) -> dict[str, Any]:
    path = folder / SUITE
    try:
        suite = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ResultsError(f"there is no comparison in {folder}: {SUITE} is missing") from None
    except (ValueError, OSError) as error:
        raise ResultsError(f"{path} cannot be read: {error}") from None
    if not isinstance(suite, dict) or suite.get("schema") != SCHEMA:
        raise ResultsError(f"{path} is not of schema {SCHEMA}: it was written by another version of rlrate")
    return suite


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    new = json.loads(json.dumps(to_json(dict(new))))
    differing = [name for name in _CONFIGURATION if _configuration(old, name) != _configuration(new, name)]
    if differing:
        raise ConfigError(
            f"{folder} holds another comparison, which differs in {', '.join(differing)}: "
            "give another folder, or delete that one"
        )


def _configuration(suite: Mapping[str, Any], name: str) -> Any:
    value = suite.get(name)
    return value.get("identity") if name == "controller" and isinstance(value, dict) else value
