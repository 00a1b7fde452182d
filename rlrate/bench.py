"""What the scheduler costs: time beside CosineAnnealingLR, and memory beside the model."""

from __future__ import annotations

import time
import tracemalloc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rlrate.control.control import WINDOW
from rlrate.controller import Controller
from rlrate.scheduler import LearnedLR

__all__ = ["MODELS", "extra_memory", "scheduler_benchmark", "time_ratio"]

BATCH = 128


@dataclass(frozen=True)
class Model:
    """An MLP, and which part of a run of it is measured.

    Attributes:
        widths: Units of each layer, from inputs to classes.
        budget: Updates of the run.
        updates: Updates that are measured, from the first one on: decisions are densest there.
        repeats: How often.
    """

    widths: tuple[int, ...]
    budget: int
    updates: int
    repeats: int


#: MLPs of about 10 thousand, 1 million and 20 million parameters.
MODELS = {
    "mlp_10k": Model((64, 128, 10), 10_000, 10_000, 5),
    "mlp_1m": Model((256, 880, 880, 10), 10_000, 120, 5),
    "mlp_20m": Model((1024, 3980, 3980, 10), 10_000, 20, 3),
}


def scheduler_benchmark(names: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures :data:`MODELS`, with a controller that holds the rate through a network of the usual size.

    Returns:
        The number of threads and, for each model, ``parameters``, ``plain_ms`` (a training step with
        CosineAnnealingLR), ``ratio`` (that with LearnedLR beside it, over the whole run), ``ratio_at_the_start`` (over
        the measured updates, where decisions are densest), and for the largest model ``memory_mib``.
    """
    report: dict[str, Any] = {"threads": torch.get_num_threads(), "batch": BATCH}
    chosen = list(MODELS if names is None else names)
    for name in chosen:
        report[name] = time_ratio(MODELS[name])
    report[chosen[-1]]["memory_mib"] = extra_memory(MODELS[chosen[-1]]) / 2**20
    return report


def time_ratio(model: Model) -> dict[str, Any]:
    """Time of a training step with LearnedLR beside that of the same loop with CosineAnnealingLR.

    The loops take turns, update by update, and the whole is repeated; the time of each update is its median over the
    repeats, so that rare but dear updates count and disturbances do not.
    """
    times: tuple[list[list[float]], list[list[float]]] = ([], [])
    parameters = 0
    for repeat in range(model.repeats + 1):
        loops = [_loop(model, learned) for learned in (False, True)]
        parameters = sum(p.numel() for p in loops[0].parameters)
        rows: tuple[list[float], list[float]] = ([], [])
        warm_up = repeat == 0
        for update in range(min(model.updates, 20) if warm_up else model.updates):
            for which in (0, 1) if update % 2 else (1, 0):
                start = time.perf_counter()
                loops[which].step()
                rows[which].append(time.perf_counter() - start)
        if not warm_up:
            times[0].append(rows[0])
            times[1].append(rows[1])
    plain, learned = (np.median(np.array(rows), axis=0) for rows in times)
    # Measured updates stand for all of their kind in the run.
    kinds = _kinds(model.budget)
    share = np.bincount(kinds, minlength=3) / model.budget
    measured = kinds[: model.updates]
    whole = [sum(share[k] * times[measured == k].mean() for k in np.unique(measured)) for times in (plain, learned)]
    return {
        "parameters": parameters,
        "budget": model.budget,
        "updates": model.updates,
        "plain_ms": 1e3 * float(whole[0]),
        "learned_ms": 1e3 * float(whole[1]),
        "ratio": float(whole[1] / whole[0]),
        "ratio_at_the_start": float(learned.sum() / plain.sum()),
    }


def _kinds(budget: int) -> NDArray[np.int64]:
    """For each update of a run: 2 when a decision follows it, 1 when its gradient is sampled otherwise, 0 else."""
    spec = Controller.load("default").spec
    kinds = np.zeros(budget, np.int64)
    kinds[: spec.cadence.probe] = 1
    for end in spec.cadence.boundaries(budget):
        kinds[max(end - WINDOW, 0) : end] = 1
        kinds[end - 1] = 2
    return kinds


def extra_memory(model: Model) -> int:
    """Most bytes that the scheduler's hooks and steps hold at a time, beside the model, over its densest decisions."""
    loop = _loop(model, True)
    scheduler = loop.scheduler
    for parameter in loop.parameters:
        parameter.grad = torch.full_like(parameter, 1e-3)
    tracemalloc.start()
    try:
        with torch.no_grad(), _Allocations() as tensors:
            for _ in range(20):
                scheduler.optimizer._opt_called = True
                scheduler._before_update()
                scheduler._after_update()
                scheduler.step(0.5)
        host: int
        _, host = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return int(tensors.peak + host)


@dataclass
class _Loop:
    parameters: list[Tensor]
    data: tuple[Tensor, Tensor]
    loss: Callable[[], Tensor]
    step: Callable[[], None]
    scheduler: Any


def _loop(model: Model, learned: bool) -> _Loop:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(model.widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        network = nn.Sequential(*layers[:-1])
        data = torch.randn(BATCH, model.widths[0]), torch.randint(0, model.widths[-1], (BATCH,))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    scheduler: Any
    if learned:
        scheduler = LearnedLR(optimizer, model.budget, _holding())
    else:
        scheduler = CosineAnnealingLR(optimizer, model.budget)

    def loss() -> Tensor:
        return nn.functional.cross_entropy(network(data[0]), data[1])

    def step() -> None:
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(value) if learned else scheduler.step()

    return _Loop(list(network.parameters()), data, loss, step, scheduler)


def _holding() -> Controller:
    """Two hidden layers of 64 units, as PPO trains them, an answer of 0, and the rules of the default controller."""
    spec = Controller.load("default").spec
    sizes = [len(spec.signals), 64, 64, 1]
    return Controller(tuple((torch.zeros(b, a), torch.zeros(b)) for a, b in pairwise(sizes)), spec)


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make, as long as a tensor of them lives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._users: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {_storage(tensor) for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and (_storage(tensor) in self._users or _storage(tensor) not in known):
                self._watch(tensor)
        return result

    def _watch(self, tensor: Tensor) -> None:
        storage, size = _storage(tensor), tensor.untyped_storage().nbytes()
        if storage not in self._users:
            self._now += size
            self.peak = max(self.peak, self._now)
        self._users[storage] = self._users.get(storage, 0) + 1
        weakref.finalize(tensor, self._forget, storage, size)

    def _forget(self, storage: int, size: int) -> None:
        self._users[storage] -= 1
        if self._users[storage] == 0:
            del self._users[storage]
            self._now -= size


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
