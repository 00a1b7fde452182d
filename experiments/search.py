"""Methods that look for a learning rate by themselves; what the search costs is counted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from rlrate.envs import Population
from rlrate.envs.training import Draw
from rlrate.experiments.recording import Array, Recorder, Tick, Trace
from rlrate.experiments.schedules import factor_table

#: Updates of the range test, at most a quarter of the budget.
RANGE_TEST = 100

#: Stages of the stage-wise search, trials in each, and their length as a share of the stage's.
STAGES, TRIALS, TRIAL_SHARE = 8, 8, 0.25

#: A training loss that is not finite, or worse than this, counts as this one.
BROKEN = 1e6


def range_test_cosine(
    draw: Draw, seeds: Sequence[int], bounds: tuple[float, float], tick: Tick | None = None
) -> tuple[Trace, Array]:
    """A learning-rate range test (Smith, 2017), then the run anew under a cosine from the rate it found.

    The rate grows exponentially from the lower to the upper of ``bounds`` within :data:`RANGE_TEST` updates; the peak
    is a tenth of the rate at which the smoothed training loss is lowest.

    Args:
        draw: Workload, optimizer and budget.
        seeds: Seed of each run.
        bounds: Lowest and highest rate.
        tick: Called with the number of network updates made since the last call.

    Returns:
        The runs, and their peaks (N,).
    """
    updates = max(1, min(RANGE_TEST, draw.steps // 4))
    swept = np.geomspace(*bounds, updates)
    population = Population(draw.workload, draw.optimizer, seeds)
    smooth = np.zeros(len(seeds))
    best, found = np.full(len(seeds), np.inf), np.full(len(seeds), swept[0])
    for index, rate in enumerate(swept):
        losses = _finite(population.backward().double().numpy())
        population.update(torch.full((len(seeds),), float(rate)))
        smooth = 0.9 * smooth + 0.1 * losses
        value = smooth / (1 - 0.9 ** (index + 1))
        # The loss seen here is a consequence of the rates before.
        better = value < best
        best, found = np.where(better, value, best), np.where(better, rate, found)
        _tell(tick, len(seeds))
    peaks = found / 10
    recorder, population = _fresh(draw, seeds)
    for factor in factor_table("cosine", draw.steps):
        _train(population, recorder, peaks * factor, tick)
    return recorder.trace(spent=updates), peaks


def stagewise_search(draw: Draw, seeds: Sequence[int], bounds: tuple[float, float], tick: Tick | None = None) -> Trace:
    """Bayesian optimisation of the rate, stage by stage (the scheme of AutoLRS; Jin et al., 2021).

    Each of :data:`STAGES` stages tries :data:`TRIALS` rates from the weights at its beginning, each for a share of the
    stage's updates, judged by the training loss of their later half; the stage is then trained at the best. Optuna
    proposes the rates: within ``bounds`` in the first stage, within a decade of the last choice afterwards.

    Args:
        draw: Workload, optimizer and budget.
        seeds: Seed of each run.
        bounds: Lowest and highest rate.
        tick: Called with the number of network updates made since the last call.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recorder, population = _fresh(draw, seeds)
    ends = np.unique(np.rint(np.linspace(0, draw.steps, STAGES + 1)).astype(int))
    log_low, log_high = (np.full(len(seeds), np.log10(bound)) for bound in bounds)
    spent = 0
    for stage, (begin, end) in enumerate(pairwise(ends)):
        length = max(1, round(TRIAL_SHARE * (end - begin)))
        studies = [
            optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed * STAGES + stage, n_startup_trials=3))
            for seed in seeds
        ]
        start = population.state_dict()
        for _ in range(TRIALS):
            trials = [study.ask() for study in studies]
            rates = np.array(
                [
                    10.0 ** trial.suggest_float("log_rate", low, high)
                    for trial, low, high in zip(trials, log_low, log_high, strict=True)
                ]
            )
            losses = np.array([_step(population, rates, tick) for _ in range(length)])
            spent += length
            # The first loss is of the weights before the trial.
            values = _finite(losses[min(1 + (length - 1) // 2, length - 1) :].mean(axis=0))
            for study, trial, value in zip(studies, trials, values, strict=True):
                study.tell(trial, float(value))
            population.load_state_dict(start)
        chosen = np.array([study.best_params["log_rate"] for study in studies])
        for _ in range(begin, end):
            _train(population, recorder, 10.0**chosen, tick)
        log_low, log_high = chosen - 1, chosen + 1
    return recorder.trace(spent=spent)


def search_updates(steps: int, name: str) -> int:
    """Updates that the search ``name`` makes beyond those of the run, for a budget of ``steps``."""
    if name == "range-test-cosine":
        return max(1, min(RANGE_TEST, steps // 4))
    ends = np.unique(np.rint(np.linspace(0, steps, STAGES + 1)).astype(int))
    return sum(TRIALS * max(1, round(TRIAL_SHARE * length)) for length in np.diff(ends))


def _fresh(draw: Draw, seeds: Sequence[int]) -> tuple[Recorder, Population]:
    population = Population(draw.workload, draw.optimizer, seeds)
    return Recorder(draw.steps, len(seeds), population.heldout, heldout=True), population


def _train(population: Population, recorder: Recorder, rates: Array, tick: Tick | None) -> None:
    recorder.add(_step(population, rates, tick), rates)


def _step(population: Population, rates: Array, tick: Tick | None) -> Array:
    losses = population.backward()
    population.update(torch.from_numpy(rates).to(losses.dtype))
    _tell(tick, len(rates))
    values: Array = losses.double().numpy()
    return values


def _finite(losses: Array) -> Array:
    with np.errstate(all="ignore"):
        values: Array = np.where(np.isfinite(losses), np.minimum(losses, BROKEN), BROKEN)
    return values


def _tell(tick: Tick | None, updates: int) -> None:
    if tick is not None:
        tick(updates)
