"""A first policy by imitation: for each drawn workload the best of many open-loop schedules, found by trying them all.

What the teacher knows (which schedule is best here) the policy cannot see, so it learns what is best to do on average
given what it sees. States are those that the teacher meets when it is disturbed, then those that the policy itself
meets (DAgger; Ross, Gordon & Bagnell, 2011). Reinforcement learning goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rlrate.control import ControlSpec
from rlrate.controller import Controller, linear_layers
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.processes import spread
from rlrate.envs.training import Draw, sample_draw
from rlrate.errors import ConfigError

Array = NDArray[np.float64]
Samples = tuple[NDArray[np.float32], NDArray[np.float32]]
#: Peak and shape.
Schedule = tuple[float, str]
#: Called with (draws done, draws in all).
Progress = Callable[[int, int], None]

#: Peaks that the teacher tries, as the relative update size that such a rate would have had at the start.
PEAKS = np.logspace(-2.5, 1.0, 8)

#: What the rate does between its rise to the peak, as fast as actions allow, and the final anneal.
SHAPES = ("hold", "cosine")

#: Seeds on which the teacher tries each schedule.
TRIALS = 2

#: Behaviour in the first round: the teacher's action plus a disturbance that lasts for some decisions.
DISTURBANCE, MEMORY = 0.5, 0.8


@dataclass(frozen=True)
class Imitation:
    """How a policy imitates.

    Attributes:
        draws: Workloads drawn.
        runs: Networks whose decisions are imitated, for each draw in each round.
        rounds: 1 imitates on disturbed runs of the teacher; each further round adds runs of the policy so far.
        epochs: Passes over the decisions of all rounds so far.
        learning_rate: Of Adam, falling linearly to zero.
        batch_size: Decisions in a minibatch.
    """

    draws: int = 96
    runs: int = 12
    rounds: int = 2
    epochs: int = 30
    learning_rate: float = 1e-3
    batch_size: int = 1024

    def __post_init__(self) -> None:
        for name in ("draws", "runs", "rounds", "epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"imitation.{name} must be a positive integer, got {value!r}")
        if not self.learning_rate > 0:
            raise ConfigError(f"imitation.learning_rate must be positive, got {self.learning_rate!r}")


def imitate(
    settings: Imitation,
    config: TrainingConfig,
    *,
    net: Sequence[int],
    activation: str,
    seed: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> Controller:
    """A controller that does what the best open-loop schedules do.

    Args:
        settings: How much of what.
        config: Where workloads are drawn from, and the specification of the control; its actions are continuous.
        net: Widths of the policy's hidden layers.
        activation: "tanh" or "relu".
        seed: Determines everything.
        workers: Processes; the result does not depend on their number.
        progress: Called after each draw.
    """
    if config.spec.action.multipliers is not None:
        raise ConfigError('imitation needs continuous actions; leave out imitation, or set action to "continuous"')
    controller: Controller | None = None
    parts: list[Samples] = []
    best: list[Schedule | None] = [None] * settings.draws
    for number in range(settings.rounds):
        tasks = [
            _Task(config, (seed, 7, index), number, settings.runs, controller, best[index])
            for index in range(settings.draws)
        ]
        for index, (schedule, samples) in enumerate(spread(_demonstrate, tasks, workers)):
            best[index] = schedule
            parts.append(samples)
            if progress is not None:
                progress(len(parts), settings.rounds * settings.draws)
        controller = _fit(parts, settings, config.spec, net, activation, seed)
    assert controller is not None
    return controller


@dataclass(frozen=True)
class _Task:
    config: TrainingConfig
    seed: tuple[int, ...]
    round: int
    runs: int
    controller: Controller | None
    best: Schedule | None


def _demonstrate(task: _Task) -> tuple[Schedule, Samples]:
    """The best schedule of one draw, and observations and the teacher's actions in ``task.runs`` runs."""
    rng = np.random.default_rng([*task.seed, 2, task.round])
    draw = sample_draw(task.config, task.seed)
    best = task.best or _teacher(task.config, draw, [int(s) for s in rng.integers(2**31, size=TRIALS)])
    peak, shape = best
    low, high = _pair(task.config.start)
    starts = np.exp(rng.uniform(math.log(low), math.log(high), task.runs))
    seeds = [int(s) for s in rng.integers(2**31, size=task.runs)]
    runs = TrainingRuns(task.config, draw, seeds, start=starts)
    observation = runs.begin()
    levels = _levels(runs, starts, np.full(task.runs, peak))
    drift = np.zeros(task.runs)
    observations, labels = [], []
    while not runs.done:
        action = _action(runs, levels, [shape] * task.runs)
        observations.append(observation)
        labels.append(action.astype(np.float32))
        if task.controller is None:
            drift = MEMORY * drift + math.sqrt(1 - MEMORY**2) * DISTURBANCE * rng.standard_normal(task.runs)
            action = action + drift
        else:
            action = task.controller.act(observation)
        observation, _ = runs.step(np.clip(action, -1.0, 1.0))
    return best, (np.concatenate(observations), np.concatenate(labels))


