"""When to stop for good: told from what was seen, where it is known how many updates make an epoch.

A network that has begun to learn its examples by heart gets worse at all others while its training loss falls, and no
small change of its rate makes that good. By how much the held-out loss will have risen at the end can be told in part
from what was seen before (experiments/LOG.md, entries 92 and 93). To stop cannot be undone, so what counts is how wrong
it may be: not the mean of what a stop gains is told, but what it gains in all but the worst cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingRegressor
from threadpoolctl import threadpool_limits
from torch import nn

from rlrate.control import ControlSpec
from rlrate.controller import TELLS, Controller, Layers, linear_layers
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.processes import spread
from rlrate.envs.training import INTERMEDIATE_EXAMPLES
from rlrate.errors import ConfigError

__all__ = ["Stopping", "keep_stop", "teach_stop"]

Array = NDArray[np.float64]
#: Called with (draws done, draws in all).
Progress = Callable[[int, int], None]

#: Signals that are added to those of the policy, and those of them of a validation loss.
EPOCHS = (TELLS, "epoch_updates", "epochs_planned", "epochs_done")
VALIDATION = ("validation_known", "validation_gap", "validation_excess")

#: Nats that a stop counts for at most, lost and gained; and the share of the first loss below which nothing counts.
LOST, GAINED, FLOOR = 3.0, 1.0, 3e-3

#: Boosted trees that tell the quantile.
TREES: dict[str, Any] = {"max_iter": 150, "learning_rate": 0.06, "min_samples_leaf": 150, "l2_regularization": 5.0}

#: The network that imitates them: its hidden layers, and what it is taught by: the situations that were seen, and so
#: many others around each, at so many standard deviations.
NET, AROUND, FAR = (64, 64), 2, 0.5

#: Its training: passes, situations in a step, and the size of Adam's steps, falling to zero.
EPOCHS_OF_NET, BATCH, RATE = 20, 1024, 3e-3


@dataclass(frozen=True)
class Stopping:
    """How a controller learns when to stop.

    Attributes:
        draws: Workloads drawn, each with an optimizer and a budget.
        runs: Networks of each, under the policy that was trained.
        quantile: Share of the cases in which a stop may gain less than is told, in (0, 1).
        margin: Nats that a stop must gain, as told, to be advised.
        patience: Decisions in a row at which it must be advised; see :attr:`rlrate.control.Action.patience`.
        validation: Whether it also learns what a validation loss tells beside epochs; one that is shown at every
            decision, every second or every fourth. By that loss alone it stops too early at times, so that its advice
            is heeded where epochs are told, as ever (experiments/LOG.md, entry 94).
        validated_margin: The margin where a validation loss is shown.
        workload: What is drawn; see :class:`rlrate.envs.TrainingConfig`. Empty for what the policy was trained on.
    """

    draws: int = 800
    runs: int = 2
    quantile: float = 0.3
    margin: float = 0.05
    patience: int = 3
    validation: bool = False
    validated_margin: float = 0.1
    workload: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("draws", "runs", "patience"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"stopping.{name} must be a positive integer, got {value!r}")
        if type(self.validation) is not bool:
            raise ConfigError(f"stopping.validation must be true or false, got {self.validation!r}")
        if not 0.0 < self.quantile < 1.0:
            raise ConfigError(f"stopping.quantile must lie in (0, 1), got {self.quantile!r}")
        for name in ("margin", "validated_margin"):
            if not 0.0 <= getattr(self, name) < GAINED:
                raise ConfigError(f"stopping.{name} must lie in [0, {GAINED:g}), got {getattr(self, name)!r}")


def teach_stop(
    controller: Controller,
    settings: Stopping,
    config: TrainingConfig,
    *,
    seed: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> Controller:
    """The same policy, which also knows when to stop.

    Boosted trees tell the quantile of what a stop gains, and a network imitates them: one that is fitted to the runs
    themselves stops too often (experiments/LOG.md, entries 92 and 93).

    Args:
        controller: The policy. What it knew of stopping is left out.
        settings: How much of what.
        config: Where runs are drawn from; its specification is replaced.
        seed: Determines everything.
        workers: Processes; the result does not depend on their number.
        progress: Called after each draw.

    Raises:
        ConfigError: when no run can teach it, since no held-out loss stays positive and finite.
    """
    controller = without_stop(controller)
    spec = _extended(controller.spec, settings)
    config = replace(
        config,
        workload=dict(settings.workload) or config.workload,
        start=spec.action.start or config.start,
        spec=spec,
        reward="heldout",
        withhold_epochs=0.0,
        validation=float(settings.validation),
        siblings=1,
    )
    tasks = [_Task(controller, config, (seed, 11, index), settings.runs) for index in range(settings.draws)]
    seen, gains = [], []
    for done, (observations, gain) in enumerate(spread(_watch, tasks, workers)):
        seen.append(observations)
        gains.append(gain)
        if progress is not None:
            progress(done + 1, len(tasks))
    observations, gain = np.concatenate(seen), np.concatenate(gains)
    least = 2 * TREES["min_samples_leaf"]
    if len(gain) < least:
        raise ConfigError(
            f"stopping: {len(gain)} decisions of {settings.draws} draws can teach when to stop, of which "
            f"{least} are needed (losses that may be negative teach nothing of it); raise "
            "stopping.draws, or leave stopping out"
        )
    layers = _fit(observations.astype(np.float64), gain, settings, spec, controller.activation, seed)
    return replace(controller, spec=spec, stop=layers)


def without_stop(controller: Controller) -> Controller:
    """The policy alone, with the signals that it sees."""
    signals = controller.spec.signals[: controller.layers[0][0].shape[1]]
    action = replace(controller.spec.action, patience=None)
    return replace(controller, spec=replace(controller.spec, signals=signals, action=action), stop=())


def keep_stop(controller: Controller, source: Controller) -> Controller:
    """A policy that stops where ``source`` does, if the policy sees what the policy of that one sees; else as it is."""
    known = without_stop(source).spec
    if not source.stop or controller.spec != known:
        return controller
    return replace(controller, spec=source.spec, stop=source.stop)


def _extended(spec: ControlSpec, settings: Stopping) -> ControlSpec:
    told = EPOCHS + VALIDATION if settings.validation else EPOCHS
    further = tuple(name for name in told if name not in spec.signals)
    return replace(spec, signals=spec.signals + further, action=replace(spec.action, patience=settings.patience))


@dataclass(frozen=True)
class _Task:
    controller: Controller
    config: TrainingConfig
    seed: tuple[int, ...]
    runs: int


def _watch(task: _Task) -> tuple[NDArray[np.float32], Array]:
    """What was seen at the decisions of one draw's runs, and by how much the held-out loss was lower there than last.

    Of shape (decisions, signals) and (decisions,), in nats; none of runs whose losses have no logarithm.
    """
    runs = TrainingRuns.sample(task.config, task.seed, range(task.runs))
    seen, losses = [runs.begin()], [runs.heldout_loss]
    while not runs.done:
        observation, _ = runs.step(task.controller.act(seen[-1]))
        seen.append(observation)
        losses.append(_sample(runs))
    heldout, observations = np.stack(losses), np.stack(seen)
    usable = ~runs.diverged & (np.isfinite(heldout) & (heldout > 0.0)).all(axis=0)
    if runs.draw.workload.signed:
        usable[:] = False
    # Neither the first decision, nor the end: nothing is decided there.
    first, heldout, last = heldout[0, usable], heldout[1:-1, usable], heldout[-1, usable]
    observations, least = observations[1:-1, usable], FLOOR * first
    gain = np.log(np.maximum(last, least)) - np.log(np.maximum(heldout, least))
    return observations.reshape(-1, observations.shape[2]), np.clip(gain, -LOST, GAINED).reshape(-1)


def _sample(runs: TrainingRuns) -> Array:
    """Held-out losses on the same examples at each decision, none of which is shown as validation loss, shape (N,)."""
    if runs.validated.any():
        return np.asarray(runs.population.heldout(INTERMEDIATE_EXAMPLES)[0].double().numpy(), np.float64)
    return runs.last_sample if runs.done else runs.heldout_loss


def _fit(seen: Array, gain: Array, settings: Stopping, spec: ControlSpec, activation: str, seed: int) -> Layers:
    """The network, its inputs as they are observed, its output the gain that is told less the margin."""
    rng = np.random.default_rng([seed, 12])
    views = _as_told(seen, settings, spec)
    taught = [_tell(rows, gain, settings, rng) for rows in views]
    if settings.validation:  # the margin that all have in common comes last
        taught[-1][1][:] -= settings.validated_margin - settings.margin
    situations, told = (np.concatenate(part) for part in zip(*taught, strict=True))
    rows = np.concatenate(views)
    used = np.ptp(rows, axis=0) > 0.0  # what is the same everywhere tells nothing
    mean, deviation = rows[:, used].mean(axis=0), rows[:, used].std(axis=0) + 1e-6
    linear = _imitate((situations[:, used] - mean) / deviation, told, activation, seed)
    with torch.no_grad():
        weight = torch.zeros(NET[0], len(spec.signals), dtype=torch.float64)
        weight[:, torch.from_numpy(used)] = linear[0].weight.double() / torch.from_numpy(deviation)
        first = weight, linear[0].bias.double() - weight[:, torch.from_numpy(used)] @ torch.from_numpy(mean)
        last = linear[-1].weight, linear[-1].bias - settings.margin
    between = [(layer.weight, layer.bias) for layer in linear[1:-1]]
    return linear_layers([first, *between, last])


def _as_told(seen: Array, settings: Stopping, spec: ControlSpec) -> list[Array]:
    """The observations, and before them the same as of runs that are shown no validation loss."""
    if not settings.validation:
        return [seen]
    without = seen.copy()
    without[:, [spec.signals.index(name) for name in VALIDATION]] = 0.0
    return [without, seen]


def _tell(rows: Array, gain: Array, settings: Stopping, rng: np.random.Generator) -> tuple[Array, Array]:
    """Situations like those that were seen, and what boosted trees tell of each: the quantile of what a stop gains."""
    trees = HistGradientBoostingRegressor(loss="quantile", quantile=settings.quantile, random_state=0, **TREES)
    varied = np.ptp(rows, axis=0) > 0.0
    spread = FAR * rows[:, varied].std(axis=0)
    situations = np.concatenate([rows] * (1 + AROUND))
    for around in np.split(situations, 1 + AROUND)[1:]:
        around[:, varied] += spread * rng.standard_normal((len(rows), varied.sum()))
    with threadpool_limits(1):  # threads that wait for each other on a busy machine take many times as long
        trees.fit(rows[:, varied], gain)
        return situations, trees.predict(situations[:, varied])


def _imitate(situations: Array, told: Array, activation: str, seed: int) -> list[nn.Linear]:
    """Linear layers of a network that tells what it is told."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linear = [nn.Linear(a, b) for a, b in pairwise([situations.shape[1], *NET, 1])]
    function = nn.Tanh() if activation == "tanh" else nn.ReLU()
    modules = [module for layer in linear for module in (layer, function)][:-1]
    network = nn.Sequential(*modules)
    inputs, targets = (torch.from_numpy(a.astype(np.float32)) for a in (situations, told))
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    batches = -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, EPOCHS_OF_NET * batches)
    for _ in range(EPOCHS_OF_NET):
        for rows in torch.split(torch.randperm(len(inputs), generator=generator), BATCH):
            loss = nn.functional.mse_loss(network(inputs[rows])[:, 0], targets[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return linear
