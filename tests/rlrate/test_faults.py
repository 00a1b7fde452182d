"""Faults that are injected into a run: it goes on, the rate stays within bounds, the report tells."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlrate import Controller, LearnedLR

Make = Callable[..., Controller]
STEPS = 60
AT = (0, 3, 20, 21, 22, 40)  # in the probe, in a window of sampling, anywhere


@dataclass
class Step:
    """One update, about to be made; faults change what they like."""

    number: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Any


def gradients(value: Any) -> Callable[[Step], None]:
    """Puts a value into every gradient now and then."""

    def inject(step: Step) -> None:
        for parameter in step.model.parameters():
            if step.number in AT and parameter.grad is not None:
                parameter.grad = value(parameter.grad) if callable(value) else torch.full_like(parameter.grad, value)

    return inject


def losses(value: Any, when: Any = AT) -> Callable[[Step], None]:
    def inject(step: Step) -> None:
        if when == "always" or step.number in when:
            step.loss = value(step.number) if callable(value) else value

    return inject


def one_coordinate(value: float) -> Callable[[Tensor], Tensor]:
    def change(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    return change


def freeze(step: Step) -> None:
    for index, parameter in enumerate(step.model.parameters()):
        parameter.requires_grad_(index > 1)
        if index <= 1:
            parameter.grad = None


def vanish(step: Step) -> None:
    """No parameter has a gradient any more."""
    if step.number >= 30:
        for parameter in step.model.parameters():
            parameter.grad = None


def weights(value: float) -> Callable[[Step], None]:
    def change(step: Step) -> None:
        if step.number == 25:
            with torch.no_grad():
                for parameter in step.model.parameters():
                    parameter.fill_(value)

    return change


def rate(value: float) -> Callable[[Step], None]:
    """Somebody else writes the rate."""

    def change(step: Step) -> None:
        if step.number in AT:
            step.optimizer.param_groups[0]["lr"] = value

    return change


def replaced(step: Step) -> None:
    """The data of a parameter moves elsewhere, as when a model is moved or restored."""
    if step.number == 21:
        for parameter in step.model.parameters():
            parameter.data = parameter.data.clone()


FAULTS: dict[str, Callable[[Step], None]] = {
    "gradient nan": gradients(math.nan),
    "gradient inf": gradients(math.inf),
    "gradient -inf": gradients(-math.inf),
    "gradient one nan": gradients(one_coordinate(math.nan)),
    "gradient one inf": gradients(one_coordinate(math.inf)),
    "gradient zero": gradients(0.0),
    "gradient exploding": gradients(lambda gradient: gradient * 1e20),
    "gradient overflowing squares": gradients(1e30),
    "gradient vanishing": gradients(lambda gradient: gradient * 1e-30),
    "gradient subnormal": gradients(1e-44),
    "gradient of the wrong sign": gradients(lambda gradient: -gradient),
    "gradient none": gradients(lambda _: None),
    "gradient none for ever": vanish,
    "gradient not contiguous": gradients(
        lambda gradient: gradient.t().contiguous().t() if gradient.ndim == 2 else gradient
    ),
    "gradient sparse": gradients(lambda gradient: gradient.to_sparse() if gradient.ndim == 2 else gradient),
    "loss nan": losses(math.nan),
    "loss nan for ever": losses(math.nan, "always"),
    "loss inf": losses(math.inf),
    "loss -inf": losses(-math.inf),
    "loss huge": losses(1e300),
    "loss zero": losses(0.0, "always"),
    "loss zero at times": losses(0.0),
    "loss constant": losses(2.0, "always"),
    "loss negative": losses(lambda step: -1.0 - 0.01 * step, "always"),
    "loss changing sign": losses(lambda step: math.cos(step), "always"),
    "loss tiny": losses(lambda step: 1e-300 / (step + 1), "always"),
    "loss missing at times": losses(None),
    "loss missing": losses(None, "always"),
    "loss integer": losses(lambda step: torch.tensor(100 - step), "always"),
    "loss half": losses(lambda step: torch.tensor(1.0 / (step + 1), dtype=torch.float16), "always"),
    "loss of an empty batch": losses(lambda _: torch.zeros(0, 3).mean()),
    "loss alternating with inf": losses(lambda step: math.inf if step % 2 else 1.0, "always"),
    "weights zero": weights(0.0),
    "weights nan": weights(math.nan),
    "weights huge": weights(1e30),
    "weights moved": replaced,
    "parameters frozen": freeze,
    "rate zero": rate(0.0),
    "rate nan": rate(math.nan),
    "rate huge": rate(1e30),
}


def run(fault: Callable[[Step], None], loop: Any, controller: Controller) -> LearnedLR:
    scheduler = LearnedLR(loop.optimizer, STEPS, controller, min_lr=1e-8, max_lr=10.0)
    for number in range(STEPS):
        loss = loop.backward()
        step = Step(number, loop.model, loop.optimizer, loss)
        fault(step)
        loop.optimizer.step()
        scheduler.step(step.loss)
        (now,) = scheduler.get_last_lr()
        assert 0.0 < now <= 10.0
        assert loop.optimizer.param_groups[0]["lr"] == now
        if number < 0.6 * STEPS:
            assert now >= 1e-8
    return scheduler


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", FAULTS)
def test_no_fault_ends_a_run(name: str, make: Any, make_loop: Any, make_controller: Make) -> None:
    if name == "gradient sparse" and make is torch.optim.Adam:
        make = torch.optim.SGD
    loop = make_loop(make, kwargs={"foreach": False})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        scheduler = run(FAULTS[name], loop, make_controller())
    report = scheduler.report()
    assert np.isfinite(report.observations).all() and np.isfinite(report.rates).all()
    assert np.abs(report.observations).max() <= 4.0
    assert len(report.updates) == 7
    # At decisions, what ruined the loss is told, and if there was none.
    about = " ".join(str(warning.message) for warning in told)
    lost = not loop.model[0].weight.isfinite().all() or name in ("loss nan for ever", "loss alternating with inf")
    if name not in ("loss nan", "loss inf", "loss -inf", "loss of an empty batch"):  # told where a decision follows
        assert ("the loss of update" in about) == lost
    assert ("found no gradients" in about) == (name in ("gradient none", "gradient none for ever"))
    assert ("was told no loss" in about) == (name == "loss missing")
    if name in ("loss nan", "loss inf", "loss -inf", "loss nan for ever", "loss alternating with inf"):
        assert report.cuts > 0
    known = report.observations[:, report.signals.index("loss_known")]
    # A gradient that is not finite ruins the weights, and the loss from then on; the guard says so.
    assert known.all() or report.cuts > 0 or name == "loss missing"


@pytest.mark.parametrize(
    "model",
    [
        nn.ParameterList([nn.Parameter(torch.tensor(1.5))]),
        nn.ParameterList([nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(0))]),
        nn.ParameterList([nn.Parameter(torch.zeros(3, 3))]),
        nn.ParameterList([nn.Parameter(torch.randn(7, dtype=torch.bfloat16))]),
        nn.ParameterList([nn.Parameter(torch.randn(7, dtype=torch.float16)), nn.Parameter(torch.randn(3).double())]),
    ],
    ids=["one number", "an empty parameter", "all zero", "bfloat16", "mixed types"],
)
def test_unusual_networks(model: nn.Module, make_controller: Make) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, foreach=False)
    scheduler = LearnedLR(optimizer, STEPS, make_controller())
    for _ in range(STEPS):
        optimizer.zero_grad()
        parts = [(parameter.float() - 1.0).square().sum() for parameter in model.parameters()]
        loss = torch.stack(parts).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
        assert 0.0 < scheduler.get_last_lr()[0] <= 1e4
    assert np.isfinite(scheduler.report().observations).all()


@pytest.mark.parametrize("shift", [0.0, -5.0, -1e6])
def test_a_loss_may_be_shifted_below_zero_and_its_trend_is_still_seen(
    shift: float, make_loop: Any, make_controller: Make
) -> None:
    """Ratios mean nothing then; differences in units of the loss's noise take their place."""
    loop = make_loop(torch.optim.Adam)
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    rng = np.random.default_rng(0)
    loop.run(scheduler, STEPS, loss=lambda step, _: shift + 4.0 - 0.05 * step + 0.01 * rng.normal())
    report = scheduler.report()
    falling = report.observations[2:, [report.signals.index(name) for name in ("loss_initial", "loss_slope")]]
    assert (falling < 0.0).all()
    assert report.cuts == 0


def test_a_spike_is_cut_and_told(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    loop.run(scheduler, STEPS, loss=lambda step, _: 50.0 if 30 <= step < 36 else 1.0 - 0.001 * step)
    assert scheduler.report().cuts >= 1
    observed = scheduler.report().observations
    assert observed[:, scheduler.report().signals.index("cuts")].sum() >= 1
