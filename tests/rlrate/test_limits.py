"""Signals that are shown within narrower bounds, and the losses without noise that need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rlrate import Controller, LearnedLR
from rlrate.control import LIMIT, ControlSpec, Interval, Signals
from rlrate.control.spec import read_limits
from rlrate.errors import ConfigError

LIMITS = (("loss_slope", -1.0, 2.0), ("loss_noise", -0.5, 4.0))


def interval(slope: float, noise: float) -> Interval:
    nan, one = np.full(1, np.nan), np.ones(1)
    return Interval(
        *(0.1, 3, 20, one, np.array([noise]), np.array([slope]), np.zeros((0, 7, 1))),
        *(nan, nan, 0.0 * one, 0.0 * one, 0.0 * one, 0.0 * one),
    )


@given(st.floats(allow_nan=True, allow_infinity=True), st.floats(0.0, 1e30))
def test_limits_bound_their_signals_and_no_other(slope: float, noise: float) -> None:
    free, bound = (Signals(limits=limits).observe(interval(slope, noise))[0] for limits in ((), LIMITS))
    for column, name in enumerate(Signals().names):
        low, high = {name: (low, high) for name, low, high in LIMITS}.get(name, (-LIMIT, LIMIT))
        assert bound[column] == np.clip(free[column], np.float32(low), np.float32(high))


def test_a_file_keeps_its_limits(tmp_path: Path) -> None:
    spec = ControlSpec(limits=LIMITS)
    limited, plain = Controller.constant(0.5, spec), Controller.constant(0.5)
    assert Controller.load(limited.save(tmp_path / "c.safetensors")) == limited
    assert limited.identity != plain.identity
    assert ControlSpec.from_dict(spec.to_dict()) == spec
    assert "limits" not in ControlSpec().to_dict(), "files without limits are what they were"


@pytest.mark.parametrize(
    "limits",
    [3, [1, 2], {"loss_slope": 1}, {"loss_slope": [2, 1]}, {"loss_slope": [-5, 1]}, {"loss_slope": [0, float("nan")]},
     {"loss_slope": [True, 2]}, {"loss_slope": ["0", "1"]}, {"loss_slope": [0, 1, 2]}],
)  # fmt: skip
def test_illegal_limits_are_refused(limits: object) -> None:
    with pytest.raises(ConfigError, match=r"each with its lowest and highest value within -4 \.\. 4"):
        read_limits(limits)


def test_limits_of_what_is_not_seen_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown signal of limits 'loss_slope'"):
        Signals(("progress",), limits=LIMITS)


def linear() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    x = torch.randn(256, 8)
    y = x @ torch.randn(8, 1)
    return nn.Linear(8, 1), lambda model: F.mse_loss(model(x), y)


def perceptron() -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    x = torch.randn(256, 8)
    y = (x @ torch.randn(8, 1)).tanh()
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)), lambda model: F.mse_loss(model(x), y)


def fit(
    make: Callable[[], tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]],
    adam: bool,
    *,
    zero: bool = False,
    controller: Controller | str = "default",
) -> float:
    """The last loss beside the first, of 600 updates by all of the data."""
    torch.manual_seed(3)
    model, loss_of = make()
    if zero:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    kind = torch.optim.Adam if adam else partial(torch.optim.SGD, momentum=0.9)
    optimizer = kind(model.parameters())
    scheduler = LearnedLR(optimizer, total_steps=600, controller=controller)
    first = loss_of(model).item()
    for _ in range(600):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)
    return loss_of(model).item() / first


@pytest.mark.parametrize("adam", [True, False], ids=["adam", "momentum"])
@pytest.mark.parametrize("make", [linear, perceptron])
def test_the_default_controller_climbs_where_a_loss_has_no_noise(make: Any, adam: bool) -> None:
    assert fit(make, adam) < 1e-2


@pytest.mark.parametrize(("adam", "share"), [(True, 1e-2), (False, 0.3)], ids=["adam", "momentum"])
def test_a_model_that_starts_at_zero_is_trained(adam: bool, share: float) -> None:
    assert fit(linear, adam, zero=True) < share


def test_without_limits_it_does_not() -> None:
    """What the limits are for: the weights are the same."""
    free = Controller.load("default")
    free = replace(free, spec=replace(free.spec, limits=()))
    assert fit(linear, adam=False, controller=free) > 0.1
