"""A tiny training, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from rlrate import Controller
from rlrate.agents import Recipe, train
from rlrate.control import Cadence, ControlSpec

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "iterations": 4,
    "runs": 4,
    "draws": 1,
    "environment": {"workload": ["wine-mlp", "breast-cancer-logistic"], "steps": [24, 30]},
    "cadence": {"decisions": 6, "first": 4, "ramp": 2},
    "policy": {"net": [8]},
    "algorithm": {"n_epochs": 2, "batch_size": 10},
}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Entries of a tiny recipe: four rollouts in a second."""
    return dict(TINY)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny training."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(Recipe.from_dict(dict(TINY)), out)
    return out


@pytest.fixture(scope="session")
def make_controller() -> Callable[..., Controller]:
    """A small policy with random weights, which reacts to everything."""

    def make(seed: int = 0) -> Controller:
        spec = ControlSpec(cadence=Cadence(decisions=8, first=3, ramp=3, probe=2))
        generator = torch.Generator().manual_seed(seed)
        sizes = [len(spec.signals), 6, 1]
        layers = tuple(
            (torch.randn(b, a, generator=generator) * a**-0.5, 0.1 * torch.randn(b, generator=generator))
            for a, b in pairwise(sizes)
        )
        return Controller(layers, spec, provenance={"seed": seed, "share": 0.25})

    return make
