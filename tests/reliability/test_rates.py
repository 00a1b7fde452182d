"""The rate is finite and within bounds whatever happens to losses, gradients and weights."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlrate import Controller, LearnedLR

from scoreboard import cases

LOWEST, HIGHEST = 1e-7, 3.0
numbers = st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e38, -1e38, 3e38, 1e-38, 1e-45, 1e-30, 1e19]
) | st.floats(width=32)
gradient = st.none() | st.lists(numbers, min_size=3, max_size=3)
event = st.tuples(st.none() | numbers | st.sampled_from([1e308, 5e-324]), gradient, st.none() | numbers)
OPTIMIZERS: list[Callable[..., torch.optim.Optimizer]] = [
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
]


def run(events: list[Any], make: Callable[..., torch.optim.Optimizer], total: int | None, policy: Controller) -> None:
    parameter = torch.nn.Parameter(torch.tensor([0.5, -2.0, 1.0]))
    optimizer = make([parameter], lr=0.1)
    scheduler = LearnedLR(optimizer, total, policy, min_lr=LOWEST, max_lr=HIGHEST)
    for number, (loss, values, weight) in enumerate(events):
        parameter.grad = None if values is None else torch.tensor(values, dtype=torch.float32)
        if weight is not None:
            with torch.no_grad():
                parameter.fill_(weight)
        optimizer.step()
        scheduler.step(loss)
        rate = optimizer.param_groups[0]["lr"]
        assert math.isfinite(rate) and 0.0 <= rate <= HIGHEST, (number, rate)
        if total is None:  # else the final anneal goes below the lowest rate
            assert rate >= LOWEST, (number, rate)
    report = scheduler.report()
    assert all(math.isfinite(rate) for rate in report.rates)
    assert abs(report.observations).max(initial=0) <= 4.0


def test_the_rate_is_sane(
    make_controller: Callable[..., Controller], record_property: Callable[[str, object], None]
) -> None:
    policies = [make_controller(0), Controller.constant(1.0, make_controller().spec), make_controller(1)]
    tried = 0

    @settings(max_examples=cases(250, 10_000), deadline=None, derandomize=True, database=None)
    @given(
        st.lists(event, max_size=24),
        st.sampled_from(OPTIMIZERS),
        st.sampled_from([None, 1, 4, 24, 25]),
        st.sampled_from(policies),
    )
    def holds(
        events: list[Any], make: Callable[..., torch.optim.Optimizer], total: int | None, policy: Controller
    ) -> None:
        nonlocal tried
        tried += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # missing gradients and budgets are told; not the matter here
            run(events, make, total, policy)

    holds()
    record_property("cases", tried)


def test_losses_that_add_up_to_infinity_pass_in_silence(make_controller: Callable[..., Controller]) -> None:
    """Found by the property above: a block of losses near the largest float made NumPy warn."""
    losses = [0.0] * 4 + [1e308, 1e308] + [0.0] * 4
    run([(loss, [1.0, 1.0, 1.0], None) for loss in losses], torch.optim.SGD, None, make_controller())
