"""Results on disk: nothing finished is lost, nothing damaged goes unnoticed."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate.errors import ConfigError, ResultsError
from rlrate.experiments.store import Curve, Row, Store, load

CURVE = Curve(np.array([1, 2]), np.array([0.5, math.inf]), np.array([0.1, 1 / 3]), np.array([2]), np.array([math.nan]))


def suite(**changes: Any) -> dict[str, Any]:
    problems = [{"name": "p", "start": None, "grid": [0.1, math.inf]}]
    settings = {"seeds": [1000], "tuning_seeds": [0], "rates": 2, "schedules": ["cosine"], "entrants": ["learned"]}
    return {
        "schema": 1,
        **settings,
        "problems": problems,
        "methods": {"cosine": {}, "learned": {}},
        "controller": {"name": "default", "identity": "abc"},
        "command": "rlrate compare",
        "cells": 3,
        "runs": 6,
        **changes,
    }


def rows(cell: str, count: int = 2) -> list[Row]:
    return [
        Row(
            key=f"{cell}{index}",
            problem="p",
            workload="w",
            kind="k",
            optimizer="adam",
            steps=2,
            batch=4,
            method="cosine",
            group="schedule",
            role="report",
            budget=2,
            peak=0.1,
            start=None,
            seed=1000 + index,
            heldout_loss=math.inf if index else 1 / 3,
            heldout_accuracy=None if index else 0.5,
            diverged=bool(index),
            updates=2,
            seconds=0.1,
            curve=CURVE if index else None,
            versions={"torch": "2"},
            cell=cell,
            cell_rows=count,
            cell_index=index,
        )
        for index in range(count)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path, suite())
    for cell in ("a", "b", "c"):
        store.append(cell, rows(cell))
    return tmp_path


def test_rows_come_back_as_they_were(folder: Path) -> None:
    results = load(folder)
    assert results.complete and results.suite["problems"][0]["grid"] == [0.1, "inf"]
    assert [row.seed for row in results.rows] == [1000] * 3 + [1001] * 3
    for row in results.rows:
        expected = rows(row.cell)[row.cell_index]
        assert replace(row, curve=None) == replace(expected, curve=None)
        assert (row.curve is None) == (expected.curve is None)
        if row.curve is not None:
            for name in ("updates", "train_loss", "rate", "heldout_updates", "heldout_loss"):
                np.testing.assert_array_equal(getattr(row.curve, name), getattr(CURVE, name))
    for line in (folder / "results.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_whatever_a_crash_cuts_off_at_most_the_last_cell_is_lost(folder: Path) -> None:
    path = folder / "results.jsonl"
    whole = path.read_bytes()
    ends = [position + 1 for position, byte in enumerate(whole) if byte == 10]
    for cut in [*range(ends[3], ends[3] + 4), *range(ends[3], len(whole), 97), len(whole) - 1]:
        for tail in (b"", b"\0" * 40):  # a file may have grown before its data were written
            path.write_bytes(whole[:cut] + tail)
            before = load(folder)
            assert {row.cell for row in before.rows} == {"a", "b"} and before.missing == 2
            store = Store(folder, suite())
            assert "b" in store and "c" not in store
            assert path.read_bytes() == whole[: ends[3]], "the torn tail is gone, and nothing else"
    store.append("c", rows("c"))
    assert path.read_bytes() == whole


def test_a_writer_repairs_what_another_one_left(folder: Path) -> None:
    path = folder / "results.jsonl"
    ours, theirs = Store(folder, suite()), Store(folder, suite())
    theirs.append("d", rows("d"))
    whole = path.read_bytes()
    with open(path, "ab") as file:
        file.write(b'{"key": "e0", "prob')
    ours.append("f", rows("f"))
    ours.append("d", rows("d"))
    assert path.read_bytes().startswith(whole)
    assert sorted({row.cell for row in load(folder).rows}) == ["a", "b", "c", "d", "f"]
    assert len(load(folder).rows) == 10, "a cell that both computed is there once"
    assert "f" not in theirs
    theirs.refresh()
    assert theirs.rows("f")[0].cell == "f"


@pytest.mark.parametrize("change", [b"7", b"\n", b""])
def test_damage_before_the_end_is_an_error_that_names_the_line(folder: Path, change: bytes) -> None:
    path = folder / "results.jsonl"
    data = path.read_bytes()
    place = data.index(b'"seed": 1001')  # in the second line
    path.write_bytes(data[: place + 8] + change + data[place + 9 :])
    for read in (load, lambda where: Store(where, suite())):
        with pytest.raises(ResultsError, match=r"results.jsonl is damaged, line 2"):
            read(folder)


def test_missing_lines_are_noticed(folder: Path) -> None:
    path = folder / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[3:]))
    with pytest.raises(ResultsError, match="line 3: it does not follow"):
        load(folder)


def test_another_configuration_is_refused_and_the_command_is_none(folder: Path) -> None:
    Store(folder, suite(command="another", cells=3))
    with pytest.raises(ConfigError, match="differs in rates, controller: give another folder"):
        Store(folder, suite(rates=3, controller={"name": "default", "identity": "abd"}))
    Store(folder, suite(controller={"name": "other name", "identity": "abc"}))


def test_folders_without_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"there is no comparison in .*suite.json is missing"):
        load(tmp_path)
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(ResultsError, match=r"has no suite\.json"):
        Store(tmp_path, suite())
    (tmp_path / "suite.json").write_text('{"schema": 2}')
    with pytest.raises(ResultsError, match="not of schema 1"):
        load(tmp_path)
    (tmp_path / "suite.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        load(tmp_path)
