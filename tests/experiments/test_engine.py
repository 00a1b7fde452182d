"""A comparison that is stopped, killed or spread goes on, and ends with the same table."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlrate import Controller
from rlrate.errors import ConfigError, RlrateError, WorkloadError
from rlrate.experiments import run_suite
from rlrate.experiments.store import Results, Row
from rlrate.experiments.suite import Problem, Suite

TINY = Suite(
    "tiny",
    "Tiny",
    (Problem("wine-mlp", "adam", 12), Problem("quadratic-20", "momentum", 12, start=(1e-4,))),
    schedules=("constant", "greedy"),
    entrants=("learned", "replay", "random", "adam", "adam-1e-3-cosine", "prodigy", "range-test-cosine"),
    seeds=2,
    tuning_seeds=1,
    rates=3,
)
CONTROLLER = Controller.constant(0.4)


def table(results: Results) -> list[tuple[Any, ...]]:
    """All rows up to timing."""
    return [tuple(_plain(getattr(row, f.name)) for f in fields(Row) if f.name != "seconds") for row in results.rows]


def _plain(value: Any) -> Any:
    if hasattr(value, "train_loss"):
        return tuple(tuple(getattr(value, f.name).tolist()) for f in fields(value))
    return str(value) if isinstance(value, dict) or value != value else value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_suite(TINY, tmp_path_factory.mktemp("whole"), controller=CONTROLLER)


def test_every_run_is_there_with_its_budget(whole: Results) -> None:
    assert whole.complete and whole.missing == 0
    assert len({row.key for row in whole.rows}) == len(whole.rows) == 2 * (2 * 3 + 9 * 2) + 3 * 2
    for row in whole.rows:
        assert row.curve is None or row.role == "report"
        assert (row.role == "report") == (row.curve is not None)
        if row.curve is not None:
            assert row.curve.heldout_updates[-1] == row.curve.updates[-1] == row.steps == 12
            assert row.curve.heldout_loss[-1] == pytest.approx(row.heldout_loss)
            assert (row.curve.rate > 0).all()
    report = {row.method: row for row in whole.rows if row.role == "report"}
    assert {name: row.budget for name, row in report.items()} == {
        **dict.fromkeys(("constant", "greedy"), 3),
        **dict.fromkeys(("learned", "random", "adam", "adam-1e-3-cosine", "prodigy"), 0),
        **dict.fromkeys(("replay", "range-test-cosine"), 1),
    }
    assert report["range-test-cosine"].updates == 12 + 3 and report["learned"].updates == 12
    assert report["learned"].peak is None and report["adam"].peak == 1e-3


def test_the_reported_peak_is_the_best_of_the_grid_on_the_tuning_seeds(whole: Results) -> None:
    for problem in ("wine-mlp adam 12", "quadratic-20 momentum 12"):
        for method in ("constant", "greedy"):
            rows = [row for row in whole.rows if (row.problem, row.method) == (problem, method)]
            best = min((row for row in rows if row.role == "tune"), key=lambda row: row.heldout_loss)
            assert {row.peak for row in rows if row.role == "report"} == {best.peak}
            assert not {row.seed for row in rows if row.role == "tune"} & {
                row.seed for row in rows if row.role == "report"
            }


def test_one_process_trains_with_one_thread_as_workers_do(tmp_path: Path) -> None:
    suite = replace(TINY, problems=TINY.problems[:1], entrants=("adam",), whole_grid=True)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        results = run_suite(
            suite, tmp_path, controller=CONTROLLER, progress=lambda *_: seen.append(torch.get_num_threads())
        )
        assert set(seen[:-1]) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    whole = [row for row in results.rows if row.role == "grid"]
    assert len(whole) == 2 * 3 * 2 and all(row.curve is None for row in whole)
    # What was tuned ends the same, whichever population it is in.
    ends = {(row.method, row.seed, row.peak): row.heldout_loss for row in whole}
    for row in results.rows:
        if (row.role, row.group) == ("report", "schedule"):
            assert ends[row.method, row.seed, row.peak] == pytest.approx(row.heldout_loss, rel=1e-5)


def test_methods_are_paired(whole: Results) -> None:
    """One seed, one beginning: methods that start alike see the same first loss."""
    first = {
        (row.problem, row.seed, float(np.float32(row.curve.train_loss[0]).round(4)))
        for row in whole.rows
        if row.curve is not None
    }
    assert len(first) == 2 * 2


def test_a_finished_comparison_is_not_run_again(whole: Results, tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    again = run_suite(TINY, tmp_path, controller=CONTROLLER, progress=lambda *call: calls.append(call))
    assert table(again) == table(whole)
    assert calls[-1][:2] == (len(whole.rows), len(whole.rows))
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    before = (tmp_path / "results.jsonl").read_bytes()
    run_suite(TINY, tmp_path, controller=CONTROLLER)
    assert (tmp_path / "results.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match="differs in controller"):
        run_suite(TINY, tmp_path, controller=Controller.constant(0.5))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_the_table_stays_the_same(whole: Results, tmp_path: Path) -> None:
    from rlrate.experiments import backends

    killed: list[int] = []

    class Killing(backends.Processes):
        def collect(self) -> backends.Finished:
            finished = super().collect()
            if finished and not killed:
                worker = next(w for w in self._workers if w.cell is not None)
                killed.append(worker.process.pid)
                worker.process.kill()
            return finished

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backends.BACKENDS, "local", Killing)
        spread = run_suite(TINY, tmp_path, controller=CONTROLLER, workers=2)
    assert killed
    assert table(spread) == table(whole)


def test_a_cell_that_fails_ends_the_comparison_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import numpy as np, torch\n"
        "from rlrate.envs import make_workload\n"
        "def make(rng):\n"
        "    return make_workload('wine-mlp', 0)\n"
    )
    suite = Suite("s", "S", (Problem(f"{path}:make", "adam", 4),), ("constant",), (), seeds=1, tuning_seeds=1, rates=1)
    assert len(run_suite(suite, tmp_path / "a", controller=CONTROLLER).rows) == 2
    broken = Suite("s", "S", (Problem("wine", "adam", 4),))
    with pytest.raises(WorkloadError, match="unknown workload 'wine'"):
        run_suite(broken, tmp_path / "b", controller=CONTROLLER)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="workers must be a positive integer"):
        run_suite(suite, tmp_path / "b", controller=CONTROLLER, workers=0)
    with pytest.raises(RlrateError, match="unknown backend 'rey'"):
        run_suite(suite, tmp_path / "b", controller=CONTROLLER, backend="rey")
    with pytest.raises(RlrateError, match="there is no comparison in"):
        run_suite(suite, tmp_path / "b", controller=CONTROLLER, reuse=tmp_path / "none")
    assert not (tmp_path / "b").exists()


def test_runs_of_an_earlier_comparison_count_where_nothing_has_changed(tmp_path: Path) -> None:
    suite = replace(TINY, problems=TINY.problems[:1], entrants=("learned", "adam"))
    earlier = run_suite(suite, tmp_path / "earlier", controller=CONTROLLER)
    other = Controller.constant(0.1)
    mixed = run_suite(suite, tmp_path / "mixed", controller=other, reuse=tmp_path / "earlier")
    assert table(mixed) == table(run_suite(suite, tmp_path / "fresh", controller=other))
    known = {row.key: row.seconds for row in earlier.rows}
    for row in mixed.rows:  # the time it took tells which run it is
        assert (known.get(row.key) == row.seconds) == (row.method != "learned")
