"""The comparison: a learned controller against hand-tuned schedules, on paired seeds."""

from __future__ import annotations

import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.agents.train import versions
from rlrate.controller import Controller
from rlrate.envs import make_optimizer, make_workload
from rlrate.envs.training import Draw
from rlrate.errors import ConfigError, unknown_name
from rlrate.experiments.runs import Trace, run_learned, run_schedules
from rlrate.experiments.schedules import schedule_names
from rlrate.experiments.statistics import bootstrap, centre
from rlrate.storage import write_atomically

if TYPE_CHECKING:
    from rich.table import Table

LEARNED = "learned"

#: Centre of the grid of peak rates for each optimizer, as a power of ten; the grid spans four decades around it.
GRID_CENTRE = {
    "sgd": -0.5,
    "momentum": -1.5,
    "nesterov": -1.5,
    "adagrad": -1.0,
    "rmsprop": -3.0,
    "adam": -2.5,
    "adamw": -2.5,
}

#: Seeds of the reported runs start here, those of the tuning runs at 0: no run is both.
REPORT_SEED = 1_000

Progress = Callable[[int, int, str], None]
Key = tuple[str, str]


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


CellResult = tuple[list[Row], dict[tuple[str, str, str], Trace]]


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
    progress: Progress | None = None,
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
        out: Folder for ``results.json`` and pictures; None writes nothing.
        workers: Processes over which workloads and optimizers are spread; the results do not depend on it. With more
            than one, a script must guard its entry with ``if __name__ == "__main__"``.
        progress: Called with (network updates done, in all, what is running).

    Raises:
        ConfigError: for unknown names or counts below 1.
    """
    controller = controller if isinstance(controller, Controller) else Controller.load(controller)
    names = list(schedules) if schedules is not None else schedule_names()
    for name in names:
        if name not in schedule_names():
            raise ConfigError(unknown_name("schedule", name, schedule_names()))
    counts = {"steps": steps, "grid": grid, "seeds": seeds, "tuning_seeds": tuning_seeds, "workers": workers}
    for label, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"{label} must be a positive integer, got {count!r}")
    if not workloads or not optimizers or not names:
        raise ConfigError("a comparison needs at least one workload, one optimizer and one schedule")
    for name in optimizers:
        make_optimizer(name)
    for name in workloads:
        make_workload(name, np.random.default_rng(0))
    del counts["workers"]
    settings = {
        **counts,
        "workloads": list(workloads),
        "optimizers": list(optimizers),
        "schedules": names,
        "controller": controller.identity,
        "grids": {name: peak_grid(name, grid).tolist() for name in optimizers},
    }
    result = Comparison(settings)
    cells = [(problem, name) for problem in workloads for name in optimizers]
    meter = _Meter(len(cells) * steps * (len(names) * (grid * tuning_seeds + seeds) + seeds), progress)
    for rows, traces in _run_cells(cells, settings, controller, meter, min(workers, len(cells))):
        result.rows += rows
        result.traces |= traces
    if out is not None:
        result.save(Path(out))
    return result


def _run_cells(
    cells: Sequence[Key], settings: dict[str, Any], controller: Controller, meter: _Meter, workers: int
) -> Iterator[CellResult]:
    """The results of all cells, in their order."""
    if workers == 1:
        for key in cells:
            meter.label = ", ".join(key)
            yield _compare_cell(key, settings, controller, meter.tick)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(_compare_cell, key, settings, controller, None) for key in cells]
        meter.label = "starting"
        meter.tick(0)
        for number, _ in enumerate(as_completed(futures), start=1):
            meter.label = f"{number} of {len(cells)} combinations of workload and optimizer"
            meter.tick(meter.total * number // len(cells) - meter.done)
        yield from (future.result() for future in futures)


def _compare_cell(
    key: Key, settings: dict[str, Any], controller: Controller, tick: Callable[[int], None] | None
) -> CellResult:
    workload = make_workload(key[0], np.random.default_rng(0))
    draw = Draw(workload, make_optimizer(key[1]), settings["steps"])
    names = settings["schedules"]
    peaks = peak_grid(key[1], settings["grid"])
    chosen = tune(draw, names, peaks, range(settings["tuning_seeds"]), tick)
    seeds = [REPORT_SEED + index for index in range(settings["seeds"])]
    trace = run_schedules(
        draw,
        [seed for _ in names for seed in seeds],
        [name for name in names for _ in seeds],
        [chosen[name] for name in names for _ in seeds],
        tick,
    )
    traces = {name: trace.columns(slice(i * len(seeds), (i + 1) * len(seeds))) for i, name in enumerate(names)}
    traces[LEARNED] = run_learned(draw, seeds, controller, tick)
    best = min(names, key=lambda name: centre(traces[name].heldout_loss))
    rows = []
    for method, part in traces.items():
        ratios = part.heldout_loss / traces[best].heldout_loss
        peak = chosen.get(method)
        rows.append(
            Row(
                *key,
                method,
                peak,
                trials=0 if peak is None else len(peaks),
                edge=peak is not None and len(peaks) > 1 and bool(peak in (peaks[0], peaks[-1])),
                losses=part.heldout_loss.tolist(),
                accuracies=part.heldout_accuracy.tolist(),
                ratio=float(np.exp(np.log(ratios).mean())),
                interval=bootstrap(np.log(ratios)),
            )
        )
    return rows, {(*key, method): part for method, part in traces.items()}


def tune(
    draw: Draw,
    names: Sequence[str],
    peaks: NDArray[np.float64],
    seeds: Sequence[int],
    tick: Callable[[int], None] | None,
) -> dict[str, float]:
    """The peak rate with the lowest mean log held-out loss over ``seeds``, for each schedule."""
    cells = [(name, peak, seed) for name in names for peak in peaks for seed in seeds]
    trace = run_schedules(draw, [c[2] for c in cells], [c[0] for c in cells], [c[1] for c in cells], tick)
    losses = trace.heldout_loss.reshape(len(names), len(peaks), len(seeds))
    centres = np.apply_along_axis(centre, 2, losses)
    return {name: float(peaks[row.argmin()]) for name, row in zip(names, centres, strict=True)}


def peak_grid(optimizer: str, size: int) -> NDArray[np.float64]:
    """``size`` peak rates, log-spaced over the four decades around the optimizer's usual rate."""
    middle = GRID_CENTRE[optimizer]
    return np.array([10.0**middle]) if size == 1 else np.logspace(middle - 2, middle + 2, size)


class _Meter:
    """Counts network updates and passes them on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress = total, progress
        self.done = 0
        self.label = ""

    def tick(self, updates: int) -> None:
        self.done += updates
        if self.progress is not None:
            self.progress(self.done, self.total, self.label)


def _plain(value: Any) -> Any:
    """JSON has no infinities and no NaN: they become null and "inf"."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
