"""A controller that knows when to stop: how it is taught, and that it does good where it was taught."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rlrate import Controller
from rlrate.agents import Recipe, export, train
from rlrate.agents.ensemble import mean_of
from rlrate.agents.stopping import Stopping, keep_stop, teach_stop, without_stop
from rlrate.control import Action, Cadence, ControlSpec
from rlrate.envs import TrainingConfig, TrainingRuns, Workload
from rlrate.envs.optimizers import make_optimizer
from rlrate.envs.training import Draw
from rlrate.envs.workloads.models import MLP
from rlrate.errors import ConfigError

SPEC = ControlSpec(cadence=Cadence(decisions=16, first=6, ramp=4), action=Action(start=2e-2, cap=None))
#: Holds the rate.
POLICY = Controller.constant(0.0, SPEC)
SETTINGS = Stopping(draws=12, runs=16)


def _workload(name: str, luck: float, examples: int) -> Workload:
    rng = np.random.default_rng(3)
    inputs = rng.normal(size=(examples + 256, 8)).astype(np.float32)
    values = (np.tanh(inputs @ rng.normal(size=(8, 2))) * (1 - luck) + luck * rng.normal(size=(len(inputs), 2))) * 2
    x, y = torch.from_numpy(inputs), torch.from_numpy(values.astype(np.float32))
    return Workload(
        name=name,
        family=name,
        make_model=lambda: MLP(8, 2, [64]),
        train=(x[:examples], y[:examples]),
        heldout=(x[examples:], y[examples:]),
        loss=F.mse_loss,
        batch_size=10,
    )


def by_heart(_: np.random.Generator) -> Workload:
    """Forty examples of mere luck."""
    return _workload("by-heart", 1.0, 40)


def learnable(_: np.random.Generator) -> Workload:
    """Many examples of what can be learned."""
    return _workload("learnable", 0.0, 2000)


CONFIG = TrainingConfig(workload=[by_heart, learnable], optimizer="adam", steps=200, spec=SPEC)


@pytest.fixture(scope="module")
def taught() -> Controller:
    """Taught on both kinds."""
    return teach_stop(POLICY, SETTINGS, CONFIG, seed=1)


def losses(
    controller: Controller, workload: Workload, *, told: bool = True, validated: int = 0
) -> tuple[TrainingRuns, np.ndarray]:
    """Four runs to their end."""
    draw = Draw(workload.with_validation(64), make_optimizer("adam"), 200)
    config = TrainingConfig(spec=controller.spec)
    untold, every = np.full(4, not told), np.full(4, validated)
    runs = TrainingRuns(config, draw, range(50, 54), untold=untold, validated=every)
    seen = runs.begin()
    while not runs.done:
        seen, _ = runs.step(*controller.answer(seen))
    return runs, runs.heldout_loss


def test_it_stops_where_examples_are_learned_by_heart_and_only_there(taught: Controller) -> None:
    rng = np.random.default_rng(0)
    runs, stopped = losses(taught, by_heart(rng))
    assert runs.control.patience.stopped.all()
    assert (stopped < 0.95 * losses(POLICY, by_heart(rng))[1]).all()
    runs, unmoved = losses(taught, learnable(rng))
    assert not runs.control.patience.stopped.any()
    np.testing.assert_array_equal(unmoved, losses(POLICY, learnable(rng))[1])


def test_untold_it_is_the_policy_alone(taught: Controller) -> None:
    workload = by_heart(np.random.default_rng(0))
    runs, untold = losses(taught, workload, told=False)
    assert not runs.control.patience.stopped.any()
    np.testing.assert_array_equal(untold, losses(POLICY, workload)[1])


@pytest.fixture(scope="module")
def validated() -> Controller:
    """Taught on both kinds, with a validation loss and without."""
    return teach_stop(POLICY, replace(SETTINGS, validation=True), CONFIG, seed=1)


@pytest.mark.parametrize("every", [0, 1, 4])
def test_one_that_learned_of_a_validation_loss_stops_with_it_and_without(validated: Controller, every: int) -> None:
    rng = np.random.default_rng(0)
    runs, stopped = losses(validated, by_heart(rng), validated=every)
    assert runs.control.patience.stopped.all() and (stopped < losses(POLICY, by_heart(rng))[1]).all()
    assert not losses(validated, by_heart(rng), told=False, validated=every)[0].control.patience.stopped.any()
    assert not losses(validated, learnable(rng), validated=every)[0].control.patience.stopped.any()


def test_what_it_says_of_a_validation_loss_it_learned_of_one(validated: Controller, taught: Controller) -> None:
    names = validated.spec.signals
    assert names == (*taught.spec.signals, "validation_known", "validation_gap", "validation_excess")
    # Of a policy that looks at validation losses, too, nothing is learned where none is shown.
    spec = replace(SPEC, signals=(*SPEC.signals, "validation_known", "validation_excess"))
    aware = teach_stop(Controller.constant(0.0, spec), SETTINGS, CONFIG, seed=1)
    looks = [dict(zip(c.spec.signals, c.stop[0][0].abs().sum(dim=0), strict=True)) for c in (validated, aware)]
    assert looks[0]["validation_excess"] > 0 == looks[1]["validation_excess"] == looks[1]["validation_known"]


def test_the_policy_stays_and_what_is_taught_can_be_saved(taught: Controller, tmp_path: Path) -> None:
    assert taught.spec.signals == (*SPEC.signals, "epochs_known", "epoch_updates", "epochs_planned", "epochs_done")
    assert taught.spec.action.patience == 3 and without_stop(taught) == POLICY
    assert Controller.load(taught.save(tmp_path / "taught.safetensors")) == taught
    assert keep_stop(POLICY, taught) == taught and keep_stop(POLICY, POLICY) == POLICY
    other = Controller.constant(0.0, replace(SPEC, signals=("progress",)))
    assert keep_stop(other, taught) == other


@pytest.mark.slow
def test_it_does_not_depend_on_the_workers_or_on_what_was_taught_before(taught: Controller) -> None:
    done: list[tuple[int, int]] = []
    config, settings = replace(CONFIG, workload="wine-mlp", steps=(60, 90)), Stopping(draws=4, runs=20)
    made = [
        teach_stop(policy, settings, config, seed=1, workers=workers, progress=lambda *n: done.append(n))
        for policy, workers in ((POLICY, 1), (taught, 2))
    ]
    assert made[0] == made[1] != taught
    assert done == 2 * [(k, 4) for k in range(1, 5)]


def test_the_margin_is_what_a_stop_must_gain(taught: Controller) -> None:
    seen = np.random.default_rng(0).normal(size=(400, len(taught.spec.signals))).astype(np.float32)
    seen[:, taught.spec.signals.index("epochs_known")] = 1.0
    bold = teach_stop(POLICY, replace(SETTINGS, margin=0.0), CONFIG, seed=1)
    often, seldom = bold.answer(seen)[1], taught.answer(seen)[1]
    assert (often | ~seldom).all() and often.sum() > seldom.sum()


def test_where_a_validation_loss_is_shown_the_margin_may_be_another(validated: Controller) -> None:
    settings = replace(SETTINGS, validation=True, validated_margin=0.9)
    wary = teach_stop(POLICY, settings, CONFIG, seed=1)
    workload = by_heart(np.random.default_rng(0))
    assert not losses(wary, workload, validated=1)[0].control.patience.stopped.any()
    assert losses(wary, workload)[0].control.patience.stopped.all()


def test_losses_that_may_be_negative_teach_nothing() -> None:
    with pytest.raises(ConfigError, match=r"decisions of 2 draws .*leave stopping out"):
        teach_stop(POLICY, Stopping(draws=2), replace(CONFIG, workload="bandit"), seed=1)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"draws": 0}, "stopping.draws must be a positive integer, got 0"),
        ({"patience": True}, "stopping.patience must be a positive integer"),
        ({"quantile": 1.0}, r"stopping.quantile must lie in \(0, 1\)"),
        ({"margin": -0.1}, r"stopping.margin must lie in \[0, 1\)"),
        ({"validated_margin": 1.0}, r"stopping.validated_margin must lie in \[0, 1\)"),
        ({"validation": 1}, "stopping.validation must be true or false, got 1"),
        ({"draw": 3}, "stopping: .*draw"),
    ],
)
def test_settings_that_make_no_sense_are_named(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(stopping=entries)


def test_a_training_ends_with_it_and_another_that_begins_there_keeps_it(tiny: dict[str, Any], tmp_path: Path) -> None:
    shares: list[float] = []
    recipe = Recipe.from_dict({**tiny, "iterations": 1, "stopping": {"draws": 4, "runs": 20, "patience": 2}})
    path = train(recipe, tmp_path / "run", progress=lambda done, total, row: shares.append(row.get("stopping", -1.0)))
    controller = Controller.load(path)
    assert controller.stop and controller.spec.action.patience == 2 and without_stop(controller).spec == recipe.spec
    assert shares[0] == -1.0 and shares[-1] == 1.0 and shares == sorted(shares)
    assert Controller.load(export(tmp_path / "run", tmp_path / "again.safetensors")) == controller
    kept = {name: tiny[name] for name in ("name", "seed", "runs", "draws", "environment", "algorithm")}
    further = Recipe.from_dict({**kept, "iterations": 1, "initial": str(path)})
    assert further.spec == recipe.spec
    tuned = Controller.load(train(further, tmp_path / "further"))
    assert tuned.spec == controller.spec and tuned != controller
    assert all(
        torch.equal(a, b)
        for mine, its in zip(tuned.stop, controller.stop, strict=True)
        for a, b in zip(mine, its, strict=True)
    )


def test_seeds_that_were_stopped_while_they_learned_when_to_stop_go_on(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.from_dict({**tiny, "iterations": 1, "seeds": 2, "stopping": {"draws": 4, "runs": 20}})
    whole = Controller.load(train(recipe, tmp_path / "run"))
    assert whole.stop[0][0].shape[0] == 2 * 64 and whole.spec.action.patience == 3
    for name in ("seed-4/stopping", "seed-4/controller", "controller"):
        (tmp_path / "run" / f"{name}.safetensors").unlink()
    assert Controller.load(train(recipe, tmp_path / "run", resume=True)) == whole


def test_the_mean_of_several_stops_where_their_mean_says(taught: Controller) -> None:
    layers = (*taught.stop[:-1], (-taught.stop[-1][0], 0.1 - taught.stop[-1][1]))
    seen = np.random.default_rng(0).normal(size=(50, len(taught.spec.signals))).astype(np.float32)
    seen[:, taught.spec.signals.index("epochs_known")] = 1.0
    # What one tells the other denies, but for a tenth of a nat.
    assert mean_of([taught, replace(taught, stop=layers)]).answer(seen)[1].all()
    with pytest.raises(ConfigError, match="one specification"):
        mean_of([taught, POLICY])
