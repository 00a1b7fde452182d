"""LearnedLR on several parameter groups, and on rates that are tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from rlrate import Controller, LearnedLR
from rlrate.control import ControlSpec

Make = Callable[..., Controller]
MakeSpec = Callable[..., ControlSpec]
optim = torch.optim


def test_two_groups_keep_their_ratio(kind: dict[str, Any], make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=(0.5, 0.05), groups=2, **kind)
    rates = loop.run(LearnedLR(loop.optimizer, 60, make_controller()), 60)
    for first, second in rates:
        assert first == pytest.approx(10 * second)


def test_two_groups_are_held_exactly_by_an_identity(make_loop: Any, make_spec: MakeSpec) -> None:
    loop = make_loop(lr=(0.07, 0.3), groups=2)
    rates = loop.run(LearnedLR(loop.optimizer, 30, Controller.constant(0.0, make_spec())), 30)
    assert rates == [[0.07, 0.3]] * 30


def test_a_frozen_group_stays_frozen(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=(0.0, 0.3), groups=2)
    before = [parameter.clone() for parameter in loop.model[0].parameters()]
    rates = loop.run(LearnedLR(loop.optimizer, 30, make_controller()), 30)
    assert all(first == 0.0 < second for first, second in rates)
    assert all(map(torch.equal, before, loop.model[0].parameters()))


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam])
def test_a_tensor_rate_is_filled_in_place(make: Any, make_loop: Any, make_controller: Make) -> None:
    floats, tensors = make_loop(make, lr=0.1), make_loop(make, lr=torch.tensor(0.1, dtype=torch.float64))
    rate = tensors.optimizer.param_groups[0]["lr"]
    scheduler = LearnedLR(tensors.optimizer, 60, make_controller())
    expected = floats.run(LearnedLR(floats.optimizer, 60, make_controller()), 60)
    observed = tensors.run(scheduler, 60)
    assert tensors.optimizer.param_groups[0]["lr"] is rate
    np.testing.assert_allclose(observed, expected, rtol=1e-4)
    (last,) = scheduler.get_last_lr()
    assert isinstance(last, torch.Tensor) and last is not rate
    last.fill_(77.0)
    assert float(rate) != 77.0


def test_the_last_rate_is_a_copy_during_the_probe_too(make_loop: Any) -> None:
    loop = make_loop(lr=torch.tensor(0.1))
    scheduler = LearnedLR(loop.optimizer, 60, Controller.constant())
    loop.backward()
    loop.optimizer.step()
    assert scheduler.get_last_lr()[0] is not loop.optimizer.param_groups[0]["lr"]


def test_groups_of_a_float_and_a_tensor_rate(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=(0.1, torch.tensor(0.2)), groups=2)
    rates = loop.run(LearnedLR(loop.optimizer, 40, make_controller()), 40)
    np.testing.assert_allclose([b / a for a, b in rates], 2.0, rtol=1e-5)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_group_added_later_joins_with_the_ratio_it_was_given(
    tensor: bool, make_loop: Any, make_controller: Make
) -> None:
    loop = make_loop(lr=torch.tensor(0.1) if tensor else 0.1)
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    loop.run(scheduler, 20)
    extra = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    loop.optimizer.add_param_group({"params": extra[0], "lr": 0.02})
    loop.optimizer.add_param_group({"params": extra[1]})  # the optimizer's default, 0.1
    rates = loop.run(scheduler, 40)
    for first, second, third in rates:
        assert second == pytest.approx(0.2 * first, rel=1e-5)
        assert third == pytest.approx(first, rel=1e-5)
    assert len(scheduler.get_last_lr()) == len(scheduler.base_lrs) == 3
    assert len(scheduler.report().updates) == 7


def test_no_rate_is_above_ten_thousand_unless_it_is_allowed(make_loop: Any, make_spec: Any) -> None:
    given, allowed = make_loop(lr=1e6), make_loop(lr=1e6)
    controller = Controller.constant(spec=make_spec())  # holds the rate that was given
    assert given.run(LearnedLR(given.optimizer, 30, controller), 1) == pytest.approx([1e4])
    assert allowed.run(LearnedLR(allowed.optimizer, 30, controller, max_lr=1e7), 1) == pytest.approx([1e6])


def test_a_group_that_is_added_with_a_larger_rate_keeps_to_the_bound(make_loop: Any) -> None:
    loop = make_loop(lr=1e-3)
    scheduler = LearnedLR(loop.optimizer, 100, Controller.constant(1.0), max_lr=1e-2)
    loop.run(scheduler, 5)
    loop.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))], "lr": 1.0})
    loop.run(scheduler, 50)
    assert scheduler.get_last_lr() == pytest.approx([1e-2, 1e-2])
