"""Batched runs are the plain loops that people write, method by method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from lively import lively_controller
from numpy.typing import NDArray

from rlrate import Controller
from rlrate.control import SIGNALS, Cadence, ControlSpec
from rlrate.envs import make_optimizer, make_workload
from rlrate.envs.training import Draw
from rlrate.experiments.cells import CLOCK, Cell, Run, run_cell
from rlrate.experiments.loops import SELF_TUNING, loop_learned, loop_schedule, loop_self_tuning
from rlrate.experiments.open_loop import mean_actions, open_loop
from rlrate.experiments.runs import run_controlled, run_learned, run_schedules
from rlrate.experiments.schedules import schedule_names
from rlrate.experiments.search import range_test_cosine, search_updates, stagewise_search
from rlrate.experiments.suite import Problem

TOLERANCE = 1e-4
SEEDS = (1000, 1001)
PROBLEM = Problem("digits-mlp", "adam", 80)


def draw(optimizer: str = "adam", steps: int = 80) -> Draw:
    return Draw(make_workload("digits-mlp", 0), make_optimizer(optimizer), steps)


@pytest.mark.parametrize("name", schedule_names())
def test_schedules(name: str) -> None:
    peaks = [1e-3, 1e-2]
    batched = run_schedules(draw(), SEEDS, [name] * 2, peaks, heldout=True)
    assert batched.heldout_curve.shape == (20, 2)
    for column, (seed, peak) in enumerate(zip(SEEDS, peaks, strict=True)):
        alone = loop_schedule(draw(), seed, name, peak)
        assert batched.heldout_loss[column] == pytest.approx(alone.heldout_loss[0], rel=TOLERANCE)
        assert batched.heldout_accuracy[column] == alone.heldout_accuracy[0]
        np.testing.assert_allclose(batched.rate[:, column], alone.rate[:, 0], rtol=1e-6)
        np.testing.assert_allclose(batched.train_loss[:, column], alone.train_loss[:, 0], rtol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_defaults(optimizer: str) -> None:
    rows = run_cell(Cell(PROBLEM, "defaults", (Run(optimizer, "report", 1000),)), Controller.constant())
    assert rows[0].peak is not None
    alone = loop_schedule(draw(optimizer), 1000, "constant", rows[0].peak)
    assert rows[0].heldout_loss == pytest.approx(alone.heldout_loss[0], rel=TOLERANCE)


@dataclass(frozen=True, eq=False)
class TimeOnly(Controller):
    """Sees the clock and a constant."""

    constant_row: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        fixed = np.array([name not in CLOCK for name in self.spec.signals])
        return super().act(np.where(fixed, self.constant_row, observations).astype(np.float32))


@dataclass(frozen=True, eq=False)
class Random(Controller):
    """Acts at random, by a seed."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng([1000, 1]))

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        return self.rng.uniform(-1, 1, len(observations))


@pytest.fixture(scope="module")
def lively() -> Controller:
    """A policy that answers to what it sees and raises the rate."""
    generator = torch.Generator().manual_seed(0)
    blank = Controller.constant()
    weight = torch.randn(1, len(blank.spec.signals), generator=generator) / 8
    return Controller(((weight, torch.tensor([0.3])),), blank.spec)


def test_the_learned_scheduler_and_its_controls(lively: Controller) -> None:
    methods = ("learned", "replay", "time-only", "random", "hold")
    runs = tuple(Run(name, "report", seed) for name in methods for seed in SEEDS)
    rows = run_cell(Cell(PROBLEM, "controlled", runs, tuning_seeds=2), lively)
    losses = {(row.method, row.seed): row.heldout_loss for row in rows}
    assert len(set(losses.values())) == len(losses)

    seen: list[NDArray[np.float32]] = []
    rates: list[NDArray[np.float64]] = []

    def act(observations: NDArray[np.float32]) -> tuple[NDArray[np.float64], None]:
        seen.append(observations)
        return lively.act(observations), None

    run_controlled(draw(), [0, 1], lively.spec, act, watch=rates.append)
    policies = {
        "learned": lively,
        "time-only": TimeOnly(lively.layers, lively.spec, constant_row=np.concatenate(seen).mean(axis=0)),
        "random": Random(lively.layers, lively.spec),
        "hold": Controller.constant(0.0, lively.spec),
    }
    for method, policy in policies.items():
        alone = loop_learned(draw(), 1000, policy, given=7.0)
        assert losses[method, 1000] == pytest.approx(alone.heldout_loss[0], rel=TOLERANCE), method
    replayed = run_schedules(draw(), [1000], ["constant"], [1.0])
    table = np.exp(np.log(np.stack(rates)).mean(axis=1))
    row = next(row for row in rows if row.method == "replay")
    assert row.curve is not None
    ends = row.curve.updates - 1
    np.testing.assert_allclose(row.curve.rate, table[ends], rtol=1e-12)
    assert losses["replay", 1000] != replayed.heldout_loss[0]


def test_the_learned_scheduler_on_adam_is_it_on_adam(lively: Controller) -> None:
    problem = replace(PROBLEM, optimizer="sgd")
    rows = run_cell(Cell(problem, "controlled", tuple(Run("learned-adam", "report", seed) for seed in SEEDS)), lively)
    alone = run_learned(draw("adam"), SEEDS, lively)
    np.testing.assert_allclose([row.heldout_loss for row in rows], alone.heldout_loss, rtol=1e-6)
    assert rows[0].optimizer == "sgd" and rows[0].group == "learned"


