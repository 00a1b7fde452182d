"""Passes that are recorded give what they give when they are computed step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs import replay
from rlrate.envs.optimizers import make_optimizer
from rlrate.envs.population import Population
from rlrate.envs.replay import Repeated
from rlrate.envs.workload import Workload
from rlrate.errors import WorkloadError

from networks import CLASSES, MODELS, SEQUENCES, make_workload

Function: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor | None]]

RANDOM = {"dropout", "noise", "layers-of-lstm"}


class Counted(nn.Module):
    """Counts the calls of a module outside of it."""

    def __init__(self, inner: nn.Module, calls: list[int]) -> None:
        super().__init__()
        self.inner = inner
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(1)
        return self.inner(x)


class Scaled(nn.Module):
    """A linear layer and a factor that changes from call to call."""

    def __init__(self, factor: Callable[[Scaled], float]) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)
        self.factor = factor
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x[:, 0]) * self.factor(self)


def counting(module: Scaled) -> float:
    module.count += 1
    return 1.0 + 0.01 * module.count


def train(workload: Workload, steps: int, *, size: int = 3) -> list[Tensor]:
    """Losses of each step and the weights at the end."""
    population = Population(workload, make_optimizer("adam"), range(size))
    losses = []
    for _ in range(steps):
        losses.append(population.backward())
        population.update(torch.full((size,), 1e-2))
    return [*losses, population.rows, *population.buffers.values()]


def check_same(workload: Workload, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(0)
    repeated = train(workload, steps)
    monkeypatch.setattr(replay, "RECORDED_CALL", 10**9)
    random.seed(0)
    for a, b in zip(repeated, train(workload, steps), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("model", MODELS)
def test_recorded_training_is_the_same_to_the_last_bit(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape = MODELS[model]
    calls: list[int] = []
    workload = make_workload(lambda: Counted(make(), calls), shape)
    train(workload, 40)
    # Every call of the module stands for all networks; one more counts activations, one tries whether it can.
    assert len(calls) == 42 if model in RANDOM else len(calls) < 20
    check_same(workload, 40, monkeypatch)


def test_populations_in_chunks_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrate.envs.population.CHUNK_NUMBERS", 5_000)
    check_same(make_workload(*MODELS["cnn-batchnorm"]), 30, monkeypatch)


def test_networks_taken_out_of_a_population_are_recorded_anew() -> None:
    workload = make_workload(*MODELS["mlp"])
    both, apart = (Population(workload, make_optimizer("sgd"), [0, 1]) for _ in range(2))
    for step in range(40):
        if step == 20:
            both, apart = both.take([0, 1]), apart.take([1])
        losses, own = both.backward(), apart.backward()
        assert own[-1] == pytest.approx(losses[-1].item(), rel=1e-5)
        both.update(torch.full((2,), 1e-2))
        apart.update(torch.full((len(own),), 1e-2))


@pytest.mark.parametrize("factor", [counting, lambda _: random.random()])
def test_modules_that_change_from_call_to_call_are_not_recorded(
    factor: Callable[[Scaled], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_same(make_workload(lambda: Scaled(factor), SEQUENCES), 40, monkeypatch)


def test_a_loss_that_changes_late_is_an_error_that_names_the_mend() -> None:
    factor = [1.0]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return factor[0] * F.cross_entropy(output, target)

    workload = make_workload(*MODELS["mlp"], loss=loss)
    population = Population(workload, make_optimizer("sgd"), [0])
    for _ in range(50):
        population.backward()
        population.update(torch.full((1,), 1e-2))
    factor[0] = 2.0
    with pytest.raises(WorkloadError, match=r"a workload: .* some calls ago; make what changes a buffer"):
        for _ in range(60):
            population.backward()
            population.update(torch.full((1,), 1e-2))


def call(repeated: Repeated, function: Function, *inputs: Tensor) -> Any:
    """The repeated function beside itself, on inputs and copies of them."""
    copies = [value.clone() for value in inputs]
    outputs, expected = repeated("key", function, inputs), function(copies)
    for a, b in zip([*outputs, *inputs], [*expected, *copies], strict=True):
        assert a is b or (a is not None and b is not None and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)))
    return outputs


def test_changes_in_place_parts_and_missing_outputs_are_repeated() -> None:
    mask = torch.tensor([True, False, True, False])

    def function(inputs: Sequence[Tensor]) -> list[Tensor | None]:
        x, total = inputs
        first, second = x.chunk(2, dim=-1)
        total.add_(first).mul_(0.5)
        hidden = x.masked_fill(mask, float("-inf")).softmax(-1)
        return [hidden, None, (first @ second.mT).to(torch.float64), x.clamp(min=-0.5), total.view(-1)]

    repeated = Repeated()
    for seed in range(40):
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        call(repeated, function, x, torch.ones(3, 2))
        if seed == 30:
            mask.logical_not_()  # a tensor from outside is looked at, not copied
    assert repeated.possible


def test_sums_that_are_rounded_by_where_numbers_lie_are_recorded() -> None:
    rows = torch.randn(6, 784, generator=torch.Generator().manual_seed(0))
    weights = rows[:, :325].view(6, 13, 25)  # of one row for each network, as in a population
    assert not torch.equal(weights.sum(), weights.clone().sum())  # or this shows nothing
    repeated, calls = Repeated(), []

    def function(inputs: Sequence[Tensor]) -> list[Tensor | None]:
        calls.append(1)
        return [inputs[0].sum()]

    for _ in range(40):
        (total,) = repeated("sum", function, [weights])
        assert total is not None and torch.equal(total, weights.sum())
    assert repeated.possible and len(calls) < 20


def test_not_a_number_agrees_with_itself() -> None:
    repeated = Repeated()
    for seed in range(40):
        x = torch.full((3,), float("nan") if seed > 5 else 1.0)
        call(repeated, lambda inputs: [inputs[0] * 2, inputs[0].sqrt()], x)
    assert repeated.possible


def test_functions_that_draw_or_look_at_numbers_are_not_recorded() -> None:
    functions: list[Function] = [lambda x: [torch.rand_like(x[0])], lambda x: [x[0] * x[0].sum().item()]]
    for function in functions:
        repeated = Repeated()
        seen = []
        for seed in range(12):
            torch.manual_seed(seed)
            (value,) = repeated("key", function, [torch.full((2,), float(seed + 1))])
            assert value is not None
            seen.append(value[0].item())
        assert not repeated.possible
        assert len(set(seen)) == 12


STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "product": lambda x, w: x @ w,
    "turned": lambda x, w: x.mT.contiguous().mT + w.sum(0),
    "norm": lambda x, w: F.layer_norm(x, (4,), w[0], w[1]),
    "softmax": lambda x, w: (x * 0.5).softmax(-1),
    "gelu": lambda x, w: F.gelu(x) - w.mean(),
    "power": lambda x, w: x.abs().pow(1.5).clamp_max(3.0),
    "where": lambda x, w: torch.where(x > 0, x, w[:1] * x),
    "joined": lambda x, w: torch.cat([x[:, 2:], x[:, :2]], dim=1),
    "scaled": lambda x, w: x / (x.square().mean(dim=1, keepdim=True) + 1e-5).sqrt(),
}


@given(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=6), st.integers(0, 10**6))
@example(["product"] * 5, 0)  # whose gradients TorchScript would add up as one product
@settings(max_examples=30)
def test_any_chain_of_operations_and_its_gradient(names: list[str], seed: int) -> None:
    def function(inputs: Sequence[Tensor]) -> list[Tensor | None]:
        x, w = (value.detach().requires_grad_() for value in inputs)
        with torch.enable_grad():
            y = x
            for name in names:
                y = STEPS[name](y, w)
            loss = y.square().mean()
            grads = torch.autograd.grad(loss, [x, w], allow_unused=True)
        return [loss.detach(), *grads]

    generator = torch.Generator().manual_seed(seed)
    repeated = Repeated()
    for _ in range(12):
        x, w = torch.randn(3, 4, generator=generator), torch.randn(4, 4, generator=generator)
        call(repeated, function, x, w)
    assert repeated.possible


def test_an_error_of_the_loss_stays_what_it_is() -> None:
    broken = [False]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if broken[0]:
            raise ValueError("no such target")
        return F.cross_entropy(output, target)

    population = Population(make_workload(*MODELS["mlp"], loss=loss), make_optimizer("sgd"), [0])
    for _ in range(7):
        population.backward()
        population.update(torch.full((1,), 1e-2))
    broken[0] = True
    with pytest.raises(ValueError, match=r"^no such target$"):
        population.backward()
