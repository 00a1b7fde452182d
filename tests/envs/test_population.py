"""A population equals separate plain loops."""

from __future__ import annotations

import dataclasses
import gc
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec, make_optimizer
from rlrate.envs.plain import PlainRun, plain_run
from rlrate.envs.population import Population
from rlrate.envs.workload import Workload
from rlrate.errors import ConfigError, WorkloadError

from networks import (
    CLASSES,
    MODELS,
    PICTURES,
    SEQUENCES,
    DataDependent,
    Noisy,
    SecretlyNoisy,
    make_workload,
    rates_of,
    relative,
    workload_of,
)


def check_truth(workload: Workload, spec: OptimizerSpec, size: int, steps: int) -> list[PlainRun]:
    """Train a population and plain loops side by side; returns the loops."""
    seeds = [7 * k for k in range(size)]
    rates = rates_of(spec.name, size)
    population = Population(workload, spec, seeds, dtype=torch.float64)
    plain = [plain_run(workload, spec, seed, torch.float64) for seed in seeds]
    for _ in range(steps):
        losses = population.backward()
        expected = torch.stack([run.backward() for run in plain])
        assert relative(losses, expected) <= 1e-9
        population.update(rates)
        for run, rate in zip(plain, rates.tolist(), strict=True):
            run.optimizer.param_groups[0]["lr"] = rate
            run.optimizer.step()
    for k, run in enumerate(plain):
        trained = [p for p in run.model.parameters() if p.requires_grad]
        for stack, own in zip(population.parameters, trained, strict=True):
            assert relative(stack[k], own) <= 1e-9
        for name, buffer in run.model.named_buffers():
            assert relative(population.buffers[name][k].double(), buffer.double()) <= 1e-9
    loss, accuracy = population.heldout()
    for k, run in enumerate(plain):
        run.model.eval()
        inputs, targets = workload.heldout
        with torch.no_grad():
            output = run.model(inputs.double())
        if not isinstance(run.model, Noisy):
            assert loss[k].item() == pytest.approx(workload.loss(output, targets).item(), rel=1e-9)
            right = (output.argmax(1) == targets).double().mean().item()
            assert accuracy[k].item() == pytest.approx(right)
    return plain


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "cnn", "cnn-batchnorm", "gru", "lstm"])
def test_equals_plain_loops(model: str, optimizer: str) -> None:
    # Settings are torch's for two models and random for the others: weight decay occurs in each.
    rng = None if model in ("cnn", "gru") else np.random.default_rng([3, len(model)])
    size, steps = (16, 50) if model in ("mlp", "cnn", "gru") else (4, 20)
    check_truth(workload_of(model), make_optimizer(optimizer, rng), size, steps)


