"""The schedules are those of libraries, recorded: compared with torch, and with their formulas."""

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer, lr_scheduler

from rlrate.errors import ConfigError
from rlrate.experiments.rules import RULES, GradientNorm, Greedy, ReduceOnPlateau
from rlrate.experiments.schedules import PLATEAU, REACTIVE, factor_table, schedule_names

T = 200
OPEN_LOOP = [name for name in schedule_names() if name not in REACTIVE]

TORCH: dict[str, Callable[[Optimizer], lr_scheduler.LRScheduler]] = {
    "constant": lambda o: lr_scheduler.LambdaLR(o, lambda _: 1.0),
    "step": lambda o: lr_scheduler.MultiStepLR(o, [100, 150], gamma=0.1),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 199)),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 200),
    "warmup-cosine": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 1 / 11, 1.0, 10), lr_scheduler.CosineAnnealingLR(o, 190)],
        [10],
    ),
    "one-cycle": lambda o: lr_scheduler.OneCycleLR(
        o, o.param_groups[0]["lr"], 200, pct_start=0.3, cycle_momentum=False
    ),
    "linear": lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 200),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 200, 2.0),
    "warmup-linear": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 1 / 11, 1.0, 10), lr_scheduler.LinearLR(o, 1.0, 0.0, 190)],
        [10],
    ),
    "cosine-restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 29, 2),
    "cyclic": lambda o: lr_scheduler.CyclicLR(
        o, o.param_groups[0]["lr"] / 10, o.param_groups[0]["lr"], 25, mode="triangular2", cycle_momentum=False
    ),
}

