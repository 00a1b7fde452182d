"""Sampled families in a population: each network has the losses of a plain loop."""

from __future__ import annotations

import pytest
import torch

from rlrate.envs import make_workload
from rlrate.envs.optimizers import make_optimizer
from rlrate.envs.plain import plain_run
from rlrate.envs.population import Population

from networks import rates_of, relative

FAMILIES = [
    "deep-mlp",
    "attention",
    "plateau",
    "ill-conditioned",
    "likelihood",
    "noisy-labels",
    "overfit",
    "wide-mlp",
    "bandit",
    "drift",
    "ordinary",
    "structured",
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("error")
def test_a_population_is_its_networks_one_by_one(name: str, seed: int) -> None:
    workload, spec, rates = make_workload(name, seed), make_optimizer("momentum"), rates_of("momentum", 2) / 10
    population = Population(workload, spec, range(2), dtype=torch.float64)
    plain = [plain_run(workload, spec, run, torch.float64) for run in range(2)]
    for _ in range(4):
        losses = population.backward()
        population.update(rates)
        expected = [run.step(rate) for run, rate in zip(plain, rates.tolist(), strict=True)]
        assert relative(losses, torch.stack(expected)) <= 1e-9
    loss, _ = population.heldout()
    for run, value in zip(plain, loss, strict=True):
        inputs, targets = (v.double() if v.is_floating_point() else v for v in workload.heldout)
        with torch.no_grad():
            assert value.item() == pytest.approx(workload.loss(run.model.eval()(inputs), targets).item(), rel=1e-8)
