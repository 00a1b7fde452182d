"""The comparison: paired runs, honest tuning, known answers for its statistics."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from rlrate import Controller
from rlrate.control import Action, ControlSpec
from rlrate.envs import make_optimizer, make_workload
from rlrate.envs.plain import plain_run
from rlrate.envs.training import Draw
from rlrate.errors import ConfigError, ControllerError
from rlrate.experiments import compare, factor_table, schedule_names
from rlrate.experiments.compare import REPORT_SEED, peak_grid
from rlrate.experiments.runs import run_learned, run_schedules
from rlrate.experiments.statistics import bootstrap, centre


def wine(steps: int = 60, optimizer: str = "adam") -> Draw:
    return Draw(make_workload("wine-mlp", np.random.default_rng(0)), make_optimizer(optimizer), steps)


def plain_loss(draw: Draw, seed: int, rates: np.ndarray) -> float:
    """Final held-out loss of an ordinary torch loop at the given rates."""
    run = plain_run(draw.workload, draw.optimizer, seed)
    for rate in rates:
        run.step(float(rate))
    inputs, targets = draw.workload.heldout
    run.model.eval()
    with torch.no_grad():
        return float(draw.workload.loss(run.model(inputs), targets))


@pytest.mark.parametrize("name", ["constant", "cosine", "one-cycle"])
def test_batched_runs_equal_plain_loops(name: str) -> None:
    draw = wine()
    peaks = [1e-3, 1e-2]
    trace = run_schedules(draw, [7, 8], [name, name], peaks)
    for column, (seed, peak) in enumerate(zip([7, 8], peaks, strict=True)):
        expected = plain_loss(draw, seed, peak * factor_table(name, draw.steps))
        assert trace.heldout_loss[column] == pytest.approx(expected, rel=1e-4)


def test_a_chunked_grid_is_the_same_grid() -> None:
    draw = wine(20, "sgd")
    seeds, names = [1] * 70, ["constant"] * 70
    peaks = np.logspace(-4, 0, 70).tolist()
    trace = run_schedules(draw, seeds, names, peaks)
    for index in (0, 63, 64, 69):
        alone = run_schedules(draw, [1], ["constant"], [peaks[index]])
        assert trace.heldout_loss[index] == pytest.approx(alone.heldout_loss[0], rel=1e-4)


def test_holding_the_rate_is_the_constant_schedule() -> None:
    """The control of all controls: a controller that does nothing equals the plain optimizer."""
    spec = ControlSpec(action=Action(start=None, cap=None, cut=None, anneal=0.0))
    draw = wine()
    learned = run_learned(draw, [3, 4], Controller.constant(0.0, spec))
    constant = run_schedules(draw, [3, 4], ["constant"] * 2, [1e-3] * 2)
    np.testing.assert_array_equal(learned.heldout_loss, constant.heldout_loss)
    np.testing.assert_allclose(learned.rate, 1e-3)


def test_a_broken_run_is_worse_than_any_other() -> None:
    assert run_schedules(wine(40, "momentum"), [0], ["constant"], [1e12]).heldout_loss[0] > 1e3


def test_comparison_end_to_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    result = compare(
        ["wine-mlp", "diabetes-mlp"],
        ["adam", "sgd"],
        steps=40,
        controller=Controller.constant(0.4),
        schedules=["constant", "cosine", "reduce-on-plateau"],
        grid=3,
        seeds=3,
        tuning_seeds=1,
        out=tmp_path,
        progress=lambda done, total, what: calls.append((done, total)),
    )
    assert len(result.rows) == 2 * 2 * 4
    assert calls[-1][0] == calls[-1][1] == 4 * (3 * (3 * 1 + 3) + 3)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["settings"]["seeds"] == 3 and len(record["rows"]) == len(result.rows)
    assert (tmp_path / "curves-wine-mlp.png").stat().st_size > 10_000
    assert (tmp_path / "ratios.png").exists()
    for row in result.rows:
        assert len(row.losses) == 3
        assert (row.trials, row.peak is None) == ((0, True) if row.method == "learned" else (3, False))
    best = [r for r in result.rows if r.method != "learned" and (r.workload, r.optimizer) == ("wine-mlp", "adam")]
    assert min(r.ratio for r in best) == pytest.approx(1.0)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert "none given" in text and "wine-mlp" in text
    assert set(result.summary()) == {"adam", "sgd", "all"}


def test_reported_seeds_are_not_tuning_seeds() -> None:
    assert REPORT_SEED >= 1000


def test_statistics_have_known_answers() -> None:
    assert centre(np.array([1.0, 4.0])) == pytest.approx(2.0)
    assert centre(np.array([-1.0, 4.0])) == pytest.approx(1.5)
    assert centre(np.array([1.0, math.inf])) == math.inf
    low, high = bootstrap(np.log(np.full(5, 1.3)))
    assert low == pytest.approx(1.3) and high == pytest.approx(1.3)
    assert bootstrap(np.array([0.0, np.inf]))[1] == math.inf
    grid = peak_grid("adam", 9)
    assert len(grid) == 9 and grid[-1] / grid[0] == pytest.approx(1e4)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(0.2, 0.5, 40), draws=400)
        covered += low <= math.exp(0.2) <= high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedules": ["cosin"]}, "cosine"),
        ({"steps": 0}, "steps must be"),
        ({"seeds": 0}, "seeds must be"),
        ({"optimizers": ["adamm"]}, "adam"),
        ({"optimizers": []}, "at least one"),
        ({"workloads": ["mnist"]}, "unknown workload"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"workloads": ["wine-mlp"], "optimizers": ["adam"], "steps": 10, **settings}
    arguments.setdefault("controller", Controller.constant())
    with pytest.raises((ConfigError, ValueError), match=message):
        compare(**arguments)  # type: ignore[arg-type]


def test_an_unknown_controller_is_named() -> None:
    with pytest.raises(ControllerError, match="no controller"):
        compare(["wine-mlp"], ["adam"], steps=10, controller="nothing.safetensors")


def test_all_schedules_are_compared_by_default() -> None:
    result = compare(["quadratic-20"], ["sgd"], steps=10, controller=Controller.constant(), grid=1, seeds=1)
    assert {row.method for row in result.rows} == {*schedule_names(), "learned"}
