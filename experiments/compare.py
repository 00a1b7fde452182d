"""The comparison: a learned controller against hand-tuned schedules, on paired seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rlrate.agents.train import versions
from rlrate.controller import Controller
from rlrate.envs import make_optimizer, make_workload
from rlrate.envs.training import Draw
from rlrate.errors import ConfigError, unknown_name
from rlrate.experiments.runs import Trace, run_learned, run_schedules
from rlrate.experiments.schedules import schedule_names
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
            ratios = np.array([seed_ratios(row, self._best(row)) for row in rows])
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
        progress: Called with (network updates done, in all, what is running).

    Raises:
        ConfigError: for unknown names or counts below 1.
    """
    controller = controller if isinstance(controller, Controller) else Controller.load(controller)
    names = list(schedules) if schedules is not None else schedule_names()
    for name in names:
        if name not in schedule_names():
            raise ConfigError(unknown_name("schedule", name, schedule_names()))
    counts = {"steps": steps, "grid": grid, "seeds": seeds, "tuning_seeds": tuning_seeds}
    for label, count in counts.items():
        if not isinstance(count, int) or count < 1:
            raise ConfigError(f"{label} must be a positive integer, got {count!r}")
    if not workloads or not optimizers or not names:
        raise ConfigError("a comparison needs at least one workload, one optimizer and one schedule")
    specs = {name: make_optimizer(name) for name in optimizers}
    problems = {name: make_workload(name, np.random.default_rng(0)) for name in workloads}
    settings = {
        **counts,
        "workloads": list(workloads),
        "optimizers": list(optimizers),
        "schedules": names,
        "controller": controller.identity,
        "grids": {name: peak_grid(name, grid).tolist() for name in optimizers},
    }
    result = Comparison(settings)
    per_cell = steps * (len(names) * (grid * tuning_seeds + seeds) + seeds)
    meter = _Meter(per_cell * len(problems) * len(specs), progress)
    for problem, workload in problems.items():
        for name, spec in specs.items():
            meter.label = f"{problem}, {name}"
            _compare_cell(result, Draw(workload, spec, steps), (problem, name), names, controller, meter)
    if out is not None:
        result.save(Path(out))
    return result


def _compare_cell(
    result: Comparison, draw: Draw, key: tuple[str, str], names: list[str], controller: Controller, meter: _Meter
) -> None:
    settings = result.settings
    peaks = peak_grid(key[1], settings["grid"])
    chosen = tune(draw, names, peaks, range(settings["tuning_seeds"]), meter.tick)
    seeds = [REPORT_SEED + index for index in range(settings["seeds"])]
    trace = run_schedules(
        draw,
        [seed for _ in names for seed in seeds],
        [name for name in names for _ in seeds],
        [chosen[name] for name in names for _ in seeds],
        meter.tick,
    )
    traces = {name: _columns(trace, slice(i * len(seeds), (i + 1) * len(seeds))) for i, name in enumerate(names)}
    traces[LEARNED] = run_learned(draw, seeds, controller, meter.tick)
    best = min(names, key=lambda name: centre(traces[name].heldout_loss))
    for method, part in traces.items():
        ratios = part.heldout_loss / traces[best].heldout_loss
        peak = chosen.get(method)
        result.rows.append(
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
        result.traces[(*key, method)] = part


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


def centre(losses: NDArray[np.float64]) -> float:
    """Geometric mean of positive losses; arithmetic mean when one is not positive."""
    if (losses > 0).all():
        with np.errstate(divide="ignore"):
            return float(np.exp(np.log(losses).mean()))
    return float(losses.mean())


def seed_ratios(row: Row, best: Row) -> NDArray[np.float64]:
    """Loss of ``row`` over that of ``best``, seed by seed."""
    ratios: NDArray[np.float64] = np.array(row.losses) / np.array(best.losses)
    return ratios


def bootstrap(logs: NDArray[np.float64], level: float = 0.95, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap interval of exp(mean(logs)) (Efron 1979)."""
    if not np.isfinite(logs).all():
        return (float("nan"), float("inf"))
    rng = np.random.default_rng(0)
    means = logs[rng.integers(len(logs), size=(draws, len(logs)))].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.exp(np.quantile(means, [tail, 1.0 - tail]))
    return float(low), float(high)


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


def _columns(trace: Trace, part: slice) -> Trace:
    return Trace(
        trace.updates,
        trace.train_loss[:, part],
        trace.rate[:, part],
        trace.heldout_loss[part],
        trace.heldout_accuracy[part],
        trace.diverged[part],
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
