"""A population equals separate plain loops; nothing about a run depends on its neighbours."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs import population as population_module
from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec, make_optimizer
from rlrate.envs.plain import PlainRun, plain_run
from rlrate.envs.population import Population
from rlrate.envs.streams import Batches
from rlrate.envs.workload import Workload
from rlrate.errors import ConfigError, WorkloadError

CLASSES = 4


class Recurrent(nn.Module):
    """The last output of a recurrent layer, then a linear layer."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.core = kind(5, 6, **{"batch_first": True, **settings})
        self.head = nn.Linear(6 * (2 if self.core.bidirectional else 1), CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if not self.core.batch_first:
            return self.head(self.core(x.transpose(0, 1))[0][-1])
        return self.head(self.core(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(5, 24, bias=False), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(F.layer_norm(y.transpose(1, 2).flatten(2), (8,)).mean(1))


class Odd(nn.Module):
    """A tied weight, a frozen weight, an unused one, and buffers that are replaced."""

    steps: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.randn(5, CLASSES), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(torch.tanh(self.first(x[:, 0])))
        if self.training:
            self.steps = self.steps + 1
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return (h - self.mean) @ self.frozen


class DataDependent(nn.Module):
    """Control flow that reads its data, which vmap cannot follow, and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(5), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(self.norm(x[:, 0]))
        return y if y[0, 0].item() > 0 else 2 * y


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0] + 0.1 * torch.randn_like(x[:, 0]))


class SecretlyNoisy(Noisy):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0] + 0.1 * torch.empty(5, dtype=x.dtype).normal_())


PICTURES, SEQUENCES = (1, 8, 8), (6, 5)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)),
        PICTURES,
    ),
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(3, 4, 3),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 4),
        ),
        PICTURES,
    ),
    "cnn-batchnorm": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(48, 4),
        ),
        PICTURES,
    ),
    "gru": (lambda: Recurrent(nn.GRU), SEQUENCES),
    "lstm": (lambda: Recurrent(nn.LSTM), SEQUENCES),
    "layers-of-lstm": (lambda: Recurrent(nn.LSTM, num_layers=2, dropout=0.3), SEQUENCES),
    "gru-both-ways": (
        lambda: Recurrent(nn.GRU, bidirectional=True, bias=False, batch_first=False),
        SEQUENCES,
    ),
    "rnn": (lambda: Recurrent(nn.RNN, nonlinearity="relu"), SEQUENCES),
    "attention": (Attention, SEQUENCES),
    "dropout": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(30, 9), nn.Dropout(0.3), nn.Linear(9, 4)),
        SEQUENCES,
    ),
    "conv1d": (
        lambda: nn.Sequential(nn.Conv1d(6, 3, 3, padding=2, dilation=2), nn.GELU(), nn.Flatten(), nn.Linear(15, 4)),
        SEQUENCES,
    ),
    "groups": (
        lambda: nn.Sequential(
            nn.Conv1d(6, 4, 3, groups=2, padding="same"),
            nn.MaxPool1d(2),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
        SEQUENCES,
    ),
    "odd": (Odd, SEQUENCES),
    "noise": (Noisy, SEQUENCES),
}


def make_workload(make: Callable[[], nn.Module], shape: tuple[int, ...], **more: Any) -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(170, *shape, generator=generator)
    inputs[:, ..., 0] = 0.0  # equal neighbours, where pooling must break ties as torch does
    targets = torch.randint(CLASSES, (170,), generator=generator)
    settings = {"loss": F.cross_entropy, "batch_size": 16, "accuracy": True, **more}
    return Workload(
        "a workload", "test", make, (inputs[:70], targets[:70]), (inputs[70:], targets[70:]),
        **settings,
    )  # fmt: skip


def workload_of(name: str) -> Workload:
    return make_workload(*MODELS[name])


def rates_of(optimizer: str, size: int) -> Tensor:
    top = -1.5 if optimizer in ("sgd", "momentum", "nesterov", "adagrad") else -2.5
    return torch.logspace(top - 2, top, size, dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    scale = b.abs().max().item()
    return (a - b).abs().max().item() / scale if scale > 0 else a.abs().max().item()


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
    check_truth(workload_of(model), make_optimizer(optimizer, rng), size=16, steps=50)


DECAYING = {
    "sgd": {"weight_decay": 0.01},
    "nesterov": {"weight_decay": 0.01, "momentum": 0.8},
    "adagrad": {"weight_decay": 0.01, "lr_decay": 0.1, "initial_accumulator_value": 0.1},
    "rmsprop": {"weight_decay": 0.01, "momentum": 0.5, "centered": True},
    "adam": {"weight_decay": 0.01, "amsgrad": True},
    "adamw": {"weight_decay": 0.3},
}


@pytest.mark.parametrize("optimizer", DECAYING)
def test_equals_plain_loops_with_every_setting(optimizer: str) -> None:
    check_truth(workload_of("mlp"), OptimizerSpec(optimizer, DECAYING[optimizer]), 8, 50)


@pytest.mark.parametrize("model", sorted(set(MODELS) - {"mlp", "cnn", "cnn-batchnorm"}))
def test_other_modules_are_vectorised_and_equal_plain_loops(model: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_truth(workload_of(model), make_optimizer("adamw"), size=3, steps=12)


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
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["mlp", "layers-of-lstm"])
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


@pytest.mark.parametrize("model", ["mlp", "cnn-batchnorm", "layers-of-lstm"])
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


def test_networks_of_different_shapes() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, int(torch.randint(4, 99, ()))))

    with pytest.raises(WorkloadError, match="same for every seed"):
        Population(make_workload(make, PICTURES), make_optimizer("sgd"), range(4))


def test_no_networks() -> None:
    with pytest.raises(ConfigError, match="at least one seed"):
        Population(workload_of("mlp"), make_optimizer("sgd"), [])
