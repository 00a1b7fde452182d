"""Training runs as ordinary torch loops of one network: for methods that change the optimizer, and as a check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlrate.controller import Controller
from rlrate.envs.plain import PlainRun, plain_run
from rlrate.envs.training import Draw
from rlrate.experiments.recording import Array, Recorder, Tick, Trace, join
from rlrate.experiments.rules import RULES
from rlrate.experiments.runs import norms
from rlrate.experiments.schedules import factor_table
from rlrate.scheduler import LearnedLR

#: Minibatches with which BatchNorm's statistics are measured again, as Schedule-Free's authors advise.
RECALIBRATION = 50


@dataclass(frozen=True)
class SelfTuning:
    """An optimizer that claims to need no tuned learning rate, at the settings its authors recommend.

    Attributes:
        make: ``make(parameters, steps)`` builds it.
        schedule: Open-loop schedule its authors recommend on top; its factors multiply the learning rate.
        averaged: Whether it evaluates at other weights than it trains at (``optimizer.train()`` and ``.eval()``).
    """

    make: Callable[[Iterable[Tensor], int], Optimizer]
    schedule: str = "constant"
    averaged: bool = False


def _schedule_free_adamw(parameters: Iterable[Tensor], steps: int) -> Optimizer:
    from schedulefree import AdamWScheduleFree

    optimizer: Optimizer = AdamWScheduleFree(parameters, warmup_steps=round(0.05 * steps))
    return optimizer


def _schedule_free_sgd(parameters: Iterable[Tensor], steps: int) -> Optimizer:
    from schedulefree import SGDScheduleFree

    optimizer: Optimizer = SGDScheduleFree(parameters, warmup_steps=round(0.05 * steps))
    return optimizer


def _prodigy(parameters: Iterable[Tensor], steps: int) -> Optimizer:
    from prodigyopt import Prodigy

    optimizer: Optimizer = Prodigy(parameters)
    return optimizer


def _d_adaptation_adam(parameters: Iterable[Tensor], steps: int) -> Optimizer:
    from dadaptation import DAdaptAdam

    optimizer: Optimizer = DAdaptAdam(parameters)
    return optimizer


def _d_adaptation_sgd(parameters: Iterable[Tensor], steps: int) -> Optimizer:
    from dadaptation import DAdaptSGD

    optimizer: Optimizer = DAdaptSGD(parameters, momentum=0.9)
    return optimizer


def _lookahead(parameters: Iterable[Tensor], steps: int) -> Optimizer:
    from pytorch_optimizer import Lookahead

    optimizer: Optimizer = Lookahead(torch.optim.Adam(parameters))
    return optimizer


SELF_TUNING: dict[str, SelfTuning] = {
    "schedule-free-adamw": SelfTuning(_schedule_free_adamw, averaged=True),
    "schedule-free-sgd": SelfTuning(_schedule_free_sgd, averaged=True),
    "prodigy": SelfTuning(_prodigy, "cosine"),
    "d-adaptation-adam": SelfTuning(_d_adaptation_adam, "cosine"),
    "d-adaptation-sgd": SelfTuning(_d_adaptation_sgd, "cosine"),
    "lookahead-adam": SelfTuning(_lookahead),
}


def loop_self_tuning(draw: Draw, seeds: Sequence[int], name: str, tick: Tick | None = None) -> Trace:
    """Trains one network for each seed with an optimizer of :data:`SELF_TUNING`."""
    return join([_self_tuning(draw, seed, SELF_TUNING[name], tick) for seed in seeds])


def loop_schedule(
    draw: Draw, seed: int, name: str, peak: float, tick: Tick | None = None, dtype: torch.dtype = torch.float32
) -> Trace:
    """What :func:`rlrate.experiments.runs.run_schedules` does for one run, as an ordinary loop."""
    run = plain_run(draw.workload, draw.optimizer, seed, dtype)
    rule = RULES[name](1, draw.steps) if name in RULES else None
    table = None if rule is not None else factor_table(name, draw.steps)
    parameters = [p for p in run.model.parameters() if p.requires_grad]
    recorder = Recorder(draw.steps, 1, lambda: heldout(run))
    for update in range(draw.steps):
        rate = peak * float(rule.factors[0] if rule is not None else table[update])  # type: ignore[index]
        loss = run.step(rate)
        values = np.array([float(loss)])
        if rule is not None:
            rule.step(values, norms([p.grad[None] for p in parameters if p.grad is not None]))
        recorder.add(values, np.array([rate]))
        if tick is not None:
            tick(1)
    return recorder.trace()


def loop_learned(
    draw: Draw,
    seed: int,
    controller: Controller,
    given: float,
    tick: Tick | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trace:
    """An ordinary loop with :class:`rlrate.LearnedLR`, as a user writes it, given the learning rate ``given``."""
    run = plain_run(draw.workload, draw.optimizer, seed, dtype)
    run.optimizer.param_groups[0]["lr"] = given
    scheduler = LearnedLR(
        run.optimizer, total_steps=draw.steps, controller=controller, steps_per_epoch=draw.workload.epoch
    )
    recorder = Recorder(draw.steps, 1, lambda: heldout(run))
    for _ in range(draw.steps):
        rate = run.optimizer.param_groups[0]["lr"]
        loss = run.backward()
        run.optimizer.step()
        scheduler.step(loss)
        recorder.add(np.array([float(loss)]), np.array([rate]))
        if tick is not None:
            tick(1)
    return recorder.trace()


def heldout(run: PlainRun) -> tuple[Tensor, Tensor]:
    """Held-out loss and accuracy of a loop's network, each of shape (1,); the network is left in training mode."""
    inputs, targets = run.workload.heldout
    dtype = next(run.model.parameters()).dtype
    inputs, targets = (v.to(dtype) if v.is_floating_point() else v for v in (inputs, targets))
    run.model.eval()
    with torch.no_grad():
        output = run.model(inputs)
        loss = run.workload.loss(output, targets)
        accuracy = (output.argmax(1) == targets).double().mean() if run.workload.accuracy else torch.tensor(torch.nan)
    run.model.train()
    return loss.reshape(1), accuracy.reshape(1)