# (t, T) -> factor, from the papers rather than from torch.
FORMULAS: dict[str, Callable[[int], float]] = {
    "constant": lambda t: 1.0,
    "step": lambda t: 1.0 if t < 100 else 0.1 if t < 150 else 0.01,
    "exponential": lambda t: 0.01 ** (t / 199),
    "cosine": lambda t: (1 + math.cos(math.pi * t / 200)) / 2,
    "warmup-cosine": lambda t: (1 + 10 * t / 10) / 11 if t < 10 else (1 + math.cos(math.pi * (t - 10) / 190)) / 2,
    "one-cycle": lambda t: _between(1 / 25, 1.0, t / 59) if t <= 59 else _between(1.0, 4e-6, (t - 59) / 140),
    "linear": lambda t: 1 - t / 200,
    "polynomial": lambda t: (1 - t / 200) ** 2,
    "warmup-linear": lambda t: (t + 1) / 11 if t < 10 else 1 - (t - 10) / 190,
    "cosine-restarts": lambda t: _restarted(t, 29),
    "cyclic": lambda t: 0.1 + 0.9 * (1 - abs(1 - t % 50 / 25)) / 2 ** (t // 50),
    "wsd": lambda t: (t + 1) / 11 if t < 10 else 1.0 if t < 160 else (1 + math.cos(math.pi * (t - 160) / 40)) / 2,
    "rex": lambda t: (1 - t / 200) / (1 - t / 400),
}


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _restarted(t: int, first: int) -> float:
    length = first
    while t >= length:
        t, length = t - length, 2 * length
    return (1 + math.cos(math.pi * t / length)) / 2


def _record(make: Callable[[Optimizer], lr_scheduler.LRScheduler], peak: float) -> np.ndarray:
    """Learning rates of an ordinary loop: a real network, its loss, and torch's scheduler."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for update in range(T):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()
        if update + 1 < T:
            scheduler.step()
    return np.array(rates)


def test_every_schedule_is_covered_here() -> None:
    assert list(FORMULAS) == OPEN_LOOP
    assert set(OPEN_LOOP) - set(TORCH) == {"wsd", "rex"}, "these are pytorch_optimizer's"
    assert list(RULES) == list(REACTIVE)


@pytest.mark.parametrize("name", TORCH)
def test_table_equals_torch_exactly(name: str) -> None:
    np.testing.assert_array_equal(factor_table(name, T), _record(TORCH[name], peak=1.0))


@pytest.mark.parametrize("peak", [3e-4, 0.037, 2.0])
@pytest.mark.parametrize("name", TORCH)
def test_table_scales_with_the_peak(name: str, peak: float) -> None:
    rates = _record(TORCH[name], peak)
    np.testing.assert_allclose(peak * factor_table(name, T), rates, rtol=1e-11)


@pytest.mark.parametrize("name", OPEN_LOOP)
def test_table_follows_the_formula(name: str) -> None:
    expected = [FORMULAS[name](t) for t in range(T)]
    # Torch computes several of them by recurrence; its rounding near zero is what 1e-13 allows.
    np.testing.assert_allclose(factor_table(name, T), expected, rtol=1e-11, atol=1e-13)


@given(name=st.sampled_from(OPEN_LOOP), total_steps=st.integers(1, 400))
@settings(deadline=None, max_examples=60)
def test_every_budget_gives_sane_factors(name: str, total_steps: int) -> None:
    table = factor_table(name, total_steps)
    assert table.shape == (total_steps,) and table.dtype == np.float64
    assert (table > 0).all() and (table <= 1 + 1e-12).all()
    assert not table.flags.writeable


@pytest.mark.parametrize("total_steps", [0, -3, 2.0, True])
def test_total_steps_must_be_a_count(total_steps: int) -> None:
    factor_table("constant", 2), factor_table("constant", 1)  # equal keys, cached before
    with pytest.raises(ConfigError, match=r"total_steps is .*at least 1"):
        factor_table("constant", total_steps)


def test_unknown_name_lists_close_matches() -> None:
    with pytest.raises(ConfigError, match=r"unknown schedule 'cosin': did you mean 'cosine'"):
        factor_table("cosin", T)


def test_plateau_has_no_table() -> None:
    with pytest.raises(ConfigError, match="follows the training"):
        factor_table(PLATEAU, T)


def test_plateau_equals_torch_exactly() -> None:
    runs, total_steps = 5, 403
    rng = np.random.default_rng(3)
    trend = np.exp(-np.arange(total_steps)[:, None] * np.array([0.02, 0.01, 0.005, 0.001, 0]))
    losses = trend * (1 + 0.1 * rng.standard_normal((total_steps, runs)))
    batched = ReduceOnPlateau(runs, total_steps)
    factors = [batched.factors]
    factors += [batched.step(row) for row in losses]
    ends = [math.ceil(k * total_steps / 40) for k in range(41)]
    for run in range(runs):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        torch_one = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2, eps=0)
        expected = [1.0]
        for start, end in pairwise(ends):
            expected += [expected[-1]] * (end - start - 1)
            torch_one.step(float(np.add.accumulate(losses[start:end, run])[-1] / (end - start)))
            expected.append(optimizer.param_groups[0]["lr"])
        np.testing.assert_array_equal([row[run] for row in factors], expected)
    assert factors[-1][0] > factors[-1][-1], "the flat loss must have been cut more often"
    assert factors[-1].min() < 0.1


def test_plateau_acts_when_the_loss_stops_falling() -> None:
    plateau = ReduceOnPlateau(1, 40)
    falling = [plateau.step([1.0 / (1 + t)]).item() for t in range(10)]
    flat = [plateau.step(torch.ones(1)).item() for _ in range(6)]
    assert falling == [1.0] * 10
    assert flat == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_plateau_takes_a_broken_loss_for_no_improvement(bad: float) -> None:
    plateau = ReduceOnPlateau(2, 40)
    plateau.step([1.0, 1.0])
    for t in range(3):
        factors = plateau.step([bad, 0.5 / (1 + t)])
    assert factors.tolist() == [0.5, 1.0]


def test_plateau_with_fewer_updates_than_intervals() -> None:
    plateau = ReduceOnPlateau(1, 7)
    assert [plateau.step([1.0]).item() for _ in range(7)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25]


def test_greedy_raises_while_the_loss_improves_and_lowers_while_not() -> None:
    rule = Greedy(2, 60, factor=0.5, bounds=(0.25, 4.0))
    for t in range(4):
        factors = rule.step([1.0 / (1 + t), 1.0])
    assert factors.tolist() == [4.0, 0.25], "bounded"
    assert rule.step([math.nan, 0.5]).tolist() == [2.0, 0.5]


def test_gradient_norm_rule_goes_against_the_norm() -> None:
    rule = GradientNorm(2, 60, factor=0.5, bounds=(1 / 8, 8.0))
    for t in range(3):
        factors = rule.step([1.0, 1.0], np.array([1.0 + t, 1.0 / (1 + t)]))
    assert factors.tolist() == [1 / 8, 2.0], "the first interval has nothing to compare with, and lowers"
    with pytest.raises(ConfigError, match="norms"):
        rule.step([1.0, 1.0])


def test_plateau_refuses_bad_input() -> None:
    with pytest.raises(ConfigError, match="runs is 0"):
        ReduceOnPlateau(0, 10)
    with pytest.raises(ConfigError, match=r"factor is 1.0, but must lie between 0 and 1"):
        ReduceOnPlateau(1, 10, factor=1.0)
    with pytest.raises(ConfigError, match=r"shape \(3,\), but one loss per run is needed: \(2,\)"):
        ReduceOnPlateau(2, 10).step([1.0, 2.0, 3.0])
