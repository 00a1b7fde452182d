"""A training that begins with a controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate import Controller
from rlrate.agents import Recipe, train
from rlrate.errors import ConfigError


def entries(tiny: dict[str, Any], initial: Path | str, **more: Any) -> dict[str, Any]:
    kept = {name: tiny[name] for name in ("name", "runs", "draws", "environment", "algorithm")}
    return {**kept, "iterations": 1, "initial": str(initial), **more}


def test_it_begins_where_the_controller_stands(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    before = Controller.load(trained / "controller.safetensors")
    settings = {**tiny["algorithm"], "learning_rate": 1e-12}
    recipe = Recipe.from_dict(entries(tiny, trained / "controller.safetensors", algorithm=settings))
    after = Controller.load(train(recipe, tmp_path / "same"))
    observations = np.random.default_rng(0).normal(size=(50, len(before.spec.signals))).astype(np.float32)
    np.testing.assert_allclose(after.act(observations), before.act(observations), atol=1e-5)
    assert after.spec == before.spec


def test_it_learns_from_there_and_can_be_resumed(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    path = trained / "controller.safetensors"
    after = Controller.load(train(Recipe.from_dict(entries(tiny, path)), tmp_path / "more"))
    assert after != Controller.load(path)
    assert after.provenance["recipe"]["initial"] == str(path)
    assert Controller.load(train(out=tmp_path / "more", resume=True)) == after


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cadence": {"decisions": 12}}, "takes cadence from it"),
        ({"policy": {"net": [8]}}, "takes net from it"),
        ({"algo": "sac"}, "only ppo and a2c"),
        ({"action": "discrete"}, "has continuous actions"),
    ],
)
def test_what_does_not_fit_is_refused(
    more: dict[str, Any], message: str, tiny: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Recipe.from_dict(entries(tiny, trained / "controller.safetensors", **more)), tmp_path / "refused")
