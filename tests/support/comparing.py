"""A comparison of half a second, and what must be the same however it came about."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np


def suite(problems: int = 2, seeds: int = 2) -> Any:
    """Two problems, two schedules and the learned rate: six cells."""
    from rlrate.experiments.suite import Problem, Suite

    every = (Problem("quadratic-20", "adam", 40), Problem("wine-mlp", "sgd", 30))
    return Suite(
        "tiny",
        "a test",
        every[:problems],
        schedules=("constant", "cosine"),
        entrants=("learned",),
        seeds=seeds,
        tuning_seeds=1,
        rates=3,
    )


def compare(out: Path, *, workers: int = 1, backend: str = "local", **settings: Any) -> None:
    """Begins or continues the comparison in a folder; further settings are those of :func:`suite`."""
    from rlrate import Controller
    from rlrate.experiments.engine import run_suite

    run_suite(suite(**settings), out, controller=Controller.constant(0.3), workers=workers, backend=backend)


def rows(folder: Path) -> list[dict[str, Any]]:
    """All that the rows say, in order, but for the time that they took."""
    from rlrate.experiments.store import load

    found = []
    for row in load(folder).rows:
        values = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in ("seconds", "curve")}
        curve = {} if row.curve is None else {f.name: getattr(row.curve, f.name) for f in fields(row.curve)}
        found.append({**values, **{name: np.asarray(value).tolist() for name, value in curve.items()}})
    return found
