"""What a population keeps; nothing about a run depends on its neighbours."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from rlrate.envs import population as population_module
from rlrate.envs.optimizers import OPTIMIZERS, make_optimizer
from rlrate.envs.population import Population
from rlrate.envs.streams import Batches
from rlrate.errors import ConfigError

from networks import (
    rates_of,
    workload_of,
)


def train(population: Population, steps: int) -> list[Tensor]:
    history = []
    for _ in range(steps):
        history.append(population.backward())
        population.update(rates_of("adam", population.size))
    return history


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small chunks, so that a population of a few networks has several."""
    monkeypatch.setattr(population_module, "CHUNK_NUMBERS", 5000)
    yield


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [*(("wide", name) for name in OPTIMIZERS), ("mlp", "adam"), ("all-wide", "adam"), ("layers-of-lstm", "adam")],
)
def test_state_round_trip_is_bit_equal(model: str, optimizer: str) -> None:
    workload = workload_of(model)
    spec = make_optimizer(optimizer, np.random.default_rng(2))
    first = Population(workload, spec, range(5))
    train(first, 7)
    state = copy.deepcopy(first.state_dict())
    expected = train(first, 7)
    second = Population(workload, spec, range(5))
    second.load_state_dict(state)
    for a, b in zip(train(second, 7), expected, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(a, b)
    # The same state again: loading has not tied it to the population.
    first.load_state_dict(state)
    for a, b in zip(train(first, 7), expected, strict=True):
        assert torch.equal(a, b)


def test_state_of_another_population() -> None:
    spec = make_optimizer("sgd")
    state = Population(workload_of("mlp"), spec, range(2)).state_dict()
    with pytest.raises(ConfigError, match="built alike"):
        Population(workload_of("mlp"), spec, range(3)).load_state_dict(state)


@pytest.mark.parametrize("model", ["cnn-batchnorm", "dropout", "noise", "odd"])
def test_heldout_changes_nothing(model: str) -> None:
    populations = [Population(workload_of(model), make_optimizer("adam"), range(4)) for _ in range(2)]
    for _ in range(4):
        before = torch.get_rng_state()
        first, second = populations[0].heldout(), populations[0].heldout()
        assert torch.equal(first[0], second[0])
        losses = [train(population, 2) for population in populations]
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
        for name, buffer in populations[0].buffers.items():
            assert torch.equal(buffer, populations[1].buffers[name])


@pytest.mark.parametrize("model", ["mlp", "cnn-batchnorm", "dropout", "gru"])
def test_a_run_does_not_depend_on_its_neighbours(model: str) -> None:
    def runs(seeds: list[int]) -> Tensor:
        workload, spec = workload_of(model), make_optimizer("adam")
        population = Population(workload, spec, seeds, dtype=torch.float64)
        history = []
        for _ in range(8):
            history.append(population.backward())
            population.update(torch.full((len(seeds),), 1e-3))
        return torch.stack(history, 1)

    many = runs([3, 1, 4, 15, 9, 2])
    torch.testing.assert_close(runs([15])[0], many[3], rtol=1e-12, atol=0)
    torch.testing.assert_close(runs([9, 15])[1], many[3], rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", ["mlp", "wide", "cnn-batchnorm", "layers-of-lstm"])
def test_chunks_change_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def history() -> Tensor:
        population = Population(workload_of(model), make_optimizer("adam"), range(12), dtype=torch.float64)
        history = [*train(population, 10), population.heldout()[0]]
        return torch.stack([*history, torch.full((12,), len(population._chunks))])

    whole = history()
    monkeypatch.setattr(population_module, "CHUNK_NUMBERS", 5000)
    cut = history()
    assert whole[-1, 0] == 1 and cut[-1, 0] > 2
    torch.testing.assert_close(cut[:-1], whole[:-1], rtol=1e-10, atol=0)


def test_a_diverged_network_does_not_harm_the_others() -> None:
    spec = make_optimizer("momentum")
    population = Population(workload_of("cnn-batchnorm"), spec, range(3), dtype=torch.float64)
    alone = Population(workload_of("cnn-batchnorm"), spec, [2], dtype=torch.float64)
    for _ in range(30):
        losses, expected = population.backward(), alone.backward()
        population.update(torch.tensor([1e200, 1e-3, 1e-2], dtype=torch.float64))
        alone.update(torch.tensor([1e-2], dtype=torch.float64))
    assert not losses[0].isfinite()
    torch.testing.assert_close(losses[2:], expected, rtol=1e-12, atol=0)


def test_batches_are_shuffled_epochs_carried_over() -> None:
    batches = Batches([1, 2], examples=10, batch_size=4)
    order = torch.cat([batches.next() for _ in range(25)], dim=1)
    for run in order:
        for epoch in run.split(10):
            assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(order[0, :10], order[0, 10:20])
    again = Batches([2], examples=10, batch_size=4)
    assert torch.equal(torch.cat([again.next() for _ in range(25)], dim=1)[0], order[1])
