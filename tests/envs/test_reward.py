"""What is paid for the lowest loss, and what for the last one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rlrate.envs import TrainingConfig, TrainingRuns, Workload
from rlrate.envs.reward import WORST, Improvement
from rlrate.envs.training import INTERMEDIATE_EXAMPLES
from rlrate.errors import ConfigError

losses = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12)


def overfitting(heldout: int) -> Workload:
    """Wrong labels, a network that learns them by heart: the held-out loss falls little and rises far."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64 + heldout, 6, generator=generator)
    wrong = torch.rand(len(inputs), generator=generator) < 0.3
    labels = (inputs[:, 0] > 0).logical_xor(wrong).long()
    parts = (inputs[:64], labels[:64]), (inputs[64:], labels[64:])
    return Workload.from_dataset(
        "by-heart", lambda: nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 2)), *parts, F.cross_entropy, 16
    )


def followed(heldout: int, **settings: Any) -> tuple[TrainingRuns, np.ndarray, np.ndarray]:
    """Two runs with their held-out losses at all decisions, (decisions, N), and the sum of their rewards, (N,)."""
    config = TrainingConfig(workload=overfitting(heldout), optimizer="adam", steps=150, start=1e-3, **settings)
    runs = TrainingRuns.sample(config, (1, 0), range(2))
    runs.begin()
    seen, total = [runs.heldout_loss], np.zeros(2)
    while not runs.done:
        total += runs.step(np.full(2, 0.3))[1]
        seen.append(runs.heldout_loss)
    return runs, np.stack(seen), total


@pytest.mark.parametrize("reward", ["heldout", "final"])
def test_the_lowest_loss_is_paid_for_in_part(reward: str) -> None:
    runs, seen, total = followed(INTERMEDIATE_EXAMPLES, reward=reward, reward_best=0.5)
    assert (seen[-1] > 2 * seen.min(axis=0)).all()
    floor = 1e-3 * seen[0]
    lowest = np.log((seen[0] + floor) / (seen[1:].min(axis=0) + floor))
    last = np.log((seen[0] + floor) / (seen[-1] + floor))
    np.testing.assert_allclose(runs.best_improvement, lowest)
    np.testing.assert_allclose(runs.improvement, last)
    np.testing.assert_allclose(total, (lowest + last) / 2)


def test_how_far_a_loss_has_risen_is_told_by_the_examples_of_every_decision() -> None:
    runs, seen, total = followed(200, reward_best=1.0)
    population = runs.population
    few, every = (population.heldout(limit)[0].double().numpy() for limit in (INTERMEDIATE_EXAMPLES, None))
    assert (few != every).all()
    np.testing.assert_array_equal(seen[-1], every)
    risen = np.log(few / np.minimum(few, seen[1:-1].min(axis=0)))
    assert (risen > 0.1).all()
    np.testing.assert_allclose(total - runs.improvement, risen, rtol=2e-3)


def test_the_training_loss_is_paid_for_alike() -> None:
    runs, _, total = followed(200, reward="train", reward_best=1.0)
    np.testing.assert_allclose(total, runs.best_improvement)
    assert (runs.best_improvement >= runs.improvement).all()


@given(losses, st.floats(0, 1))
def test_pay_lies_between_the_last_loss_and_the_lowest(values: list[float], share: float) -> None:
    fall = Improvement(1, floor=1e-3, best=share, signed=False)
    fall.begin(np.array([1.0]))
    highest = -np.inf
    for value in values:
        fall.update(np.array([value]), np.array([False]))
        highest = max(highest, fall.last[0])
        assert fall.best[0] == highest
        assert fall.last[0] - 1e-12 <= fall.paid[0] <= fall.best[0] + 1e-12
    fall.update(np.array([0.5]), np.array([True]))  # what diverged has nothing to show
    assert fall.paid[0] == fall.last[0] == fall.best[0] == WORST


def test_a_share_is_no_more_than_all() -> None:
    with pytest.raises(ConfigError, match=r"reward_best must lie in \[0, 1\], got 1.5"):
        TrainingConfig(reward_best=1.5)
