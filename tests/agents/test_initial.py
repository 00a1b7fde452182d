"""A training that begins with a controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate import Controller
from rlrate.agents import Recipe, train
from rlrate.control import SIGNALS, USUAL
from rlrate.errors import ConfigError


def entries(tiny: dict[str, Any], initial: Path | str, **more: Any) -> dict[str, Any]:
    kept = {name: tiny[name] for name in ("name", "runs", "draws", "environment", "algorithm")}
    return {**kept, "iterations": 1, "initial": str(initial), **more}


def test_it_begins_where_the_controller_stands(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    path = trained / "controller.safetensors"
    before = Controller.load(path)
    settings = {**tiny["algorithm"], "learning_rate": 1e-12}
    recipe = Recipe.from_dict(entries(tiny, path, algorithm=settings))
    after = Controller.load(train(recipe, tmp_path / "same"))
    observations = np.random.default_rng(0).normal(size=(50, len(before.spec.signals))).astype(np.float32)
    np.testing.assert_allclose(after.act(observations), before.act(observations), atol=1e-5)
    assert after.spec == before.spec
    assert Recipe.from_dict(entries(tiny, path, signals=list(before.spec.signals))).spec == before.spec


def test_it_learns_from_there_and_can_be_resumed(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    path = trained / "controller.safetensors"
    after = Controller.load(train(Recipe.from_dict(entries(tiny, path)), tmp_path / "more"))
    assert after != Controller.load(path)
    assert after.provenance["recipe"]["initial"] == str(path)
    assert Controller.load(train(out=tmp_path / "more", resume=True)) == after


def test_further_signals_are_all_that_it_learns(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    path = trained / "controller.safetensors"
    shown = {"signals": list(SIGNALS), "environment": {**tiny["environment"], "validation": 1.0}, "iterations": 2}
    recipe = Recipe.from_dict(entries(tiny, path, **shown))
    before, after = Controller.load(path), Controller.load(train(recipe, tmp_path / "more"))
    assert after.spec.signals == tuple(SIGNALS)
    observations = np.random.default_rng(0).normal(size=(50, len(SIGNALS))).astype(np.float32)
    untold = observations.copy()
    untold[:, len(USUAL) :] = 0.0
    np.testing.assert_allclose(after.act(untold), before.act(observations[:, : len(USUAL)]), atol=1e-6)
    for (old, bias), (new, new_bias) in zip(before.layers, after.layers, strict=True):
        assert (new[:, : old.shape[1]] == old).all() and (new_bias == bias).all()
    assert (after.act(untold) != after.act(observations)).any()


def test_what_it_makes_of_them_can_be_resumed(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    shown = {"signals": list(SIGNALS), "environment": {**tiny["environment"], "validation": 1.0}, "iterations": 3}
    recipe = Recipe.from_dict(entries(tiny, trained / "controller.safetensors", **shown))
    whole = Controller.load(train(recipe, tmp_path / "whole"))

    def stop(done: int, *_: Any) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "cut", progress=stop)
    assert Controller.load(train(out=tmp_path / "cut", resume=True)) == whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cadence": {"decisions": 12}}, "takes cadence from it"),
        ({"policy": {"net": [8]}}, "takes net from it"),
        ({"algo": "sac"}, "only ppo and a2c"),
        ({"action": "discrete"}, "has continuous actions"),
        ({"signals": list(USUAL[:-1])}, "at most further ones after them"),
        ({"signals": list(reversed(SIGNALS))}, "at most further ones after them"),
    ],
)
def test_what_does_not_fit_is_refused(
    more: dict[str, Any], message: str, tiny: dict[str, Any], trained: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Recipe.from_dict(entries(tiny, trained / "controller.safetensors", **more)), tmp_path / "refused")
