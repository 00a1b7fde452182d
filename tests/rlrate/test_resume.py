"""A run that was cut, copied or pickled goes on as if it had not been."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from rlrate import Controller, LearnedLR, SchedulerError
from rlrate.control import ControlSpec

Make = Callable[..., Controller]
TOTAL = 60
LOOPS: dict[str, dict[str, Any]] = {
    "sgd": {"make": torch.optim.SGD, "kwargs": {"momentum": 0.9}},
    "adam": {"make": torch.optim.Adam},
    "tensor": {"make": torch.optim.Adam, "lr": torch.tensor(0.1)},
    "groups": {"make": torch.optim.AdamW, "lr": (0.1, torch.tensor(0.02)), "groups": 2},
}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def fresh(make_loop: Any, kind: str) -> Any:
    return make_loop(**copy.deepcopy(LOOPS[kind]))


def equal(a: LearnedLR, b: LearnedLR) -> None:
    assert [float(rate) for rate in a.get_last_lr()] == [float(rate) for rate in b.get_last_lr()]
    for name in ("updates", "rates", "observations", "actions"):
        np.testing.assert_array_equal(getattr(a.report(), name), getattr(b.report(), name))
    assert (a.report().cuts, a.report().caps, a.last_epoch) == (b.report().cuts, b.report().caps, b.last_epoch)


@pytest.mark.parametrize("order", ["scheduler first", "optimizer first"])
@pytest.mark.parametrize("kind", LOOPS)
def test_a_cut_run_goes_on_bit_equal(kind: str, order: str, make_loop: Any, make_controller: Make) -> None:
    ends = ControlSpec(cadence=make_controller().spec.cadence).cadence.boundaries(TOTAL)
    whole = fresh(make_loop, kind)
    uncut = LearnedLR(whole.optimizer, TOTAL, make_controller())
    spike: Any = lambda step, loss: float("nan") if step == 25 else loss  # noqa: E731
    saved, rates = {}, []
    cuts = sorted({0, 1, 2, 3, 4, TOTAL - 1, TOTAL, *(int(e) + d for e in ends for d in (-1, 0) if e + d < TOTAL)})
    for step in range(TOTAL + 1):
        if step in cuts:
            saved[step] = through_a_file(
                {"weights": whole.model.state_dict(), "opt": whole.optimizer.state_dict(), "lr": uncut.state_dict()}
            )
        if step < TOTAL:
            rates += whole.run(uncut, 1, spike)
    assert len(saved) >= 12
    for step, state in saved.items():
        loop = fresh(make_loop, kind)
        scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
        loop.model.load_state_dict(state["weights"])
        loop.step = step
        loads = [(scheduler, "lr"), (loop.optimizer, "opt")]
        for target, name in loads if order == "scheduler first" else reversed(loads):
            target.load_state_dict(state[name])
        if step:
            now = [float(group["lr"]) for group in loop.optimizer.param_groups]
            assert (now[0] if len(now) == 1 else now) == rates[step - 1]
        assert loop.run(scheduler, TOTAL - step, spike) == rates[step:]
        assert torch.equal(loop.weights, whole.weights)
        equal(scheduler, uncut)


def test_a_state_saved_between_update_and_step(make_loop: Any, make_controller: Make) -> None:
    for cut in (1, 2, 10, 17):
        whole, rest = make_loop(), make_loop()
        uncut, resumed = (LearnedLR(loop.optimizer, TOTAL, make_controller()) for loop in (whole, rest))
        whole.run(uncut, cut)
        loss = whole.backward()
        whole.optimizer.step()
        state = through_a_file([whole.model.state_dict(), whole.optimizer.state_dict(), uncut.state_dict()])
        for target, part in zip((rest.model, rest.optimizer, resumed), state, strict=True):
            target.load_state_dict(part)
        rest.step = whole.step
        for scheduler in (uncut, resumed):
            scheduler.step(loss)
        assert rest.run(resumed, TOTAL - cut - 1) == whole.run(uncut, TOTAL - cut - 1)
        equal(resumed, uncut)


def test_the_state_is_a_copy_and_is_not_changed_by_loading(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop(lr=torch.tensor(0.1))
    scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
    loop.run(scheduler, 12)
    state = scheduler.state_dict()
    kept = pickle.dumps(state)
    loop.run(scheduler, 20)
    assert pickle.dumps(state) == kept
    scheduler.load_state_dict(state)
    loop.run(scheduler, 20)
    assert pickle.dumps(state) == kept


def test_loading_writes_the_rate_into_the_optimizer(make_loop: Any, make_controller: Make) -> None:
    loop, other = make_loop(), make_loop(lr=123.0)
    scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
    rates = loop.run(scheduler, 20)
    resumed = LearnedLR(other.optimizer, TOTAL, make_controller())
    resumed.load_state_dict(scheduler.state_dict())
    assert other.optimizer.param_groups[0]["lr"] == rates[-1]


def test_with_another_controller_or_budget_or_somebody_elses_state(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    state = LearnedLR(loop.optimizer, TOTAL, make_controller()).state_dict()
    other = LearnedLR(loop.optimizer, TOTAL, make_controller(seed=1))
    with pytest.raises(SchedulerError, match=f"saved with controller {make_controller().identity[:12]}, .* create it"):
        other.load_state_dict(state)
    longer = LearnedLR(loop.optimizer, 2 * TOTAL, make_controller())
    with pytest.raises(SchedulerError, match="saved with total_steps=60, this scheduler has 120; create it"):
        longer.load_state_dict(state)
    foreign = LinearLR(loop.optimizer).state_dict()
    same = LearnedLR(loop.optimizer, TOTAL, make_controller())
    for wrong in (foreign, {}, {**state, "version": 99}):
        with pytest.raises(SchedulerError, match="not the state of a LearnedLR of this version"):
            same.load_state_dict(wrong)
    for wrong in ({**state, "control": {}}, {**state, "decisions": {}}):
        with pytest.raises(SchedulerError, match="does not fit this scheduler"):
            same.load_state_dict(wrong)


def test_the_state_of_another_model_is_refused(make_loop: Any, make_controller: Make) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
    loop.run(scheduler, 1)
    small = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    with pytest.raises(SchedulerError, match="parameters of other shapes"):
        LearnedLR(small, TOTAL, make_controller()).load_state_dict(scheduler.state_dict())


@pytest.mark.parametrize("cut", [1, 2, 10, 33, TOTAL])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_whole_run_goes_on_alike(
    copied: Callable[[Any], Any], cut: int, make_loop: Any, make_controller: Make
) -> None:
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
    loop.run(scheduler, cut)
    loop_kept = loop.optimizer.param_groups[0]["lr"]
    model, optimizer, twin = copied((loop.model, loop.optimizer, scheduler))
    assert twin.optimizer is optimizer
    other = make_loop()
    other.model, other.optimizer, other.step = model, optimizer, loop.step
    rates = other.run(twin, TOTAL - cut)
    assert loop.optimizer.param_groups[0]["lr"] == loop_kept  # the original is untouched by its copy
    assert loop.run(scheduler, TOTAL - cut) == rates
    assert torch.equal(loop.weights, other.weights)
    equal(scheduler, twin)


def test_within_a_sequence_it_is_saved_and_resumed(make_loop: Any, make_controller: Make) -> None:
    def build() -> tuple[Any, Any]:
        loop = make_loop(lr=0.01)
        warm = LinearLR(loop.optimizer, start_factor=0.1, total_iters=5)
        return loop, SequentialLR(loop.optimizer, [warm, LearnedLR(loop.optimizer, 40, make_controller())], [5])

    def run(loop: Any, both: Any, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            loop.backward()
            loop.optimizer.step()
            both.step()
            rates.append(loop.optimizer.param_groups[0]["lr"])
        return rates

    for cut in (2, 5, 6, 7, 20):
        whole, uncut = build()
        run(whole, uncut, cut)
        state = through_a_file([whole.model.state_dict(), whole.optimizer.state_dict(), uncut.state_dict()])
        rest, resumed = build()
        for target, part in zip((rest.model, rest.optimizer, resumed), state, strict=True):
            target.load_state_dict(part)
        rest.step = whole.step
        assert run(rest, resumed, 45 - cut) == run(whole, uncut, 45 - cut)


def test_a_run_with_a_group_that_was_added(make_loop: Any, make_controller: Make) -> None:
    def add(loop: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        extra = torch.nn.Parameter(torch.randn(2, generator=generator))
        loop.optimizer.add_param_group({"params": extra, "lr": 0.02})

    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, TOTAL, make_controller())
    loop.run(scheduler, 10)
    add(loop)
    loop.run(scheduler, 10)
    rest = make_loop()
    resumed = LearnedLR(rest.optimizer, TOTAL, make_controller())
    add(rest)
    rest.model.load_state_dict(loop.model.state_dict())
    rest.optimizer.load_state_dict(loop.optimizer.state_dict())
    resumed.load_state_dict(through_a_file(scheduler.state_dict()))
    rest.step = loop.step
    assert rest.run(resumed, 40) == loop.run(scheduler, 40)
