"""Compiled optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from rlrate import Controller, LearnedLR


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_a_compiled_step_with_a_tensor_rate_is_compiled_once(
    make: Any, make_loop: Any, make_controller: Callable[..., Controller]
) -> None:
    torch._dynamo.reset()
    plain, loop = (make_loop(make, lr=torch.tensor(0.1), kwargs={"foreach": False}) for _ in range(2))
    expected = plain.run(LearnedLR(plain.optimizer, 60, make_controller()), 60)
    scheduler = LearnedLR(loop.optimizer, 60, make_controller())
    counter = CompileCounter()
    step = torch.compile(loop.optimizer.step, backend=counter)
    rates = []
    for _ in range(60):
        loss = loop.backward()
        step()  # type: ignore[no-untyped-call]
        scheduler.step(loss)
        rates.append(float(loop.optimizer.param_groups[0]["lr"]))
    assert counter.frame_count == 1
    assert rates == pytest.approx(expected, rel=1e-4)
    assert len(set(rates)) > 10
    torch._dynamo.reset()
