"""SIGKILL at any moment: nothing unreadable is left, and the work ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import killing
from scoreboard import cases, some

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or not hasattr(signal, "SIGKILL"), reason="needs POSIX")

#: Atomic writes of the training: config.json, then per rollout progress.csv and checkpoint.pt, then the controller.
WRITES = 1 + 2 * 4 + 1
#: checkpoint.pt is there to be kept from its second writing on, which is the fifth of all.
POINTS = [
    (point, write)
    for point in killing.POINTS
    for write in (range(WRITES) if point != "between renames" else range(4, WRITES - 1, 2))
]
#: Appends of the comparison: one for each of its cells.
APPENDS = [
    (point, append) for point in ("before write", "mid write", "before fsync", "after fsync") for append in range(6)
]


@pytest.mark.slow
def test_killed_and_continued(
    tiny: dict[str, Any], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    points = some([("mid write", 0), ("between renames", 4)], POINTS)
    appends = some([("mid write", 3)], APPENDS)
    job = {
        "folder": str(tmp_path),
        "recipe": tiny,
        "seed": 0,
        "training": cases(2, 60),
        "export": cases(20, 100),
        "points": points,
        "comparison": cases(2, 60),
        "appends": appends,
    }
    done = subprocess.run(
        [sys.executable, killing.__file__], input=json.dumps(job), capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert kills["points"] == len(points), kills
    assert kills["appends"] == len(appends), kills
    assert kills["training"] >= job["training"] and kills["comparison"] >= job["comparison"]
    record_property("cases", sum(kills.values()))
