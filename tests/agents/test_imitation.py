"""A policy that begins by imitating the best schedules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlrate import Controller
from rlrate.agents import Recipe, evaluate, train
from rlrate.agents.imitation import Imitation, imitate
from rlrate.control import Cadence, ControlSpec
from rlrate.envs import TrainingConfig
from rlrate.errors import ConfigError

CONFIG = TrainingConfig(
    workload=["noisy-quadratic"],
    optimizer=["sgd", "adam"],
    steps=(60, 90),
    spec=ControlSpec(cadence=Cadence(decisions=12, first=5, ramp=3)),
)
SETTINGS = Imitation(draws=3, runs=2, epochs=20, batch_size=64)


@pytest.mark.slow
def test_it_is_better_than_holding_the_rate_and_does_not_depend_on_the_workers() -> None:
    done: list[tuple[int, int]] = []
    made = [
        imitate(
            SETTINGS, CONFIG, net=[16], activation="tanh", seed=2, workers=workers, progress=lambda *n: done.append(n)
        )
        for workers in (1, 2)
    ]
    assert made[0] == made[1]
    assert done == 2 * [(k, 6) for k in range(1, 7)]
    gains = [
        np.mean([run.improvement for run in evaluate(controller, CONFIG, seed=9, draws=4, runs=2)])
        for controller in (made[0], Controller.constant(0.0, CONFIG.spec))
    ]
    assert gains[0] > gains[1] + 0.5


def test_a_training_begins_with_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    entries = {**tiny, "iterations": 1, "imitation": {"draws": 2, "runs": 2, "epochs": 2}}
    entries["algorithm"] = {**tiny["algorithm"], "learning_rate": 1e-12}
    shares: list[float] = []
    recipe = Recipe.from_dict(entries)
    out = tmp_path / "run"
    trained = Controller.load(
        train(recipe, out, progress=lambda done, total, row: None if done else shares.append(row["imitation"]))
    )
    imitation = Controller.load(out / "imitation.safetensors")
    observations = np.random.default_rng(0).normal(size=(50, len(trained.spec.signals))).astype(np.float32)
    np.testing.assert_allclose(trained.act(observations), imitation.act(observations), atol=1e-5)
    assert shares[-1] == 1.0 and shares == sorted(shares)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"imitation": {"draws": 0}}, "imitation.draws must be a positive integer, got 0"),
        ({"imitation": {"teachers": 3}}, "imitation: .*teachers"),
        ({"imitation": {"draws": 2}, "action": "discrete"}, "with continuous actions"),
        ({"imitation": {"draws": 2}, "initial": "default"}, "not one that begins with a controller"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict[str, Any], message: str, tiny: dict[str, Any]) -> None:
    kept = {name: value for name, value in tiny.items() if name not in ("cadence", "policy")}
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict({**kept, **more})
