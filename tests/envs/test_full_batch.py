"""Draws whose batches are all of the training examples."""

from __future__ import annotations

import pytest
import torch

from rlrate.envs import TrainingConfig
from rlrate.envs.population import Population
from rlrate.envs.training import FULL_BATCH_EXAMPLES, sample_draw
from rlrate.errors import ConfigError

FAMILIES = ["training-mlp-classification", "training-mlp-regression", "ill-conditioned"]


def test_a_share_of_the_draws_and_no_other_is_changed() -> None:
    plain, some = (TrainingConfig(workload=FAMILIES, full_batch=share) for share in (0.0, 0.4))
    changed = 0
    for number in range(60):
        before, after = (sample_draw(config, (7, number)) for config in (plain, some))
        assert (before.optimizer, before.steps) == (after.optimizer, after.steps)
        assert before.workload.name == after.workload.name
        examples = len(after.workload.train[0])
        if after.workload.batch_size < examples:
            assert after.workload.batch_size == before.workload.batch_size
            assert torch.equal(after.workload.train[0], before.workload.train[0])
            continue
        changed += 1
        assert examples == after.workload.batch_size <= FULL_BATCH_EXAMPLES and after.workload.epoch == 1
        for ours, all_of_them in zip(after.workload.train, before.workload.train, strict=True):
            assert torch.equal(ours, all_of_them[:examples])
        assert after.workload.heldout == after.workload.train
    assert 10 <= changed <= 38


def test_such_a_loss_has_no_noise() -> None:
    for share in (0.0, 1.0):
        draw = sample_draw(TrainingConfig(workload=FAMILIES[0], full_batch=share), (3, 1))
        population = Population(draw.workload, draw.optimizer, [4, 5], dtype=torch.float64)
        first, second = population.backward(), population.backward()  # two batches, the same weights
        assert torch.allclose(first, second, rtol=1e-12) == (share == 1.0)


def test_a_share_lies_between_nothing_and_all() -> None:
    with pytest.raises(ConfigError, match=r"full_batch must lie in \[0, 1\], got 2"):
        TrainingConfig(full_batch=2)
