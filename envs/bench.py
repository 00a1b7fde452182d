"""How much faster a population is than training its networks one after another."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from rlrate.envs.env import TrainingVectorEnv
from rlrate.envs.optimizers import OptimizerSpec, make_optimizer
from rlrate.envs.population import Population
from rlrate.envs.training import TrainingConfig
from rlrate.envs.workload import Workload

__all__ = ["BENCHMARKS", "BUDGETS", "environment_benchmark", "environment_overhead", "population_throughput"]

#: Training examples of every benchmark, and examples per minibatch.
EXAMPLES, BATCH = 1500, 32


def _mlp(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 10))


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


#: Name -> (module, shape of an example, population sizes).
BENCHMARKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], tuple[int, ...]]] = {
    "mlp_64_64_10": (lambda: _mlp(64), (64,), (16, 64, 256)),
    "mlp_784_64_10": (lambda: _mlp(784), (784,), (16, 32, 64)),
    "cnn": (_cnn, (1, 8, 8), (16, 64)),
}


def population_throughput(
    names: Sequence[str] | None = None, *, repeats: int = 7, seconds: float = 0.25
) -> dict[str, Any]:
    """Measure network updates per second of populations and of a plain torch loop, with Adam.

    The plain loop is an ordinary module and ``torch.optim.Adam`` with its default settings:
    minibatch by index, ``zero_grad``, ``backward``, ``step``. Both draw their batches from
    shuffled epochs. Short measurements of all contenders alternate, so that each sees the same
    state of the machine; ratios are medians over the rounds of the ratio within a round.

    Args:
        names: Keys of `BENCHMARKS`; None for all.
        repeats: Rounds.
        seconds: Length of one measurement.

    Returns:
        The number of threads and, by benchmark: ``plain`` (updates/s), ``sizes`` (by population
        size: ``updates_per_second`` and ``ratio``), ``best_size`` and ``best_ratio``.
    """
    report: dict[str, Any] = {"threads": torch.get_num_threads()}
    adam = make_optimizer("adam")
    for name in BENCHMARKS if names is None else names:
        make, shape, sizes = BENCHMARKS[name]
        workload = _workload(name, make, shape)
        contenders = [(1, _plain_stepper(workload, adam))]
        contenders += [(size, _population_stepper(workload, adam, size)) for size in sizes]
        for _, step in contenders:
            _rate(step, seconds / 4)
        rounds = [[size * _rate(step, seconds) for size, step in contenders] for _ in range(repeats)]
        by_size = {
            size: {
                "updates_per_second": statistics.median(rates[k] for rates in rounds),
                "ratio": statistics.median(rates[k] / rates[0] for rates in rounds),
            }
            for k, size in enumerate(sizes, start=1)
        }
        best = max(sizes, key=lambda size: by_size[size]["ratio"])
        report[name] = {
            "plain": statistics.median(rates[0] for rates in rounds),
            "sizes": {str(size): values for size, values in by_size.items()},
            "best_size": best,
            "best_ratio": by_size[best]["ratio"],
        }
    return report


#: Budgets in updates for which the environment's own share is measured: 10, 25 and 100 updates a decision.
BUDGETS = (400, 1000, 4000)

#: Budgets that stand for those which the environment draws when it is told none.
DRAWN = 5


def environment_overhead(*, networks: int = 64, repeats: int = 5) -> dict[str, Any]:
    """Measure the share of the environment's time that is not its population's training steps.

    Each step of the batched environment (64-64-10 MLP, Adam) is followed by as many bare training steps of a population
    alike: statistics, signals, actions and held-out losses make the difference. They alternate that closely because the
    speed of a shared machine changes within an episode.

    Args:
        networks: Runs of the environment.
        repeats: Rounds; the median counts. Half as many for ``default``, each of which covers several budgets.

    Returns:
        By budget: ``decisions_per_second`` (of all runs) and ``share`` in [0, 1]. Under ``default`` the same over an
        episode of each of ``budgets``, which are spread as the environment draws them: log-uniformly over its default
        ``steps``.
    """
    low, high = (math.log(bound) for bound in cast("tuple[int, int]", TrainingConfig().steps))
    drawn = [round(math.exp(low + (high - low) * (k + 0.5) / DRAWN)) for k in range(DRAWN)]
    return {
        **{str(budget): _overhead([budget], networks, repeats) for budget in BUDGETS},
        "default": {"budgets": drawn, **_overhead(drawn, networks, (repeats + 1) // 2)},
    }


def _overhead(budgets: Sequence[int], networks: int, repeats: int) -> dict[str, float]:
    workload, adam = _workload("mlp_64_64_10", *BENCHMARKS["mlp_64_64_10"][:2]), make_optimizer("adam")
    actions = np.full((networks, 1), 0.2, np.float32)
    envs = [TrainingVectorEnv(networks, workload=workload, optimizer=adam, steps=budget) for budget in budgets]
    bare = _population_stepper(workload, adam, networks)
    shares, speeds = [], []
    for _ in range(repeats):
        whole, training, decisions = 0.0, 0.0, 0
        for env, budget in zip(envs, budgets, strict=True):
            boundaries = env.config.spec.cadence.boundaries(budget)
            env.reset(seed=0)  # anew each round, as the budget ends with it
            for updates in np.diff(boundaries)[:-1].tolist():  # the last interval would begin the next episode
                start = time.perf_counter()
                env.step(actions)
                middle = time.perf_counter()
                for _ in range(updates):
                    bare()
                whole, training = whole + middle - start, training + time.perf_counter() - middle
            decisions += networks * (len(boundaries) - 2)
        shares.append(1.0 - training / whole)
        speeds.append(decisions / whole)
    return {"share": statistics.median(shares), "decisions_per_second": statistics.median(speeds)}


def environment_benchmark() -> dict[str, Any]:
    """`population_throughput`, with `environment_overhead` under ``environment``."""
    return {**population_throughput(), "environment": environment_overhead()}


def _workload(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Workload:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(EXAMPLES, *shape, generator=generator)
    targets = torch.randint(0, 10, (EXAMPLES,), generator=generator)
    heldout = (inputs[:256], targets[:256])
    return Workload(name, "benchmark", make, (inputs, targets), heldout, F.cross_entropy, BATCH, accuracy=True)


def _plain_stepper(workload: Workload, spec: OptimizerSpec) -> Callable[[], object]:
    model, loss_of = workload.make_model(), workload.loss
    optimizer = spec.build(model.parameters(), 1e-3)
    inputs, targets = workload.train
    order, position = torch.randperm(EXAMPLES), 0

    def step() -> None:
        nonlocal order, position
        if position + BATCH > EXAMPLES:
            order, position = torch.randperm(EXAMPLES), 0
        index = order[position : position + BATCH]
        position += BATCH
        loss = loss_of(model(inputs[index]), targets[index])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _population_stepper(workload: Workload, spec: OptimizerSpec, size: int) -> Callable[[], object]:
    population = Population(workload, spec, range(size))
    rates = torch.full((size,), 1e-3)

    def step() -> None:
        population.backward()
        population.update(rates)

    return step


def _rate(step: Callable[[], object], seconds: float) -> float:
    """Calls of ``step`` per second."""
    calls, start = 0, time.perf_counter()
    while True:
        step()
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds and calls >= 3:
            return calls / elapsed