DECAYING = {
    "sgd": {"weight_decay": 0.01},
    "nesterov": {"weight_decay": 0.01, "momentum": 0.8},
    "adagrad": {"weight_decay": 0.01, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "rmsprop": {"weight_decay": 0.01, "momentum": 0.5, "centered": True},
    "adam": {"weight_decay": 0.01, "amsgrad": True},
    "adamw": {"weight_decay": 0.3},
}


@pytest.mark.parametrize("model", ["mlp", "wide"])
@pytest.mark.parametrize("optimizer", DECAYING)
def test_equals_plain_loops_with_every_setting(optimizer: str, model: str) -> None:
    check_truth(workload_of(model), OptimizerSpec(optimizer, DECAYING[optimizer]), 8, 50 if model == "mlp" else 20)


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"mlp", "cnn", "cnn-batchnorm"}))
def test_other_modules_are_vectorised_and_equal_plain_loops(model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_truth(workload_of(model), make_optimizer("adamw"), size=3, steps=12)


@pytest.mark.parametrize("model", ["mlp", "cnn-batchnorm", "attention"])
def test_a_population_that_nobody_needs_leaves_nothing_in_memory(model: str) -> None:
    make, shape = MODELS[model]
    networks: list[weakref.ref[Tensor]] = []

    def remembered() -> nn.Module:
        module = make()
        networks.extend(map(weakref.ref, module.parameters()))
        return module

    population = Population(make_workload(remembered, shape), make_optimizer("adam"), [0, 1])
    for _ in range(10):
        population.backward()
        population.update(torch.full((2,), 1e-3))
    population.heldout()
    del population
    gc.collect()
    assert networks and not [network for network in networks if network() is not None]


def test_equals_plain_loops_in_single_precision() -> None:
    workload, spec = workload_of("mlp"), make_optimizer("adam")
    population, plain = Population(workload, spec, [0, 1]), plain_run(workload, spec, 1)
    for _ in range(20):
        losses = population.backward()
        population.update(torch.tensor([1e-2, 1e-3]))
        assert losses[1].item() == pytest.approx(plain.step(1e-3).item(), rel=1e-4)


@pytest.mark.parametrize("module", [DataDependent, SecretlyNoisy])
def test_modules_that_cannot_be_vectorised_run_one_by_one(module: type[nn.Module]) -> None:
    workload = make_workload(module, SEQUENCES)
    with pytest.warns(UserWarning, match="run one by one.*cannot be vectorised") as caught:
        spec, rates = make_optimizer("momentum"), rates_of("momentum", 3)
        population = Population(workload, spec, range(3), dtype=torch.float64)
        plain = [plain_run(workload, spec, seed, torch.float64) for seed in range(3)]
        for _ in range(10):
            losses = population.backward()
            population.update(rates)
            expected = [r.step(rate) for r, rate in zip(plain, rates.tolist(), strict=True)]
            assert relative(losses, torch.stack(expected)) <= 1e-9
        population.heldout()
    assert len(caught) == 1
    for k, run in enumerate(plain):
        for name, buffer in run.model.named_buffers():
            assert relative(population.buffers[name][k].double(), buffer.double()) <= 1e-9


def test_a_faulty_module_raises_its_own_error() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("no such loss")

    with pytest.raises(RuntimeError, match="no such loss"):
        Population(make_workload(MODELS["mlp"][0], PICTURES, loss=loss), make_optimizer("sgd"), [0])


@pytest.mark.parametrize(
    "loss",
    [
        lambda output, target: F.cross_entropy(output, target, label_smoothing=0.1),
        lambda output, target: F.cross_entropy(output, target - 1, ignore_index=-1),
        lambda output, target: F.nll_loss(F.log_softmax(output, -1), target),
        lambda output, target: F.mse_loss(output, F.one_hot(target, CLASSES).to(output)),
    ],
)
def test_other_losses(loss: Any) -> None:
    workload = make_workload(MODELS["mlp"][0], PICTURES, loss=loss)
    population = Population(workload, make_optimizer("sgd"), [0, 1], dtype=torch.float64)
    plain = plain_run(workload, make_optimizer("sgd"), 1, torch.float64)
    assert population.backward()[1].item() == pytest.approx(plain.backward().item(), rel=1e-12)


def test_a_loss_at_every_position() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    tokens = torch.randint(9, (40, 7), generator=torch.Generator().manual_seed(1))
    workload = Workload(
        "tokens", "test", lambda: nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)),
        (tokens, tokens), (tokens, tokens), loss, 8,
    )  # fmt: skip
    spec = make_optimizer("adam")
    population = Population(workload, spec, [0, 1], dtype=torch.float64)
    plain = plain_run(workload, spec, 1, torch.float64)
    for _ in range(3):
        losses = population.backward()
        population.update(torch.tensor([0.1, 0.1], dtype=torch.float64))
        assert losses[1].item() == pytest.approx(plain.step(0.1).item(), rel=1e-12)
    assert population.heldout()[1].isnan().all()


def test_gradients_and_parameters_can_be_read_between_backward_and_update() -> None:
    workload, spec = workload_of("cnn"), make_optimizer("sgd")
    population = Population(workload, spec, [5, 6], dtype=torch.float64)
    plain = plain_run(workload, spec, 6, torch.float64)
    population.backward()
    plain.backward()
    for stack, own in zip(population.gradients, plain.model.parameters(), strict=True):
        assert own.grad is not None
        assert stack.shape == (2, *own.shape)
        assert relative(stack[1], own.grad) <= 1e-12
    before = [p.clone() for p in population.parameters]
    population.update(torch.tensor([0.0, 0.5]))
    for stack, old, grad in zip(population.parameters, before, population.gradients, strict=True):
        assert torch.equal(stack[0], old[0])
        torch.testing.assert_close(stack[1], old[1] - 0.5 * grad[1])


def test_networks_of_different_shapes() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, int(torch.randint(4, 99, ()))))

    with pytest.raises(WorkloadError, match="same for every seed"):
        Population(make_workload(make, PICTURES), make_optimizer("sgd"), range(4))


def test_no_networks() -> None:
    with pytest.raises(ConfigError, match="at least one seed"):
        Population(workload_of("mlp"), make_optimizer("sgd"), [])


def test_on_request_a_part_of_the_heldout_examples_is_looked_at() -> None:
    whole = workload_of("mlp")
    first = dataclasses.replace(whole, heldout=(whole.heldout[0][:20], whole.heldout[1][:20]))
    seeds, adam = [3, 4], make_optimizer("adam")
    expected, _ = Population(first, adam, seeds).heldout()
    loss, accuracy = Population(whole, adam, seeds).heldout(20)
    torch.testing.assert_close(loss, expected)
    assert accuracy.isnan().all()
    assert not torch.allclose(loss, Population(whole, adam, seeds).heldout()[0])