def _self_tuning(draw: Draw, seed: int, method: SelfTuning, tick: Tick | None) -> Trace:
    run = plain_run(draw.workload, draw.optimizer, seed)
    optimizer = method.make([p for p in run.model.parameters() if p.requires_grad], draw.steps)
    run.optimizer = optimizer
    base = float(optimizer.param_groups[0]["lr"])
    table = factor_table(method.schedule, draw.steps)

    def evaluate() -> tuple[Tensor, Tensor]:
        if not method.averaged:
            return heldout(run)
        optimizer.eval()  # type: ignore[attr-defined]
        kept = {name: value.clone() for name, value in run.model.named_buffers()}
        _recalibrate(run)
        result = heldout(run)
        for name, value in run.model.named_buffers():
            value.copy_(kept[name])
        optimizer.train()  # type: ignore[attr-defined]
        return result

    recorder = Recorder(draw.steps, 1, evaluate, heldout=True)
    if method.averaged:
        optimizer.train()  # type: ignore[attr-defined]
    for update in range(draw.steps):
        loss = run.step(base * float(table[update]))
        recorder.add(np.array([float(loss)]), _effective_rate(optimizer))
        if tick is not None:
            tick(1)
    return recorder.trace()


def _effective_rate(optimizer: Optimizer) -> Array:
    """What multiplies the direction of the last update, where the optimizer tells."""
    group = optimizer.param_groups[0]
    return np.array([float(group.get("scheduled_lr", group["lr"])) * float(group.get("d", 1.0))])


def _recalibrate(run: PlainRun) -> None:
    """Measures BatchNorm's running statistics at the weights to be evaluated."""
    norm_layers = [m for m in run.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norm_layers:
        return
    size = run.workload.batch_size
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for index in range(RECALIBRATION):
            first = index * size % max(len(run.inputs) - size + 1, 1)
            run.model(run.inputs[first : first + size])
