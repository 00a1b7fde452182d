"""A training whose recipe has another training come first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate import Controller
from rlrate.agents import Recipe, export, train
from rlrate.agents.ensemble import mean_of, rollouts_done
from rlrate.control import USUAL
from rlrate.errors import ConfigError
from tests.agents.conftest import TINY

OPTIMIZER = ("optimizer_adaptive", "optimizer_momentum")


def entries(tiny: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A tiny training of three rollouts, then two more of its policy with other settings."""
    kept = {name: tiny[name] for name in ("name", "seed", "runs", "draws", "environment")}
    first = {name: value for name, value in tiny.items() if name != "seed"}
    return {**kept, "first": first, "iterations": 2, "algorithm": {"n_epochs": 1, "batch_size": 36}, **more}


def same(one: Controller, other: Controller) -> bool:
    """Whether two controllers have the same weights, whatever they say of their training."""
    pairs = zip(one.layers, other.layers, strict=True)
    return all((w == v).all() and (b == c).all() for (w, b), (v, c) in pairs)


def test_it_is_the_two_trainings_one_after_the_other(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    both = Recipe.from_dict(entries(tiny))
    path = train(both, tmp_path / "both", progress=lambda done, total, _: told.append((done, total)))
    assert told == [(done, 5) for done in range(1, 6)]
    before = Controller.load(trained / "controller.safetensors")
    first = Controller.load(tmp_path / "both" / "first" / "controller.safetensors")
    assert same(first, before)
    second = dataclasses.replace(both, first={}, initial=str(trained / "controller.safetensors"))
    after, by_hand = Controller.load(path), Controller.load(train(second, tmp_path / "by-hand"))
    assert same(after, by_hand)
    assert after.spec == before.spec == both.spec
    assert Recipe.from_dict(after.provenance["recipe"]) == both


@pytest.fixture(scope="module")
def one_first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Controller]:
    """A recipe with one training first, and what it comes to when nothing stops it."""
    recipe = Recipe.from_dict(entries(dict(TINY)))
    return recipe, Controller.load(train(recipe, tmp_path_factory.mktemp("one") / "whole"))


@pytest.fixture(scope="module")
def two_first(
    one_first: tuple[Recipe, Controller], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Recipe, Controller]:
    """The same with the mean of two seeds first."""
    recipe = dataclasses.replace(one_first[0], first={**one_first[0].first, "seeds": 2})
    return recipe, Controller.load(train(recipe, tmp_path_factory.mktemp("two") / "whole"))


@pytest.mark.parametrize("stopped", [1, 3, 4])
def test_it_resumes_wherever_it_was_stopped(stopped: int, one_first: tuple[Recipe, Controller], tmp_path: Path) -> None:
    recipe, whole = one_first

    def stop(done: int, *_: Any) -> None:
        if done == stopped:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, progress=stop)
    if stopped > 1:  # the rollout that was told last is not saved yet
        assert rollouts_done(out, recipe) == stopped - 1
        halfway = Controller.load(export(out))
        assert len(halfway.layers) == len(whole.layers)
    told: list[int] = []
    assert Controller.load(train(out=out, resume=True, progress=lambda done, *_: told.append(done))) == whole
    assert told == list(range(stopped, 6))


