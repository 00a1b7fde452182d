"""What judges a controller is out of reach of its training and of its selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from rlrate.agents import Recipe
from rlrate.envs.split import PARTS, Part, load_part
from rlrate.envs.workloads import data as bundled
from rlrate.envs.workloads import make_workload, workload_names
from rlrate.errors import ConfigError
from rlrate.experiments.suite import load_suite

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
LOADERS = {
    "load_digits": "digits",
    "load_diabetes": "diabetes",
    "load_breast_cancer": "breast-cancer",
    "load_wine": "wine",
    "load_iris": "iris",
    "load_sample_image": "photos",
}
#: Recipes that are not bundled.
OURS = [path for kind in ("ablations", "candidates") for path in sorted((EXPERIMENTS / kind).glob("*.toml"))]
OPTIMIZERS = {"sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw"}


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the real data sets that were loaded since the test began."""
    names: set[str] = set()
    genuine: Any = bundled._sklearn_datasets()

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            names.add(LOADERS[name])
            return getattr(genuine, name)

    def described() -> list[str]:
        names.add("descriptions")
        return ["some words, and some more words than a window is long"] * 50

    cached = (
        bundled.digits,
        bundled.breast_cancer,
        bundled.wine,
        bundled.iris,
        bundled.diabetes,
        bundled.photos,
        bundled.photo_patches,
        bundled.text,
        bundled.documents,
    )
    for function in cached:
        function.cache_clear()
    monkeypatch.setattr(bundled, "_sklearn_datasets", Recorder)
    monkeypatch.setattr(bundled, "_descriptions", described)
    yield names
    for function in cached:  # some may hold the words above
        function.cache_clear()


def names_of(part: Part) -> set[str]:
    return {*part.families, *part.workloads}


def test_every_workload_is_in_one_part_and_no_name_or_data_set_in_two() -> None:
    parts = [load_part(name) for name in PARTS]
    for first, second in combinations(parts, 2):
        assert not names_of(first) & names_of(second)
        assert not set(first.data) & set(second.data)
    assert set().union(*(part.families for part in parts)) == set(workload_names("family"))
    assert set().union(*(part.workloads for part in parts)) == set(workload_names("fixed"))


def test_training_draws_reach_no_data_and_no_network_of_the_other_parts(reached: set[str]) -> None:
    part = load_part("training")
    for name in part.families:
        for seed in range(8):
            workload = make_workload(name, seed)
            assert workload.family == name
            for module in workload.make_model().modules():
                assert not isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RNNBase | nn.Conv1d)
    for name in part.workloads:
        make_workload(name, 0)
    assert reached == set(part.data)


def test_selection_reaches_its_own_data_only(reached: set[str]) -> None:
    part = load_part("selection")
    for name in sorted(names_of(part)):
        make_workload(name, 0)
    assert reached == set(part.data)


def test_the_record_of_what_is_reached_can_fail(reached: set[str]) -> None:
    make_workload("digits-mlp", 0)
    make_workload("char-transformer-small", 0)
    assert reached == {"digits", "descriptions"}


@pytest.mark.parametrize("name", ["default", "validated", *OURS], ids=lambda name: Path(name).stem)
def test_a_recipe_of_ours_trains_on_the_training_part(name: str | Path) -> None:
    workloads = Recipe.load(name).environment["workload"]
    assert set(workloads) <= set(load_part("training").families)


def test_with_a_validation_loss_the_held_out_problems_are_the_same() -> None:
    held_out, validated = load_suite("held-out"), load_suite("validated")
    assert validated.problems == tuple(replace(problem, validation=64) for problem in held_out.problems)
    assert (validated.schedules, validated.rates) == (held_out.schedules, held_out.rates)


@pytest.mark.parametrize("name", ["selection", "held-out"])
def test_a_suite_is_made_of_its_part(name: str) -> None:
    suite = load_suite(name)
    assert {problem.workload for problem in suite.problems} <= names_of(load_part(name))
    assert len(suite.schedules) * suite.rates >= 77
    assert len({problem.kind for problem in suite.problems}) >= 8
    if name == "held-out":
        assert {problem.optimizer for problem in suite.problems} == OPTIMIZERS
        assert len(suite.problems) >= 10


def test_only_the_training_labels_are_noisy() -> None:
    noisy, clean = make_workload("digits-noisy-labels", 0), make_workload("digits-wide", 0)
    assert bool((noisy.heldout[0] == clean.heldout[0]).all())
    assert bool((noisy.heldout[1] == clean.heldout[1]).all())
    assert 0.3 < np.mean((noisy.train[1] != clean.train[1]).numpy()) < 0.42


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown part of the split 'test'"):
        load_part("test")