def _teacher(config: TrainingConfig, draw: Draw, seeds: Sequence[int]) -> Schedule:
    """The best peak and shape, by the final held-out loss on ``seeds``."""
    tried = [(peak, shape, seed) for peak in PEAKS for shape in SHAPES for seed in seeds]
    peaks, shapes = np.array([t[0] for t in tried]), [t[1] for t in tried]
    starts = np.full(len(tried), math.sqrt(math.prod(_pair(config.start))))
    runs = TrainingRuns(config, draw, [t[2] for t in tried], start=starts)
    runs.begin()
    levels = _levels(runs, starts, peaks)
    while not runs.done:
        runs.step(_action(runs, levels, shapes))
    loss, score = runs.heldout_loss, runs.improvement
    if (loss[~runs.diverged] > 0).all() and not draw.workload.signed:
        with np.errstate(all="ignore"):  # the improvement has a floor, the loss none
            score = -np.log(loss)
    score = np.where(runs.diverged | ~np.isfinite(score), -1e9, score)
    best = int(score.reshape(-1, len(seeds)).mean(axis=1).argmax()) * len(seeds)
    return float(peaks[best]), shapes[best]


def _levels(runs: TrainingRuns, starts: Array, peaks: Array) -> Array:
    """Log rate of each run at its peak, from the rate at which an update had the size ``starts``."""
    return runs.control.log_start - np.log(starts) + np.log(peaks)


def _action(runs: TrainingRuns, levels: Array, shapes: Sequence[str]) -> Array:
    """What brings each run as far as one decision can towards where its schedule stands now."""
    spec = runs.config.spec.action
    progress = runs.control.updates / runs.draw.steps
    falls = {
        "hold": 0.0,
        # The rules multiply by the final anneal themselves.
        "cosine": math.log(max(0.5 + 0.5 * math.cos(math.pi * progress), 1e-3) / max(spec.envelope(progress), 1e-3)),
    }
    target = levels + np.array([falls[shape] for shape in shapes])
    action: Array = np.clip((target - runs.control.log_rate) / math.log(spec.factor), -1.0, 1.0)
    return action


def _fit(
    parts: Sequence[Samples], settings: Imitation, spec: ControlSpec, net: Sequence[int], activation: str, seed: int
) -> Controller:
    """The network with the least squared error of the action."""
    inputs = torch.from_numpy(np.concatenate([part[0] for part in parts]))
    labels = torch.from_numpy(np.concatenate([part[1] for part in parts])).unsqueeze(1)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = [inputs.shape[1], *net]
        hidden = [nn.Linear(a, b) for a, b in pairwise(widths)]
        linear = [*hidden, nn.Linear(widths[-1], 1)]
    function = nn.Tanh() if activation == "tanh" else nn.ReLU()
    modules = [module for layer in hidden for module in (layer, function)]
    policy = nn.Sequential(*modules, linear[-1])
    optimizer = torch.optim.Adam(policy.parameters(), settings.learning_rate)
    batches = -(-len(inputs) // settings.batch_size)
    steps = settings.epochs * batches
    for epoch in range(settings.epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for number, index in enumerate(torch.split(order, settings.batch_size)):
            done = (epoch * batches + number) / steps
            optimizer.param_groups[0]["lr"] = settings.learning_rate * (1.0 - done)
            loss = nn.functional.mse_loss(policy(inputs[index]), labels[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    layers = linear_layers([(layer.weight, layer.bias) for layer in linear])
    return Controller(layers, spec, activation, "clip", {"kind": "imitation"})


def _pair(value: float | tuple[float, float]) -> tuple[float, float]:
    return value if isinstance(value, tuple) else (value, value)
