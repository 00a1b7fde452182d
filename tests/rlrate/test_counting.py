"""One decision for each real update: mixed precision, accumulation, clipping."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlrate import Controller, LearnedLR

Make = Callable[..., Controller]
STEPS = 40
#: Updates whose gradients overflow: the very first, in the probe, in a window of sampling, and before a decision.
OVERFLOWS = (0, 2, 8, 9, 20)


def amp_run(
    make_loop: Any, controller: Controller, *, fused: bool, unscale: bool, overflows: tuple[int, ...] = ()
) -> tuple[LearnedLR, list[float]]:
    """STEPS real updates in mixed precision, and skipped ones before those that ``overflows`` names."""
    loop = make_loop(torch.optim.Adam, kwargs={"fused": fused})
    scheduler = LearnedLR(loop.optimizer, STEPS, controller)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=7)
    rates = []
    for step in range(STEPS):
        for overflow in (True, False) if step in overflows else (False,):
            loss = loop.backward()
            for parameter in loop.model.parameters():
                parameter.grad.mul_(scaler.get_scale())
            scaler.scale(loss)  # tells the scaler that it is in use
            if overflow:
                loop.model[0].weight.grad[0, 0] = math.inf
                loop.step -= 1
            if unscale:
                scaler.unscale_(loop.optimizer)
            scaler.step(loop.optimizer)
            scaler.update()
            scheduler.step(math.inf if overflow else loss)
        rates.append(loop.optimizer.param_groups[0]["lr"])
    return scheduler, rates


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled"])
@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("overflows", [(), OVERFLOWS], ids=["ok", "inf"])
def test_mixed_precision_gives_the_same_run(
    fused: bool, unscale: bool, overflows: tuple[int, ...], make_loop: Any, make_controller: Make
) -> None:
    loop = make_loop(torch.optim.Adam, kwargs={"fused": fused})
    plain = LearnedLR(loop.optimizer, STEPS, make_controller())
    expected = loop.run(plain, STEPS)
    with warnings.catch_warnings():
        # Of skipped updates, only those of optimizers that are not fused cannot be told from forgotten ones.
        warnings.filterwarnings("error" if fused else "ignore")
        scheduler, rates = amp_run(make_loop, make_controller(), fused=fused, unscale=unscale, overflows=overflows)
    np.testing.assert_allclose(rates, expected, rtol=1e-4)
    np.testing.assert_allclose(scheduler.report().observations, plain.report().observations, atol=1e-4)
    assert scheduler.report().updates.tolist() == plain.report().updates.tolist()


def test_on_an_accelerator_skipped_updates_are_taken_back_later(
    make_loop: Any, make_controller: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = amp_run(make_loop, make_controller(), fused=True, unscale=False)
    monkeypatch.setattr("rlrate.watch.at_hand", lambda tensor: False)
    scheduler, rates = amp_run(make_loop, make_controller(), fused=True, unscale=False, overflows=OVERFLOWS)
    assert scheduler.report().updates.tolist() == expected.report().updates.tolist()
    assert all(0.0 < rate < 1.0 for rate in rates)
    assert scheduler.report().cuts == expected.report().cuts
    before = scheduler.state_dict()
    assert before["position"] == before["control"]["updates"] == STEPS


def test_accumulated_gradients_are_one_update(make_loop: Any, make_controller: Make) -> None:
    whole, parts = make_loop(), make_loop()
    expected = whole.run(LearnedLR(whole.optimizer, STEPS, make_controller()), STEPS)
    scheduler = LearnedLR(parts.optimizer, STEPS, make_controller())
    rates = []
    for _ in range(STEPS):
        loss = parts.backward()
        gradients = [p.grad.clone() for p in parts.model.parameters()]
        parts.optimizer.zero_grad()
        for _ in range(4):
            for parameter, gradient in zip(parts.model.parameters(), gradients, strict=True):
                parameter.grad = 0.25 * gradient if parameter.grad is None else parameter.grad + 0.25 * gradient
        parts.optimizer.step()
        scheduler.step(loss)
        rates.append(parts.optimizer.param_groups[0]["lr"])
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_a_scheduler_stepped_for_each_micro_batch_counts_updates(make_loop: Any, make_controller: Make) -> None:
    loop, plain = make_loop(), make_loop()
    expected = plain.run(LearnedLR(plain.optimizer, STEPS, make_controller()), STEPS)
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    rates = []
    with pytest.warns(UserWarning, match="without an optimizer.step") as caught:
        for _ in range(STEPS):
            loss = loop.backward()
            loop.optimizer.step()
            for _ in range(4):
                scheduler.step(loss)
            rates.append(loop.optimizer.param_groups[0]["lr"])
    assert rates == expected
    assert len(caught) == 1


@pytest.mark.parametrize("bound", [1e-3, 1e9])
def test_clipped_gradients_are_seen_clipped(bound: float, make_loop: Any, make_controller: Make) -> None:
    loop, plain = make_loop(), make_loop()
    expected = plain.run(LearnedLR(plain.optimizer, STEPS, make_controller()), STEPS)
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    rates = []
    for _ in range(STEPS):
        loss = loop.backward()
        nn.utils.clip_grad_norm_(loop.model.parameters(), bound)
        loop.optimizer.step()
        scheduler.step(loss)
        rates.append(loop.optimizer.param_groups[0]["lr"])
    report = scheduler.report()
    if bound > 1.0:
        assert rates == expected
    else:  # every norm is the bound
        assert np.abs(report.observations[:, report.signals.index("gradient_initial")]).max() < 1e-3
        assert rates[3] > 100 * expected[3]  # the same small update takes a larger rate
