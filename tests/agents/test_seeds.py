"""Trainings of several seeds, and the mean of their policies."""

from __future__ import annotations

import csv
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlrate import Controller
from rlrate.agents import Recipe, export, mean_of, train
from rlrate.control import Action, Cadence, ControlSpec
from rlrate.errors import ConfigError


def random_controller(generator: torch.Generator, widths: list[int], spec: ControlSpec, **kind: Any) -> Controller:
    """A controller with random weights, whose answers stay within the bound."""
    outputs = 1 if spec.action.choices is None else len(spec.action.choices)
    sizes = [len(spec.signals), *widths, outputs]
    layers = tuple(
        (0.1 * torch.randn(out, into, generator=generator), 0.1 * torch.randn(out, generator=generator))
        for into, out in pairwise(sizes)
    )
    return Controller(layers, spec, **kind)


@given(
    seed=st.integers(0, 2**20),
    count=st.integers(1, 5),
    depth=st.integers(0, 3),
    activation=st.sampled_from(["tanh", "relu"]),
)
def test_the_mean_answers_with_the_mean(seed: int, count: int, depth: int, activation: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    spec = ControlSpec()
    widths = torch.randint(1, 9, (count, depth), generator=generator).tolist()
    controllers = [random_controller(generator, each, spec, activation=activation) for each in widths]
    observations = np.random.default_rng(seed).normal(size=(7, len(spec.signals))).astype(np.float32)
    answers = np.array([c.act(observations) for c in controllers])
    found = mean_of(controllers).act(observations)
    if np.abs(answers).max() < 1.0:  # the mean is taken before the bound
        np.testing.assert_allclose(found, answers.mean(axis=0), atol=1e-6)
    assert found.shape == (7,)


def test_the_mean_of_scores_chooses_among_discrete_multipliers() -> None:
    spec = ControlSpec(action=Action(multipliers=(0.5, 1.0, 2.0)))
    signals = len(spec.signals)

    def scores(*values: float) -> Controller:
        return Controller(((torch.zeros(3, signals), torch.tensor(values)),), spec, head="argmax")

    mean = mean_of([scores(1.0, 0.9, 0.0), scores(0.0, 0.9, 1.0)])
    observation = np.zeros((1, signals), np.float32)
    assert mean.act(observation) == scores(0.0, 1.0, 0.0).act(observation)


def test_what_has_no_mean_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    spec = ControlSpec()
    one = random_controller(generator, [4], spec)
    others = [
        random_controller(generator, [4, 4], spec),
        random_controller(generator, [4], spec, activation="relu"),
        random_controller(generator, [4], replace(spec, cadence=Cadence(decisions=50))),
    ]
    with pytest.raises(ConfigError, match="at least one"):
        mean_of([])
    for other in others:
        with pytest.raises(ConfigError, match="one specification, one kind"):
            mean_of([one, other])


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training of two seeds."""
    from tests.agents.conftest import TINY

    out = tmp_path_factory.mktemp("pair") / "run"
    train(Recipe.from_dict({**TINY, "seeds": 2, "iterations": 2}), out)
    return out


def test_each_seed_is_trained_as_it_would_be_alone(pair: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    for seed in (3, 4):
        alone = train(Recipe.from_dict({**tiny, "seed": seed, "iterations": 2}), tmp_path / str(seed))
        assert (pair / f"seed-{seed}/controller.safetensors").read_bytes() == alone.read_bytes()
    members = [Controller.load(pair / f"seed-{seed}/controller.safetensors") for seed in (3, 4)]
    mean = Controller.load(pair / "controller.safetensors")
    assert mean == mean_of(members)
    assert mean.provenance["recipe"]["seeds"] == 2
    with (pair / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["iteration"]) for row in rows] == [("3", "1"), ("3", "2"), ("4", "1"), ("4", "2")]
    assert all(np.isfinite(float(row["return_mean"])) for row in rows)


@pytest.mark.parametrize("rollouts", [1, 2, 3, 4])
def test_killed_and_resumed_is_never_killed(rollouts: int, pair: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    out, told = tmp_path / "run", []

    def kill(done: int, total: int, row: dict[str, float]) -> None:
        told.append((done, total))
        if done == rollouts:
            raise Killed

    with pytest.raises(Killed):
        train(Recipe.from_dict({**tiny, "seeds": 2, "iterations": 2}), out, progress=kill)
    assert told == [(done, 4) for done in range(1, rollouts + 1)]
    with pytest.raises(ConfigError, match="not empty"):
        train(Recipe.from_dict({**tiny, "seeds": 2, "iterations": 2}), out)
    path = train(out=out, resume=True)
    assert path.read_bytes() == (pair / "controller.safetensors").read_bytes()
    assert (out / "progress.csv").read_text() == (pair / "progress.csv").read_text()


def test_a_training_under_way_is_exported_as_the_mean_so_far(pair: Path, tiny: dict[str, Any], tmp_path: Path) -> None:
    assert export(pair, tmp_path / "c").read_bytes() == (pair / "controller.safetensors").read_bytes()
    out = tmp_path / "run"

    def kill(done: int, total: int, row: dict[str, float]) -> None:
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        train(Recipe.from_dict({**tiny, "seeds": 2, "iterations": 2}), out, progress=kill)
    # The second seed's first rollout was not saved yet.
    assert Controller.load(export(out)) == Controller.load(pair / "seed-3/controller.safetensors")


def test_a_recipe_that_is_refused_leaves_the_folder_free(tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seeds must be a positive integer, got 0"):
        Recipe.from_dict({**tiny, "seeds": 0})
    with pytest.raises(ConfigError, match="refuses it"):
        train(Recipe.from_dict({**tiny, "seeds": 2, "algorithm": {"colour": "red"}}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
