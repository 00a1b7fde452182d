"""A pytest plugin (-p recorder) that records outcomes and `record_property` figures for the scoreboard."""

from __future__ import annotations

import os
from typing import Any

import pytest

import scoreboard

_found: dict[str, dict[str, Any]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome == "failed":
        if report.outcome != "skipped":
            _found[report.nodeid] = {"outcome": report.outcome, **dict(report.user_properties)}


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and _found:
        scoreboard.write(f"tests-{os.getpid()}", _found)
