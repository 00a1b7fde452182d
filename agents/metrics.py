"""What a training of a controller reports: one row of numbers per rollout."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.envs import TrainingVectorEnv
from rlrate.storage import write_atomically


class RolloutMetrics:
    """Gathers returns, final losses by workload family and action statistics over one rollout."""

    def __init__(self) -> None:
        self._actions: list[NDArray[np.float64]] = []
        self._finished: list[dict[str, Any]] = []
        self._families: list[str] = []

    def add(self, env: TrainingVectorEnv, actions: NDArray[np.float64]) -> None:
        """Notes the actions u of one step and remembers which families are running."""
        self._actions.append(actions)
        names = [state.family for state in env.states]
        self._families = [name for name in names for _ in range(env.per_draw)]

    def finish(self, families: list[str], infos: list[dict[str, Any]]) -> None:
        """Notes the runs that ended in this step."""
        for family, info in zip(families, infos, strict=True):
            if "terminal_observation" in info:
                self._finished.append({"family": family, **info})

    def row(self) -> dict[str, float]:
        """The figures of the rollout; losses are means of log(final / first held-out loss)."""
        actions = np.concatenate(self._actions) if self._actions else np.zeros(1)
        improvements = np.array([info["improvement"] for info in self._finished])
        row = {
            "return_mean": _mean(improvements),
            "return_median": float(np.median(improvements)) if len(improvements) else float("nan"),
            "diverged": float(sum(bool(info["diverged"]) for info in self._finished)),
            "cuts": _mean(np.array([info["cuts"] for info in self._finished])),
            "caps": _mean(np.array([info["caps"] for info in self._finished])),
            "action_mean": float(actions.mean()),
            "action_std": float(actions.std()),
            "action_saturated": float((np.abs(actions) >= 1.0).mean()),
        }
        families = defaultdict(list)
        for info in self._finished:
            families[info["family"]].append(info["improvement"])
        row |= {f"improvement/{name}": _mean(np.array(v)) for name, v in sorted(families.items())}
        return row


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes all rows anew, atomically; columns are the union of their keys, in order of appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")
