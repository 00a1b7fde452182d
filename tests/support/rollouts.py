"""Rolls environments out; also a script, so that another process can be asked for the same."""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

FAMILIES = (
    "mlp-classification",
    "mlp-regression",
    "logistic-regression",
    "cnn-batchnorm",
    "recurrent",
    "noisy-quadratic",
)


def settings(family: str, decisions: int, **more: Any) -> dict[str, Any]:
    """An environment whose episodes have ``decisions`` intervals, one decision short of it."""
    from rlrate.control import Cadence, ControlSpec

    spec = ControlSpec(cadence=Cadence(decisions=decisions + 1, first=1, ramp=1))
    return {"workload": family, "steps": decisions + 1, "spec": spec, **more}


def actions(seed: int, decisions: int, runs: int) -> NDArray[np.float32]:
    """Random actions, shape (decisions, runs, 1)."""
    return np.random.default_rng(seed).uniform(-1, 1, (decisions, runs, 1)).astype(np.float32)


def single(family: str, seed: int, decisions: int, run: int = 0, runs: int = 1, **more: Any) -> NDArray[np.float64]:
    """Observations and reward of each decision of one run, shape (decisions, signals + 1)."""
    from rlrate.envs import TrainingEnv

    env = TrainingEnv(run=run, **settings(family, decisions, **more))
    env.reset(seed=seed)
    rows = []
    for action in actions(seed, decisions, runs)[:, run]:
        observation, reward, over, _, _ = env.step(action)
        rows.append([*observation.tolist(), reward])
        if over:
            break
    return np.array(rows)


def digest(rows: NDArray[np.float64]) -> str:
    """SHA-256 of the exact numbers."""
    return hashlib.sha256(rows.tobytes()).hexdigest()


def main() -> None:
    """Prints the digests of the rollouts that standard input lists as JSON."""
    import torch

    torch.set_num_threads(1)
    found = [digest(single(*arguments)) for arguments in json.load(sys.stdin)]
    json.dump({"digests": found, "hash": hash("rlrate")}, sys.stdout)


if __name__ == "__main__":
    main()
