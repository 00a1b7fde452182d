"""Copies of runs go on as the runs do, and siblings that are trained as one are what they are one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlrate.envs import TrainingConfig, TrainingRuns, TrainingVectorEnv
from rlrate.envs import population as population_module
from rlrate.envs.optimizers import OPTIMIZERS, make_optimizer
from rlrate.envs.population import Population
from rlrate.envs.siblings import SiblingRuns

from networks import MODELS, DataDependent, make_workload, rates_of, relative, workload_of

TAKEN = [2, 0, 2, 1]


def go_on(population: Population, rates: torch.Tensor, steps: int) -> torch.Tensor:
    losses = []
    for _ in range(steps):
        losses.append(population.backward())
        population.update(rates)
    return torch.stack([*losses, population.heldout()[0]])


def check_copies(workload: Any, optimizer: str) -> None:
    spec = make_optimizer(optimizer, np.random.default_rng(5))
    original = Population(workload, spec, [3, 4, 5], dtype=torch.float64)
    rates = rates_of(optimizer, 3)
    go_on(original, rates, 6)
    copies = original.take(TAKEN)
    twin = original.take(range(3))
    assert copies.size == 4
    # What the copies do leaves the original where it was.
    own = go_on(copies, rates[TAKEN], 70 // workload.batch_size + 6)
    expected = go_on(original, rates, 70 // workload.batch_size + 6)
    assert relative(own, expected[:, TAKEN]) <= 1e-9
    for stack, source in zip(copies.parameters, original.parameters, strict=True):
        assert relative(stack, source[TAKEN]) <= 1e-9
    for name, buffer in copies.buffers.items():
        assert relative(buffer.double(), original.buffers[name][TAKEN].double()) <= 1e-9
    assert torch.equal(go_on(twin, rates, 70 // workload.batch_size + 6), expected)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_copies_of_networks_go_on_alike_whatever_the_optimizer(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_copies(workload_of("wide"), optimizer)
    monkeypatch.setattr(population_module, "CHUNK_NUMBERS", 5000)
    check_copies(workload_of("wide"), optimizer)


@pytest.mark.parametrize("model", MODELS)
def test_copies_of_networks_go_on_alike_whatever_the_network(model: str) -> None:
    check_copies(workload_of(model), "adam")


@pytest.mark.filterwarnings("ignore:.*run one by one")
def test_copies_of_networks_that_run_one_by_one() -> None:
    check_copies(make_workload(DataDependent, (6, 5)), "adam")


def test_copies_can_be_taken_before_the_first_update() -> None:
    workload, spec = workload_of("wide"), make_optimizer("adam")
    copies = Population(workload, spec, [3, 4], dtype=torch.float64).take([1, 1, 0])
    expected = go_on(Population(workload, spec, [4, 4, 3], dtype=torch.float64), rates_of("adam", 3), 5)
    assert torch.equal(go_on(copies, rates_of("adam", 3), 5), expected)


DRAWN: dict[str, Any] = {
    "workload": ["training-mlp-classification", "plateau", "drift", "training-cnn"],
    "steps": 60,
    "siblings": 3,
    "withhold_loss": 0.3,
    "validation": 0.5,
    "reward_best": 0.5,
    "dtype": "float64",
}


@settings(deadline=None, max_examples=6)
@given(
    seed=st.integers(0, 999),
    # For each decision and run a number; what siblings have alike lets them be one network.
    moves=st.lists(st.tuples(*[st.sampled_from([-0.4, 0.0, 0.3])] * 6), min_size=4, max_size=12),
)
def test_siblings_are_what_they_are_one_by_one(seed: int, moves: list[tuple[float, ...]]) -> None:
    config = TrainingConfig(**DRAWN)
    together = SiblingRuns.sample(config, (seed,), range(6))
    apart = TrainingRuns.sample(config, (seed,), range(6))
    np.testing.assert_allclose(together.begin(), apart.begin(), rtol=1e-5, atol=1e-5)
    histories: list[tuple[Any, ...]] = [(run // 3,) for run in range(6)]
    while not together.done:
        assert together.runs.size == len(set(histories))
        move = moves[apart.control.decisions % len(moves)]
        own, expected = together.step(np.array(move)), apart.step(np.array(move))
        histories = [(*history, u) for history, u in zip(histories, move, strict=True)]
        np.testing.assert_allclose(own[0], expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(own[1], expected[1], rtol=1e-6, atol=1e-6)
        for name, values in together.facts().items():
            np.testing.assert_allclose(values, apart.facts()[name], rtol=1e-6, atol=1e-9, err_msg=name)
    assert apart.done


def test_what_siblings_share_is_the_same_to_the_last_bit() -> None:
    env = TrainingVectorEnv(8, draws=2, siblings=4, workload="wine-mlp", optimizer="adam", steps=30)
    observations = env.reset(seed=1)[0].reshape(2, 4, -1)
    for action in (0.0, 0.5, -0.2):
        assert (observations == observations[:, :1]).all()
        stepped, rewards, *_, infos = env.step(np.full((8, 1), action, np.float32))
        observations = stepped.reshape(2, 4, -1)
        assert (np.stack([rewards, infos["heldout_loss"]]).reshape(4, 4).std(axis=1) == 0.0).all()
    env.step(np.tile(np.array([[0.1], [0.1], [0.2], [0.3]], np.float32), (2, 1)))
    first = env.states[0].facts["heldout_loss"]
    assert first[0] == first[1] != first[2] != first[3]