def test_a_validation_loss_is_shown_to_those_who_are_to_see_it() -> None:
    spec = ControlSpec(tuple(SIGNALS), Cadence(decisions=12, first=5, ramp=4))
    lively = lively_controller(3, spec)
    problem = replace(PROBLEM, validation=40)
    losses = {}
    for method in ("learned", "learned-validated"):
        rows = run_cell(Cell(problem, "controlled", tuple(Run(method, "report", seed) for seed in SEEDS)), lively)
        losses[method] = [row.heldout_loss for row in rows]
    known = np.stack(lively.seen)[:, spec.signals.index("validation_known")]
    assert known.tolist() == [0.0] * (len(known) // 2) + [1.0] * (len(known) // 2)
    assert losses["learned"] != losses["learned-validated"]


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 1e-3), ("adagrad", 1e-2)])
def test_a_rule_from_torchs_rate_keeps_the_optimizer(optimizer: str, rate: float) -> None:
    problem = replace(PROBLEM, optimizer=optimizer)
    rows = run_cell(Cell(problem, "defaults", (Run("default-greedy", "report", 1000),)), Controller.constant())
    alone = run_schedules(draw(optimizer), [1000], ["greedy"], [rate])
    assert rows[0].peak == rate and rows[0].heldout_loss == pytest.approx(alone.heldout_loss[0], rel=1e-6)


def test_open_loop_is_the_controller_without_its_eyes(lively: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlrate.experiments.open_loop.DRAWS", 3)
    cell = Cell(replace(PROBLEM, steps=200), "open-loop", (Run("open-loop", "report", 1000),))

    blind = Controller.constant(0.2)
    expected = run_learned(draw(steps=200), [1000], blind).heldout_loss[0]
    assert run_cell(cell, blind)[0].heldout_loss == pytest.approx(expected, rel=1e-6)

    path = mean_actions(lively, 3)
    assert path.shape == (lively.spec.cadence.decisions - 1,) and np.ptp(path) > 0
    told = iter(path)
    by_hand = run_controlled(draw(steps=200), [1000], lively.spec, lambda seen: (np.full(len(seen), next(told)), None))
    found = run_cell(cell, lively)[0].heldout_loss
    assert found == pytest.approx(by_hand.heldout_loss[0], rel=1e-6)
    assert found != run_learned(draw(steps=200), [1000], lively).heldout_loss[0]
    # Fewer decisions are spread over the same path.
    few = open_loop(lively, 30)
    first, *_, last = [float(few(np.zeros((1, 1), np.float32))[0][0]) for _ in lively.spec.cadence.boundaries(30)[:-1]]
    assert (first, last) == (path[0], path[-1])


def test_the_start_given_does_not_matter_to_the_learned_scheduler(lively: Controller) -> None:
    runs = tuple(Run("learned", "start", 1000, start=rate) for rate in (1e-7, 10.0))
    low, high = run_cell(Cell(PROBLEM, "start", runs), lively)
    assert low.heldout_loss == high.heldout_loss
    assert low.heldout_loss == pytest.approx(run_learned(draw(), [1000], lively).heldout_loss[0], rel=TOLERANCE)
    assert (low.start, low.curve, low.role) == (1e-7, None, "start")


def test_searches_depend_on_their_seed_only_and_say_what_they_cost() -> None:
    short = draw(steps=40)
    trace, peaks = range_test_cosine(short, SEEDS, (1e-6, 10.0))
    alone, peak = range_test_cosine(short, SEEDS[1:], (1e-6, 10.0))
    assert peaks[1] == peak[0] and 1e-5 < peak[0] < 1
    assert trace.heldout_loss[1] == pytest.approx(alone.heldout_loss[0], rel=TOLERANCE)
    by_hand = loop_schedule(short, SEEDS[1], "cosine", float(peak[0]))
    assert alone.heldout_loss[0] == pytest.approx(by_hand.heldout_loss[0], rel=TOLERANCE)
    assert trace.spent == search_updates(40, "range-test-cosine") == 10

    made: list[int] = []
    trace = stagewise_search(short, SEEDS[:1], (1e-4, 1.0), made.append)
    assert trace.spent == search_updates(40, "bayesian") == sum(made) - 40
    assert np.isfinite(trace.heldout_loss).all() and len(set(trace.rate[:, 0])) == 8
    again = stagewise_search(short, SEEDS[:1], (1e-4, 1.0))
    assert again.heldout_loss[0] == trace.heldout_loss[0]


@pytest.mark.parametrize("name", list(SELF_TUNING))
def test_self_tuning_optimizers_train(name: str) -> None:
    small = Draw(make_workload("digits-cnn-batchnorm", 0), make_optimizer("adam"), 30)
    trace = loop_self_tuning(small, [1000], name)
    assert trace.heldout_curve.shape == (20, 1)
    assert np.isfinite(trace.heldout_loss).all() and (trace.rate > 0).all()
    assert trace.heldout_curve[-1, 0] < 2.6
    assert trace.heldout_loss[0] == loop_self_tuning(small, [1000], name).heldout_loss[0]
