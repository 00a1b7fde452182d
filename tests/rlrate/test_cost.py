"""What the scheduler costs: operations, synchronisations, memory and time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from rlrate import Controller, LearnedLR
from rlrate.bench import MODELS, Model, extra_memory
from rlrate.control import Action, ControlSpec
from rlrate.control.control import WINDOW

Make = Callable[..., Controller]
THERE = torch.device("meta")  # any that is not the CPU


class Elsewhere(Tensor):
    """A tensor that claims to be on an accelerator; its values are on the CPU."""

    values_here: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=THERE
        )
        made.values_here = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError("used outside of Accelerator")


class Accelerator(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs what is asked of the pretended device on the CPU, and counts when the host must wait for it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = 0
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        device = kwargs.get("device")
        found = False

        def inner(tensor: Elsewhere) -> Tensor:
            nonlocal found
            found = True
            return tensor.values_here

        plain = tree_map_only(Elsewhere, inner, (args, kwargs))
        self.operations += 1
        to_host = device is not None and torch.device(device).type == "cpu"
        waits = to_host and not kwargs.get("non_blocking")
        # Besides .item(): a copy to the host, and an index that is chosen by values.
        if found and (waits or func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal")):
            self.waits += 1
        there = (found and not to_host) or (device is not None and torch.device(device).type == "meta")
        if device is not None:
            plain[1]["device"] = torch.device("cpu")
        result = func(*plain[0], **plain[1])
        if func._schema.name.endswith("_"):
            return args[0]
        return tree_map_only(Tensor, Elsewhere, result) if there else result


def device_run(
    controller: Controller,
    steps: int,
    *,
    scaler: bool,
    tensor_lr: bool,
    bad: int = -1,
    factor: float = math.nan,
    made: int | None = None,
) -> tuple[list[int], LearnedLR]:
    """How often the host waited at each update of a run whose weights and losses are on an accelerator.

    Of ``steps`` updates ``made`` are made, by default all.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 8, generator=generator)
    waits = []
    with torch.no_grad(), Accelerator() as device:
        weight = nn.Parameter(Elsewhere(start.clone()))
        lr: Any = Elsewhere(torch.tensor(0.1)) if tensor_lr else 0.1
        optimizer = torch.optim.SGD([weight], lr=lr, foreach=False)
        scheduler = LearnedLR(optimizer, steps, controller)
        for step in range(steps if made is None else made):
            weight.grad = weight + 0.1 * Elsewhere(torch.randn(50, 8, generator=generator))
            loss = weight.square().mean() * (factor if step == bad else 1.0)
            if scaler:  # as GradScaler does with a fused optimizer
                optimizer.found_inf = Elsewhere(torch.zeros(()))  # type: ignore[attr-defined]
            before = device.waits
            scheduler._before_update()
            weight.sub_(0.1 * weight.grad)
            scheduler._after_update()
            optimizer._opt_called = True  # type: ignore[attr-defined]
            scheduler.step(loss)
            waits.append(device.waits - before)
    return waits, scheduler


@pytest.mark.parametrize("scaler", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_an_accelerator_is_waited_for_at_decisions_only(scaler: bool, tensor_lr: bool, make_controller: Make) -> None:
    spec = ControlSpec()
    waits, scheduler = device_run(make_controller(spec), 400, scaler=scaler, tensor_lr=tensor_lr)
    ends = [int(end) - 1 for end in spec.cadence.boundaries(400)]
    allowed = {0, 1, 2, *ends}
    assert {update for update, count in enumerate(waits) if count} <= allowed
    assert all(waits[end] for end in ends)
    assert len(scheduler.report().updates) == len(ends) - 1


def test_on_an_accelerator_the_guard_cuts_soon(make_controller: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, scheduler = device_run(
        make_controller(ControlSpec()), 4000, scaler=False, tensor_lr=False, bad=1595, made=1645
    )
    assert scheduler.report().cuts == 1
    assert not any(waits[1585:1625])


def test_on_an_accelerator_a_loss_raises_an_alarm_when_it_arrives(make_controller: Make) -> None:
    cuts = {}
    for alarm in (None, 10.0):
        spec = ControlSpec(action=Action(alarm=alarm))
        run = {"scaler": False, "tensor_lr": False, "bad": 1597, "factor": 1e6, "made": 1645}
        waits, scheduler = device_run(make_controller(spec), 4000, **run)  # type: ignore[arg-type]
        assert not any(waits[1585:1625])
        cuts[alarm] = scheduler.report().cuts
    assert cuts == {None: 1, 10.0: 2}  # for the block, and for the loss


def test_between_decisions_nothing_is_computed_with_tensors(make_loop: Any, make_controller: Make) -> None:
    controller = make_controller(ControlSpec())
    ends = controller.spec.cadence.boundaries(1000)
    loop = make_loop()
    scheduler = LearnedLR(loop.optimizer, 1000, controller)
    for update in range(400):
        loss = loop.backward().item()
        loop.optimizer._opt_called = True
        with Accelerator() as counter:
            scheduler._before_update()
            scheduler._after_update()
            scheduler.step(loss)
        if not (update < 3 or np.isin(update + np.arange(1, WINDOW + 1), ends).any()):
            assert counter.operations == 0, update


@pytest.mark.parametrize("shape", [(1000, 300), (300, 1000)])
def test_memory_does_not_grow_with_the_model(shape: tuple[int, int]) -> None:
    assert extra_memory(Model((shape[0], shape[1], 10), 1000, 1, 1)) < 2**20 / 2


def test_weights_of_any_layout_are_not_copied(make_controller: Make) -> None:
    plain, turned = torch.randn(600, 500), torch.empty(500, 600).t()
    rates = []
    for weight in (plain, turned.copy_(plain)):
        parameter = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        scheduler = LearnedLR(optimizer, 60, make_controller())
        for _ in range(60):
            parameter.grad = parameter.detach() * 0.5
            optimizer.step()
            scheduler.step(float(parameter.detach().square().mean()))
        rates.append(scheduler.report().rates)
    np.testing.assert_allclose(rates[0], rates[1], rtol=1e-3)  # probes are rounded in another order


def test_the_benchmark_covers_three_sizes() -> None:
    sizes = [sum(a * b + b for a, b in zip(m.widths, m.widths[1:], strict=False)) for m in MODELS.values()]
    assert np.allclose(np.log10(sizes), [4.0, 6.0, math.log10(2e7)], atol=0.02)


def test_the_command_prints_the_figures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rlrate.cli import main

    small = {name: Model((8, 8, 2), 400, 30, 1) for name in MODELS}
    monkeypatch.setattr("rlrate.bench.MODELS", small)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "scheduler", "--json"])
    assert not stop.value.code
    figures = json.loads(capsys.readouterr().out)
    assert {"ratio", "plain_ms", "parameters"} <= figures["mlp_10k"].keys()
    assert figures["mlp_20m"]["memory_mib"] < 2
