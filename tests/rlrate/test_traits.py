"""What a controller is told of the optimizer: the same from torch's optimizer in a loop as from an environment's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rlrate import LearnedLR
from rlrate.control import SIGNALS, Cadence, ControlSpec, OptimizerTraits
from rlrate.controller import Controller
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.optimizers import OPTIMIZERS, make_optimizer
from rlrate.envs.training import Draw
from rlrate.envs.workloads import make_workload

TOLD = ("optimizer_adaptive", "optimizer_momentum")
SPEC = ControlSpec(TOLD, Cadence(decisions=8, first=3, ramp=3, probe=2))

KNOWN = [
    ("SGD", {}, False, 0.0),
    ("SGD", {"momentum": 0.9}, False, 0.9),
    ("SGD", {"momentum": 0.95, "nesterov": True}, False, 0.95),
    ("ASGD", {}, False, 0.0),
    ("Adagrad", {}, True, 0.0),
    ("Adadelta", {}, True, 0.0),
    ("RMSprop", {}, True, 0.0),
    ("RMSprop", {"momentum": 0.8}, True, 0.8),
    ("Adam", {}, True, 0.9),
    ("AdamW", {"betas": (0.85, 0.99)}, True, 0.85),
    ("NAdam", {}, True, 0.9),
    ("RAdam", {}, True, 0.9),
    ("Adamax", {}, True, 0.9),
]


@pytest.mark.parametrize(("name", "settings", "adaptive", "momentum"), KNOWN)
def test_torchs_optimizers_are_told_apart(name: str, settings: dict[str, Any], adaptive: bool, momentum: float) -> None:
    optimizer = getattr(torch.optim, name)([torch.zeros(2, requires_grad=True)], lr=0.1, **settings)
    assert OptimizerTraits.of(optimizer.param_groups[0]) == OptimizerTraits(adaptive, momentum)


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ({}, OptimizerTraits()),
        ({"momentum": None, "betas": None}, OptimizerTraits()),
        ({"momentum": math.nan}, OptimizerTraits()),
        ({"momentum": -0.5}, OptimizerTraits()),
        ({"momentum": "much"}, OptimizerTraits()),
        ({"momentum": 1.0}, OptimizerTraits(momentum=0.9999)),
        ({"momentum": torch.tensor(0.5)}, OptimizerTraits(momentum=0.5)),
        ({"betas": ()}, OptimizerTraits(adaptive=True)),
        # one that takes the sign
        ({"betas": (0.9, 0.99), "weight_decay": 0.1}, OptimizerTraits(adaptive=True, momentum=0.9)),
    ],
)
def test_other_settings_do_no_harm(group: dict[str, Any], expected: OptimizerTraits) -> None:
    assert OptimizerTraits.of(group) == expected


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loop_and_environment_tell_the_same(name: str) -> None:
    spec = make_optimizer(name, np.random.default_rng(5))
    runs = TrainingRuns(
        TrainingConfig(spec=SPEC),
        Draw(make_workload("training-mlp-regression", np.random.default_rng(0)), spec, 60),
        [1, 2],
    )
    observed = [runs.begin()]
    while not runs.done:
        observed.append(runs.step(np.zeros(2))[0])

    weight = torch.ones(3, requires_grad=True)
    optimizer = spec.build([weight], lr=0.1)
    scheduler = LearnedLR(optimizer, total_steps=60, controller=Controller.constant(0.0, SPEC))
    for _ in range(60):
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
    told = scheduler.report().observations
    assert len(told) > 3 and (told == told[0]).all()
    assert all((rows == told[0]).all() for rows in observed)
    kept = spec.traits.momentum
    np.testing.assert_allclose(
        told[0], [name in ("adagrad", "rmsprop", "adam", "adamw"), -math.log10(1 - kept) / 2], atol=1e-6
    )


def test_copies_are_told_the_same() -> None:
    draw = Draw(make_workload("training-mlp-regression", np.random.default_rng(0)), make_optimizer("adam"), 60)
    runs = TrainingRuns(TrainingConfig(spec=SPEC), draw, [1, 2])
    runs.begin()
    np.testing.assert_allclose(runs.take([1, 1, 0]).step(np.zeros(3))[0], [[1.0, 0.5]] * 3, atol=1e-6)


def test_they_are_no_part_of_what_policies_see_unless_asked() -> None:
    assert set(TOLD) <= set(SIGNALS) and not set(TOLD) & set(ControlSpec().signals)
