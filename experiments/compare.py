"""The comparison: a learned controller against hand-tuned schedules, on paired seeds."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlrate.controller import Controller
from rlrate.errors import ConfigError
from rlrate.experiments import store
from rlrate.experiments.cells import versions
from rlrate.experiments.engine import Report, run_suite
from rlrate.experiments.methods import LEARNED
from rlrate.experiments.recording import Trace
from rlrate.experiments.schedules import schedule_names
from rlrate.experiments.statistics import bootstrap, centre
from rlrate.experiments.suite import REPORT_SEED, Problem, Suite, check_integer, peak_grid
from rlrate.storage import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LEARNED", "REPORT_SEED", "Comparison", "Row", "compare", "peak_grid"]


@dataclass(frozen=True)
class Row:
    """One method on one workload with one optimizer, over all reported seeds.

    Attributes:
        workload: Name of the workload.
        optimizer: Name of the optimizer.
        method: Name of the schedule, or "learned".
        peak: Tuned peak rate; None for the learned method, which is given none.
        trials: Tuning runs per seed that were spent on the peak (the size of the grid); 0 for learned.
        edge: Whether the best peak lies at the edge of the grid.
        losses: Final held-out loss for each seed, infinite where diverged.
        accuracies: Final held-out accuracy for each seed, NaN where undefined.
        ratio: Geometric mean over seeds of the loss relative to the best tuned schedule of the same
            optimizer on the same seed.
        interval: 95 % bootstrap interval of ``ratio`` over seeds.
    """

    workload: str
    optimizer: str
    method: str
    peak: float | None
    trials: int
    edge: bool
    losses: list[float]
    accuracies: list[float]
    ratio: float
    interval: tuple[float, float]

    @property
    def loss(self) -> float:
        """Geometric mean of the losses over seeds (arithmetic mean if one is not positive)."""
        return centre(np.array(self.losses))

    @property
    def diverged(self) -> int:
        """Number of seeds whose final loss is not finite."""
        return sum(not math.isfinite(loss) for loss in self.losses)


@dataclass
class Comparison:
    """All rows of a comparison, and the curves behind them."""

    settings: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    traces: dict[tuple[str, str, str], Trace] = field(default_factory=dict)

    def row(self, workload: str, optimizer: str, method: str) -> Row:
        """The row of a method.

        Raises:
            KeyError: when it was not compared.
        """
        for row in self.rows:
            if (row.workload, row.optimizer, row.method) == (workload, optimizer, method):
                return row
        raise KeyError((workload, optimizer, method))

    def summary(self) -> dict[str, dict[str, Any]]:
        """For each optimizer and over all: geometric mean ratio of learned to the best tuned, with interval."""
        learned = [row for row in self.rows if row.method == LEARNED]
        groups = {name: [r for r in learned if r.optimizer == name] for name in self.settings["optimizers"]}
        groups["all"] = learned
        result = {}
        for name, rows in groups.items():
            ratios = np.array([np.array(row.losses) / np.array(self._best(row).losses) for row in rows])
            low, high = bootstrap(np.log(ratios).ravel())
            result[name] = {
                "ratio": float(np.exp(np.log(ratios).mean())),
                "interval": [low, high],
                "worst": float(np.exp(np.log(ratios).mean(axis=1)).max()),
                "runs": int(ratios.size),
                "diverged": sum(row.diverged for row in rows),
            }
        return result

    def _best(self, row: Row) -> Row:
        rivals = [
            r for r in self.rows if (r.workload, r.optimizer) == (row.workload, row.optimizer) and r.method != LEARNED
        ]
        return min(rivals, key=lambda r: r.loss)

    def table(self) -> Table:
        """The rows as a table for the terminal."""
        from rlrate.experiments.table import comparison_table

        return comparison_table(self)

    def save(self, out: Path) -> None:
        """Writes ``results.json`` and the pictures."""
        from rlrate.experiments.figures import save_figures

        record = {
            "settings": self.settings,
            "versions": versions(),
            "summary": self.summary(),
            "rows": [{**asdict(row), "loss": row.loss, "diverged": row.diverged} for row in self.rows],
        }
        text = json.dumps(_plain(record), indent=1, sort_keys=True) + "\n"
        write_atomically(out / "results.json", text.encode())
        save_figures(self, out)


def compare(
    workloads: Sequence[str],
    optimizers: Sequence[str],
    *,
    steps: int,
    controller: str | Controller = "default",
    schedules: Sequence[str] | None = None,
    grid: int = 9,
    seeds: int = 5,
    tuning_seeds: int = 2,
    out: str | Path | None = None,
    workers: int = 1,
    backend: str = "local",
    command: str = "",
    progress: Report | None = None,
) -> Comparison:
    """Compares a controller with hand-tuned schedules.

    Every schedule is tuned for each workload and optimizer: the best of ``grid`` peak rates by mean final held-out loss
    over ``tuning_seeds`` seeds. It is then run on ``seeds`` other seeds. The controller is given no learning rate and
    no tuning, and runs on the same seeds: same initial weights, same batches.

    Args:
        workloads: Names of workloads; sampled families are drawn once.
        optimizers: Names of optimizers.
        steps: Budget of every run, in updates.
        controller: A controller, its file, or the name of a bundled one.
        schedules: Names of schedules; None for all.
        grid: Number of peak rates, log-spaced over four decades.
        seeds: Reported seeds.
        tuning_seeds: Seeds used to choose the peak rate; not among the reported ones.
        out: Folder for ``results.json``, pictures, and every run (see :mod:`rlrate.experiments.store`): a comparison
            that was stopped goes on there. None keeps nothing.
        workers: Processes over which the runs are spread; the results do not depend on it. With more than one, a
            script must guard its entry with ``if __name__ == "__main__"``.
        backend: "local", or "ray" for a Ray cluster.
        command: The command line, for the record.
        progress: Called with (runs done, in all, what is running).

    Raises:
        ConfigError: for unknown names, counts below 1, or when ``out`` holds another comparison.
    """
    controller = controller if isinstance(controller, Controller) else Controller.load(controller)
    names = list(schedules) if schedules is not None else schedule_names()
    for label, count in {"steps": steps, "grid": grid, "seeds": seeds, "tuning_seeds": tuning_seeds}.items():
        check_integer(label, count, 1)
    if not workloads or not optimizers or not names:
        raise ConfigError("a comparison needs at least one workload, one optimizer and one schedule")
    problems = tuple(Problem(workload, optimizer, steps) for workload in workloads for optimizer in optimizers)
    suite = Suite(
        "comparison",
        "Learned and tuned schedules",
        problems,
        schedules=tuple(names),
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        rates=grid,
    )
    settings = {
        "steps": steps,
        "grid": grid,
        "seeds": seeds,
        "tuning_seeds": tuning_seeds,
        "workloads": list(workloads),
        "optimizers": list(optimizers),
        "schedules": names,
        "controller": controller.identity,
        "grids": {name: peak_grid(name, grid).tolist() for name in optimizers},
    }
    with tempfile.TemporaryDirectory() as scratch:
        results = run_suite(
            suite,
            scratch if out is None else out,
            controller=controller,
            workers=workers,
            backend=backend,
            command=command,
            progress=progress,
        )
    comparison = Comparison(settings)
    for problem in problems:
        _summarise(problem, [row for row in results.rows if row.problem == problem.name], comparison)
    if out is not None:
        comparison.save(Path(out))
    return comparison


def _summarise(problem: Problem, runs: Sequence[store.Row], comparison: Comparison) -> None:
    """Adds the rows and curves of a problem."""
    reported: dict[str, list[store.Row]] = {}
    for run in runs:
        if run.role == "report":
            reported.setdefault(run.method, []).append(run)
    losses = {method: np.array([run.heldout_loss for run in own]) for method, own in reported.items()}
    best = min((method for method in losses if method != LEARNED), key=lambda method: centre(losses[method]))
    peaks = peak_grid(problem.optimizer, comparison.settings["grid"])
    for method, own in reported.items():
        ratios = losses[method] / losses[best]
        peak = own[0].peak
        accuracies = [math.nan if run.heldout_accuracy is None else run.heldout_accuracy for run in own]
        comparison.rows.append(
            Row(
                problem.workload,
                problem.optimizer,
                method,
                peak,
                trials=own[0].budget,
                edge=peak is not None and len(peaks) > 1 and bool(peak in (peaks[0], peaks[-1])),
                losses=losses[method].tolist(),
                accuracies=accuracies,
                ratio=float(np.exp(np.log(ratios).mean())),
                interval=bootstrap(np.log(ratios)),
            )
        )
        comparison.traces[problem.workload, problem.optimizer, method] = _trace(own)


def _trace(runs: Sequence[store.Row]) -> Trace:
    curves = [run.curve for run in runs if run.curve is not None]
    losses = np.array([run.heldout_loss for run in runs])
    return Trace(
        curves[0].updates,
        np.stack([curve.train_loss for curve in curves], axis=1),
        np.stack([curve.rate for curve in curves], axis=1),
        curves[0].heldout_updates,
        np.stack([curve.heldout_loss for curve in curves], axis=1),
        losses,
        np.array([math.nan if run.heldout_accuracy is None else run.heldout_accuracy for run in runs]),
        ~np.isfinite(losses),
    )


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null and "inf"."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