def test_each_seed_has_its_own_first_training(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.from_dict(entries(tiny, seeds=2, iterations=1))
    told: list[tuple[int, int]] = []
    mean = Controller.load(train(recipe, tmp_path / "mean", progress=lambda done, total, _: told.append((done, total))))
    assert told == [(done, 8) for done in range(1, 9)]
    one, other = (
        Controller.load(tmp_path / "mean" / f"seed-{seed}" / "first" / "controller.safetensors") for seed in (3, 4)
    )
    assert (one.layers[0][0] != other.layers[0][0]).any()
    assert len(mean.layers[0][1]) == 32


def test_what_comes_first_may_be_the_mean_of_several_seeds(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.from_dict(entries(tiny))
    recipe = dataclasses.replace(recipe, first={**recipe.first, "seeds": 2}, policy=recipe.first["policy"])
    told: list[tuple[int, int]] = []
    path = train(recipe, tmp_path / "both", progress=lambda done, total, _: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]
    folder = tmp_path / "both" / "first"
    ones = [Controller.load(folder / f"seed-{seed}" / "controller.safetensors") for seed in (3, 4)]
    before = Controller.load(folder / "controller.safetensors")
    assert same(before, mean_of(ones)) and not same(*ones)
    by_hand = dataclasses.replace(recipe, first={}, policy={}, initial=str(folder / "controller.safetensors"))
    after = Controller.load(path)
    assert same(after, Controller.load(train(by_hand, tmp_path / "by-hand")))
    assert len(after.layers[0][1]) == 2 * len(ones[0].layers[0][1]) == recipe.network["net"][0]


@pytest.mark.parametrize("stopped", [2, 3, 4, 5, 7])
def test_the_seeds_that_come_first_resume_wherever_they_were_stopped(
    stopped: int, two_first: tuple[Recipe, Controller], tmp_path: Path
) -> None:
    recipe, whole = two_first

    def stop(done: int, *_: Any) -> None:
        if done == stopped:
            raise KeyboardInterrupt

    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(recipe, out, progress=stop)
    assert rollouts_done(out, recipe) == stopped - 1
    assert Controller.load(export(out)).layers
    told: list[int] = []
    assert Controller.load(train(out=out, resume=True, progress=lambda done, *_: told.append(done))) == whole
    assert told == list(range(stopped, 9))


def test_with_a_refinement_all_weights_learn_beside_further_signals(tiny: dict[str, Any], tmp_path: Path) -> None:
    environment = {**tiny["environment"], "siblings": 2}
    refined = {"refinement": {"after": 0, "every": 2, "pool": 2, "epochs": 3}, "siblings": {"branch": True, "hold": 3}}
    recipe = Recipe.from_dict(entries(tiny, environment=environment, signals=[*USUAL, *OPTIMIZER], **refined))
    after = Controller.load(train(recipe, tmp_path / "refined"))
    before = Controller.load(tmp_path / "refined" / "first" / "controller.safetensors")
    assert after.spec.signals == (*before.spec.signals, *OPTIMIZER)
    for (old, bias), (new, new_bias) in zip(before.layers, after.layers, strict=True):
        assert (new[:, : old.shape[1]] != old).any() and (new_bias != bias).any()
    assert (after.layers[0][0][:, len(USUAL) :] != 0.0).all()
    seen = np.random.default_rng(0).normal(size=(200, len(USUAL) + 2)).astype(np.float32)
    moved = after.act(seen) - before.act(seen[:, : len(USUAL)])
    assert 0.0 < np.sqrt(np.mean(np.square(moved))) < 0.5  # it began where the first training ended


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"initial": "default"}, "has one beginning"),
        ({"imitation": {"draws": 2}}, "has one beginning"),
        ({"first": {"seed": 1}}, "leave out first.seed"),
        ({"first": {"seeds": 0}}, "seeds must be a positive integer"),
        ({"first": {"algo": "sac"}}, "only ppo and a2c can come first, not sac"),
        ({"first": {"runs": 0}}, "runs must be a positive integer"),
        ({"first": {"run": 3}}, r"unknown recipe entries \['run'\]"),
        ({"algo": "sac"}, "only ppo and a2c can begin with a controller"),
        ({"policy": {"net": [8]}}, "takes net from it"),
        ({"cadence": {"decisions": 12}}, "takes cadence from it"),
        ({"signals": ["progress"]}, "that of the recipe tiny sees that controller's"),
        ({"algorithm": {"epochs": 3}}, "ppo refuses it"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(
    more: dict[str, Any], message: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(Recipe.from_dict(entries(tiny, **more)), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_a_file_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "deeper"
    folder.mkdir()
    (folder / "one.toml").write_text('extends = "demo"\nseed = 5\niterations = 7\n')
    (tmp_path / "two.toml").write_text('extends = "demo"\nfirst = "deeper/one.toml"\nseed = 2\niterations = 3\n')
    recipe = Recipe.load(tmp_path / "two.toml")
    assert recipe.first_recipe == dataclasses.replace(Recipe.load(folder / "one.toml"), seed=2)
    assert recipe.rollouts == 10
    (folder / "one.toml").write_text('extends = "demo"\nseed = 5\nseeds = 2\niterations = 7\n')
    recipe = Recipe.load(tmp_path / "two.toml")
    assert recipe.first_recipe == dataclasses.replace(Recipe.load(folder / "one.toml"), seed=2)
    assert recipe.rollouts == 17
    (tmp_path / "three.toml").write_text('extends = "demo"\nfirst = "demos"\n')
    with pytest.raises(ConfigError, match="unknown recipe 'demos'"):
        Recipe.load(tmp_path / "three.toml")
    (tmp_path / "ring.toml").write_text('extends = "demo"\nfirst = "ring.toml"\n')
    with pytest.raises(ConfigError, match="leads back to the file itself"):
        Recipe.load(tmp_path / "ring.toml")
