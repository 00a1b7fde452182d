"""Recipes as files: what one takes from another, and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlrate import Controller
from rlrate.agents import Recipe
from rlrate.agents.stopping import without_stop
from rlrate.errors import ConfigError

Write = Callable[[str, str], Path]

ABLATIONS = sorted((Path(__file__).parents[2] / "experiments" / "ablations").glob("*.toml"))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_what_a_recipe_does_not_say_is_as_in_the_one_it_extends(write: Write) -> None:
    path = write("mine.toml", 'extends = "ppo"\niterations = 3\n[algorithm]\nlearning_rate = 1e-3\n')
    mine, base = Recipe.load(path).to_dict(), Recipe.load("ppo").to_dict()
    assert mine.pop("name") == "mine" and mine.pop("iterations") == 3
    assert mine["algorithm"].pop("learning_rate") == 1e-3 != base["algorithm"].pop("learning_rate")
    assert mine == {name: value for name, value in base.items() if name in mine}


def test_workloads_take_the_place_of_those_of_the_extended_recipe(write: Write) -> None:
    path = write("mine.toml", 'extends = "default"\n[environment]\nworkload = ["wine-mlp"]\n')
    environment = Recipe.load(path).environment
    assert environment["workload"] == ["wine-mlp"]
    assert environment["siblings"] == Recipe.load("default").environment["siblings"]


def test_recipes_extend_recipes_beside_them(write: Write) -> None:
    write("parts/base.toml", 'name = "of its own"\nruns = 12\ndraws = 3\n')
    write("middle.toml", 'extends = "parts/base.toml"\ndraws = 2\n')
    recipe = Recipe.load(write("top.toml", 'extends = "middle.toml"\nseed = 5\n'))
    assert (recipe.name, recipe.runs, recipe.draws, recipe.seed) == ("top", 12, 2, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "defualt"', "unknown recipe 'defualt': did you mean 'default'"),
        ('extends = "missing.toml"', "cannot read the recipe .*missing.toml: No such file"),
        ('extends = "mine.toml"', "mine.toml: extends = 'mine.toml' leads back to the file itself"),
        ('extends = ["default"]', r"mine.toml: extends takes one name or path, got \['default'\]"),
        ('extends = "default"\nruns = 0', "runs must be a positive integer, got 0"),
    ],
)
def test_what_cannot_be_extended(text: str, message: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.load(write("mine.toml", text))


def test_a_ring_of_recipes_is_refused(write: Write) -> None:
    write("one.toml", 'extends = "two.toml"')
    with pytest.raises(ConfigError, match="leads back"):
        Recipe.load(write("two.toml", 'extends = "one.toml"'))


def test_false_switches_a_rule_off(write: Write) -> None:
    path = write("mine.toml", "[rules]\nstart = false\ncap = false\ncut = false\nalarm = false\nanneal = 0\n")
    action = Recipe.load(path).spec.action
    assert (action.start, action.cap, action.cut, action.alarm, action.anneal) == (None, None, None, None, 0)


@pytest.mark.parametrize("name", ["factor", "check"])
def test_not_every_rule_can_be_switched_off(name: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=f"{name}.* got False"):
        _ = Recipe.load(write("mine.toml", f"[rules]\n{name} = false\n")).spec


def test_limits_are_part_of_the_specification(write: Write) -> None:
    spec = Recipe.load(write("mine.toml", 'extends = "ppo"\n[limits]\nloss_noise = false\npromise = [-1, 2]\n')).spec
    assert spec.limits == (("loss_slope", -2.4, 2.4), ("promise", -1.0, 2.0))
    assert Recipe.load(write("blind.toml", 'extends = "ppo"\nsignals = ["progress"]\n')).spec.limits == ()
    for text, message in (("mood = [0, 1]", "unknown signal of limits 'mood'"), ("promise = 3", "lowest and highest")):
        with pytest.raises(ConfigError, match=message):
            _ = Recipe.load(write("mine.toml", f"[limits]\n{text}\n")).spec


def test_a_recipe_may_extend_that_of_the_controller_it_begins_with(write: Write) -> None:
    text = 'extends = "ppo"\ninitial = "default"\n'
    assert Recipe.load(write("more.toml", text)).spec == without_stop(Controller.load("default")).spec
    changes = {"rules": "[rules]\ncap = 0.1", "limits": "[limits]\nkept = [0, 1]", "net": "[policy]\nnet = [8]"}
    for name, change in changes.items():
        with pytest.raises(ConfigError, match=f"takes {name} from it"):
            Recipe.load(write("other.toml", f"{text}{change}\n"))


def test_the_shipped_controller_was_trained_by_the_recipe_in_the_file() -> None:
    recipe, controller = Recipe.load("default"), Controller.load("default")
    stopping = {name: value for name, value in controller.provenance["stopping"].items() if name != "seed"}
    trained = {**controller.provenance["recipe"], "stopping": stopping}
    # Its two steps were run by two commands, the second with the controller of the first one as `initial`; when to stop
    # was taught to it later.
    assert {name for name, value in recipe.to_dict().items() if trained[name] != value} == {"name", "first", "initial"}
    assert recipe.first_recipe is not None and recipe.first_recipe.seed == trained["seed"]
    assert recipe.spec == without_stop(controller).spec and controller.stop
    assert controller.provenance["stopping"]["seed"] == trained["seed"] == recipe.seed


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_changes_one_thing(path: Path) -> None:
    # What they are compared with is itself the recipe `ppo` at short budgets; the pairs are compared at their own.
    bases: dict[str, str | Path] = {"plain": "ppo", "pairs": "ppo"}
    ablated, base = (Recipe.load(p).to_dict() for p in (path, bases.get(path.stem, path.with_name("plain.toml"))))
    changed = {name for name, value in base.items() if ablated[name] != value} - {"name", "iterations"}
    changed -= {"runs", "draws"}  # with the siblings: how the networks of a rollout are grouped
    assert len(changed) == 1 and ablated["iterations"] == 10
    for name in changed:
        if isinstance(base[name], dict):
            assert sum(base[name].get(k) != v for k, v in ablated[name].items()) == 1
    Recipe.load(path).make_env()
