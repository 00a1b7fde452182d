"""What any torch scheduler must do, for every optimizer and kind of rate."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ChainedScheduler, ConstantLR, ExponentialLR, LinearLR, LRScheduler, SequentialLR

from rlrate import Controller, LearnedLR
from rlrate.control import ControlSpec

Make = Callable[..., Controller]
MakeSpec = Callable[..., ControlSpec]
Build = Callable[[], Any]
optim = torch.optim
STEPS = 30

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (optim.SGD, {}),
    "nesterov": (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adagrad": (optim.Adagrad, {}),
    "rmsprop": (optim.RMSprop, {}),
    "adam": (optim.Adam, {}),
    "adamw": (optim.AdamW, {}),
    "adam-fused": (optim.Adam, {"fused": True}),
    "adam-tensor": (optim.Adam, {"foreach": False}),
}


@pytest.fixture(params=[f"{name}-{groups}" for name in OPTIMIZERS for groups in (1, 2)])
def build(request: pytest.FixtureRequest, make_loop: Any) -> Build:
    """Makes one training loop again and again: one group, or two of which one has a tensor as its rate."""
    name, _, groups = request.param.rpartition("-")
    make, kwargs = OPTIMIZERS[name]

    def new() -> Any:
        first: Any = torch.tensor(0.01) if name == "adam-tensor" else 0.01
        lr = first if groups == "1" else (first, torch.tensor(0.04))
        return make_loop(make, lr=lr, kwargs=kwargs, groups=int(groups))

    return new


def rates(loop: Any) -> list[float]:
    return [float(group["lr"]) for group in loop.optimizer.param_groups]


def tensors(loop: Any) -> list[Any]:
    return [group["lr"] for group in loop.optimizer.param_groups if isinstance(group["lr"], Tensor)]


def run(loop: Any, scheduler: Any, steps: int) -> list[list[float]]:
    """Steps without a loss, as ``SequentialLR`` and most trainers do."""
    seen = []
    for _ in range(steps):
        loop.backward()
        loop.optimizer.step()
        scheduler.step()
        seen.append(rates(loop))
    return seen


def reloaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# Construction ---------------------------------------------------------------------------------------------


def test_creating_it_leaves_the_rates(build: Build, make_controller: Make) -> None:
    loop = build()
    given, held = rates(loop), tensors(loop)
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    assert isinstance(scheduler, LRScheduler)
    assert rates(loop) == [float(r) for r in scheduler.get_last_lr()] == [float(r) for r in scheduler.base_lrs] == given
    assert (scheduler.last_epoch, scheduler._step_count) == (0, 1)
    assert [float(group["initial_lr"]) for group in loop.optimizer.param_groups] == given
    assert all(a is b for a, b in zip(held, tensors(loop), strict=True))


def test_base_rates_are_copies(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    given = rates(loop)
    for rate in tensors(loop):
        rate.fill_(9.0)
    assert [float(rate) for rate in scheduler.base_lrs] == given
    assert [float(group["initial_lr"]) for group in loop.optimizer.param_groups] == given


def test_it_can_be_printed(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    assert repr(scheduler).startswith("LearnedLR(")
    assert f"total_steps={STEPS}" in repr(scheduler)


# Stepping -------------------------------------------------------------------------------------------------


def test_last_rates_have_the_groups_types_and_are_copies(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    for _ in range(8):
        loop.run(scheduler, 1)
        last = scheduler.get_last_lr()
        assert [type(rate) for rate in last] == [type(group["lr"]) for group in loop.optimizer.param_groups]
        assert [float(rate) for rate in last] == rates(loop)
        for rate in last:
            if isinstance(rate, Tensor):
                rate.fill_(9.0)
        assert 9.0 not in rates(loop)


def test_rates_that_are_tensors_are_filled_in_place(build: Build, make_controller: Make) -> None:
    loop = build()
    held = tensors(loop)
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    assert len({tuple(r) if isinstance(r, list) else r for r in loop.run(scheduler, STEPS)}) > 5
    assert [id(rate) for rate in held] == [id(rate) for rate in tensors(loop)]


def test_groups_keep_their_ratio(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    for row in run(loop, scheduler, STEPS):
        np.testing.assert_allclose(row[-1] / row[0], 4.0 if len(row) == 2 else 1.0, rtol=1e-6)


def test_a_loop_in_the_right_order_warns_of_nothing(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.run(scheduler, STEPS)


def test_the_wrong_order_is_told(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            loss = loop.backward()
            scheduler.step(loss)
            loop.optimizer.step()
    told = [str(warning.message) for warning in caught]
    assert sum("`lr_scheduler.step()` before `optimizer.step()`" in message for message in told) == 1
    assert len(told) == 2


def test_get_lr_outside_of_step_warns(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    loop.run(scheduler, 5)
    with pytest.warns(UserWarning, match="get_last_lr"):
        assert [float(rate) for rate in scheduler.get_lr()] == rates(loop)


def test_an_epoch_may_be_passed_and_says_nothing(build: Build, make_controller: Make) -> None:
    plain, dated = build(), build()
    expected = plain.run(LearnedLR(plain.optimizer, STEPS, make_controller()), STEPS)
    scheduler = LearnedLR(dated.optimizer, STEPS, make_controller())
    for row in expected:
        loss = dated.backward()
        dated.optimizer.step()
        scheduler.step(loss, epoch=3)
        assert rates(dated) == (row if isinstance(row, list) else [row])


def test_a_group_may_be_added(build: Build, make_controller: Make) -> None:
    loop = build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    loop.run(scheduler, 10)
    loop.optimizer.add_param_group({"params": nn.Parameter(torch.ones(3)), "lr": 0.002})
    for row in run(loop, scheduler, STEPS - 10):
        np.testing.assert_allclose(row[-1] / row[0], 0.2, rtol=1e-6)
    assert len(scheduler.get_last_lr()) == len(scheduler.base_lrs) == len(loop.optimizer.param_groups)


def test_a_closure_gives_the_same_run(build: Build, make_controller: Make) -> None:
    plain, closed = build(), build()
    expected = plain.run(LearnedLR(plain.optimizer, STEPS, make_controller()), STEPS)
    scheduler = LearnedLR(closed.optimizer, STEPS, make_controller())
    for row in expected:
        scheduler.step(closed.optimizer.step(closed.backward))
        assert rates(closed) == (row if isinstance(row, list) else [row])


# Oracles --------------------------------------------------------------------------------------------------


def test_an_identity_is_a_constant_rate_exactly(build: Build, make_spec: MakeSpec) -> None:
    ours, theirs = build(), build()
    identity = LearnedLR(ours.optimizer, STEPS, Controller.constant(0.0, make_spec()))
    assert run(ours, identity, STEPS) == run(theirs, ConstantLR(theirs.optimizer, factor=1.0), STEPS)
    assert torch.equal(ours.weights, theirs.weights)


def test_a_fixed_multiplier_is_an_exponential_on_the_cadence(build: Build, make_spec: MakeSpec) -> None:
    spec = make_spec(factor=2.0)
    ours, theirs = build(), build()
    learned = LearnedLR(ours.optimizer, STEPS, Controller.constant(-0.5, spec))
    exponential = ExponentialLR(theirs.optimizer, 2.0**-0.5)
    ends, expected = set(spec.cadence.boundaries(STEPS)[:-1].tolist()), []
    for update in range(1, STEPS + 1):
        theirs.backward()
        theirs.optimizer.step()
        if update in ends:
            exponential.step()
        expected.append(rates(theirs))
    np.testing.assert_allclose(run(ours, learned, STEPS), expected, rtol=1e-6)
    torch.testing.assert_close(ours.weights, theirs.weights)


# Composition ----------------------------------------------------------------------------------------------


def test_a_warm_up_may_come_first(build: Build, make_spec: MakeSpec) -> None:
    loop = build()
    given = np.array(rates(loop))
    warm = LinearLR(loop.optimizer, start_factor=0.1, total_iters=3)
    learned = LearnedLR(loop.optimizer, STEPS, Controller.constant(-0.5, make_spec(factor=4.0)))
    both = SequentialLR(loop.optimizer, [warm, learned], [3])
    seen = np.array([rates(loop), *run(loop, both, STEPS)]) / given
    first = int(learned.controller.spec.cadence.boundaries(STEPS)[0])
    np.testing.assert_allclose(seen[: 4 + first, 0], [0.1, 0.4, 0.7, *[1.0] * first, 0.5], rtol=1e-6)
    np.testing.assert_allclose(seen[:, 0], seen[:, -1], rtol=1e-6)


def test_another_scheduler_may_follow(build: Build, make_controller: Make) -> None:
    loop = build()
    given = rates(loop)
    learned = LearnedLR(loop.optimizer, 20, make_controller())
    after = ConstantLR(loop.optimizer, factor=0.5, total_iters=100)
    both = SequentialLR(loop.optimizer, [learned, after], [20])
    np.testing.assert_allclose(run(loop, both, 25)[-5:], [[0.5 * rate for rate in given]] * 5, rtol=1e-6)
    assert len(learned.report().updates) > 3


def test_alone_in_a_chain_it_is_as_without(build: Build, make_controller: Make) -> None:
    plain, chained = build(), build()
    expected = run(plain, LearnedLR(plain.optimizer, STEPS, make_controller()), STEPS)
    chain = ChainedScheduler([LearnedLR(chained.optimizer, STEPS, make_controller())])
    assert run(chained, chain, STEPS) == expected


# State ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["scheduler", "optimizer"])
def test_a_state_from_a_file_goes_on_bit_equal(build: Build, first: str, make_controller: Make) -> None:
    whole, rest = build(), build()
    uncut = LearnedLR(whole.optimizer, STEPS, make_controller())
    whole.run(uncut, 13)
    state = reloaded({"m": whole.model.state_dict(), "o": whole.optimizer.state_dict(), "s": uncut.state_dict()})
    kept = pickle.dumps(state["s"])
    resumed = LearnedLR(rest.optimizer, STEPS, make_controller())
    rest.model.load_state_dict(state["m"])
    rest.step = 13
    loads = [(resumed, "s"), (rest.optimizer, "o")]
    for target, name in loads if first == "scheduler" else reversed(loads):
        target.load_state_dict(state[name])
    assert rates(rest) == rates(whole)
    assert rest.run(resumed, STEPS - 13) == whole.run(uncut, STEPS - 13)
    assert torch.equal(rest.weights, whole.weights)
    assert pickle.dumps(state["s"]) == kept  # loading changes nothing in the state, nor does going on


def test_loading_the_scheduler_alone_writes_the_rate_in_place(build: Build, make_controller: Make) -> None:
    loop, other = build(), build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    loop.run(scheduler, 13)
    resumed = LearnedLR(other.optimizer, STEPS, make_controller())
    held = tensors(other)
    resumed.load_state_dict(scheduler.state_dict())
    assert rates(other) == rates(loop)
    assert [id(rate) for rate in held] == [id(rate) for rate in tensors(other)]
    assert [float(rate) for rate in resumed.get_last_lr()] == rates(loop)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_goes_on_alike(copied: Callable[[Any], Any], build: Build, make_controller: Make) -> None:
    loop, other = build(), build()
    scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
    loop.run(scheduler, 13)
    kept = rates(loop)
    other.model, other.optimizer, twin = copied((loop.model, loop.optimizer, scheduler))
    other.step = loop.step
    expected = other.run(twin, STEPS - 13)
    assert rates(loop) == kept
    assert loop.run(scheduler, STEPS - 13) == expected


def test_it_is_freed_at_once(build: Build, make_controller: Make) -> None:
    loop = build()
    gc.disable()
    try:
        scheduler = LearnedLR(loop.optimizer, STEPS, make_controller())
        loop.run(scheduler, 8)
        optimizer, alive = weakref.ref(loop.optimizer), weakref.ref(scheduler)
        del scheduler
        assert alive() is None
        del loop.optimizer
        assert optimizer() is None
    finally:
        gc.enable()
