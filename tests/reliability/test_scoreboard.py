"""RELIABILITY.md says what the tests recorded, and no row is red."""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase

import pytest

from scoreboard import PAGE, ROOT, ROWS, Row, load, render, take, verdict


def test_the_page_is_what_its_command_writes() -> None:
    assert PAGE.read_text("utf-8") == render(load()), "run: make scoreboard"


def test_no_row_is_red() -> None:
    assert not [row.key for row in ROWS if verdict(row, load()) == "red"]


@pytest.mark.parametrize("row", [row for row in ROWS if row.tests], ids=lambda row: row.key)
def test_the_tests_of_a_row_exist(row: Row) -> None:
    for pattern in row.tests:
        path = pattern.partition("::")[0]
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        assert any(fnmatchcase(f"{path}::{name}", pattern) for name in names if name.startswith("test_"))


def test_a_failure_is_red_and_stays_until_it_is_mended() -> None:
    name = "tests/reliability/test_rates.py::test_x"
    (row,) = [row for row in ROWS if row.key == "sane-rate"]

    def record(outcome: str, cases: int) -> dict[str, object]:
        return {"date": "today", "commit": "c", "found": {name: {"outcome": outcome, "cases": cases}}}

    few = take({}, [record("passed", 500)])
    assert verdict(row, few) == "part"
    many = take(few, [record("passed", 10_000)])
    assert verdict(row, many) == "green"
    assert take(many, [record("passed", 500)]) == many
    broken = take(many, [record("failed", 500)])
    assert verdict(row, broken) == "red"
    assert verdict(row, take(broken, [record("passed", 500)])) == "part"
    assert verdict(row, {}) == "open"
