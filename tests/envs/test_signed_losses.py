"""Losses that fall below zero: a lower loss is always worth more."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs import TrainingConfig, TrainingRuns, Workload, make_workload


def below_zero(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target) - 0.5


def workload(signed: bool) -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, 4, generator=generator)
    targets = inputs.sum(dim=1, keepdim=True)
    parts = (inputs[:300], targets[:300]), (inputs[300:], targets[300:])
    return Workload.from_dataset("below", lambda: nn.Linear(4, 1), *parts, below_zero, 16, signed=signed)


def trained(signed: bool) -> tuple[TrainingRuns, np.ndarray, np.ndarray]:
    """Ten runs from rates far too low to good ones; their rewards and their losses at the first decision."""
    config = TrainingConfig(workload=workload(signed), optimizer="sgd", steps=200, start=(1e-5, 1e-4))
    runs = TrainingRuns.sample(config, (3, 0), range(10))
    runs.begin()
    first, total = runs.heldout_loss.copy(), np.zeros(10)
    while not runs.done:
        total += runs.step(np.linspace(-0.1, 0.45, 10))[1]
    return runs, total, first


def test_a_loss_that_falls_below_zero_earns_more_the_lower_it_is() -> None:
    runs, total, first = trained(signed=False)
    assert runs.heldout_loss.min() < -0.4 < 0.0 < runs.heldout_loss.max()
    assert (first > 0).all()
    assert (np.argsort(total) == np.argsort(-runs.heldout_loss / first)).all()
    above = runs.heldout_loss > 0.05
    assert total[above] == pytest.approx(np.log(first[above] / runs.heldout_loss[above]), rel=0.02)


def test_a_signed_loss_earns_its_difference() -> None:
    runs, total, first = trained(signed=True)
    assert runs.heldout_loss.min() < -0.4
    assert total == pytest.approx(np.clip(first - runs.heldout_loss, -2, 8))


def test_likelihoods_are_signed() -> None:
    assert make_workload("likelihood", 0).signed
    assert not make_workload("bandit", 0).signed  # its held-out loss is a regret
