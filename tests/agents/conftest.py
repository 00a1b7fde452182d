"""A training of a few seconds, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlrate.agents import Recipe, train

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "iterations": 3,
    "runs": 4,
    "draws": 2,
    "environment": {"workload": ["wine-mlp", "breast-cancer-logistic"], "steps": [60, 90]},
    "cadence": {"decisions": 10, "first": 5, "ramp": 3},
    "policy": {"net": [16, 16]},
    "algorithm": {"n_epochs": 2, "batch_size": 12},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    """Entries of a tiny recipe."""
    return dict(TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny training."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(Recipe.from_dict(dict(TINY)), out)
    return out
