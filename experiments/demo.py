"""The whole story in minutes: train a controller, export it, apply it in a plain loop, compare it.

Run by ``make demo``. Every figure printed here is measured in the run that prints it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import rlrate
from rlrate.agents import Recipe, train
from rlrate.envs import Workload, make_optimizer, make_workload
from rlrate.envs.plain import plain_run
from rlrate.envs.processes import process_context
from rlrate.envs.training import Draw
from rlrate.experiments.compare import REPORT_SEED, Comparison, compare, peak_grid
from rlrate.experiments.runs import run_schedules
from rlrate.experiments.statistics import bootstrap, centre

RECIPE = "demo"
WORKLOAD = "digits-cnn"
OPTIMIZERS = ("adam", "rmsprop", "adagrad", "momentum")
STEPS = 400
STARTS = 50
SCHEDULES = (
    *("constant", "step", "exponential", "cosine"),
    *("warmup-cosine", "one-cycle", "linear", "reduce-on-plateau"),
)

Losses = NDArray[np.float64]
# Where nobody watches, the table must not be folded.
console = Console() if sys.stdout.isatty() else Console(width=130)


def main(out: Path = Path("runs/demo")) -> None:
    """Runs the demo and writes everything to ``out``, which is replaced."""
    begun = time.perf_counter()
    torch.set_num_threads(1)
    shutil.rmtree(out, ignore_errors=True)
    recipe = Recipe.load(RECIPE)
    console.rule("1  train and export")
    families = ", ".join(recipe.environment["workload"])
    console.print(
        f"PPO learns to set learning rates on {families} (synthetic and real data): "
        f"{recipe.iterations} rollouts of {recipe.runs} networks. No convolutional network is among them."
    )
    workers = os.cpu_count() or 1
    path = _train(recipe, out, workers)
    controller = rlrate.Controller.load(path)
    console.print(f"exported: {path} ({path.stat().st_size / 1024:.0f} KiB)")
    console.rule("2  apply it in a plain loop, whatever learning rate was given")
    losses = _starts(controller, workers)
    console.rule("3  compare it with hand-tuned schedules")
    console.print(
        f"{WORKLOAD} (never trained on), {STEPS} updates; every schedule at the best of 9 peak rates, chosen on 2 "
        "other seeds"
    )
    comparison = _compare(controller, out, workers)
    console.print(comparison.table())
    _verdict(comparison, losses)
    console.print(f"table and curves: {out / 'comparison'}/results.json, *.png")
    console.print(f"whole demo after installation: {time.perf_counter() - begun:.0f} s")


def _train(recipe: Recipe, out: Path, workers: int) -> Path:
    with _progress() as bar:
        task = bar.add_task("training", total=recipe.iterations, note="")

        def report(done: int, _: int, row: dict[str, float]) -> None:
            note = f"mean log improvement {row['return_mean']:.2f}" if done else f"imitating {row['imitation']:.0%}"
            bar.update(task, completed=done, note=note)

        return train(recipe, out / "training", workers=workers, progress=report)


def _starts(controller: rlrate.Controller, workers: int) -> Losses:
    """Final held-out loss of plain torch loops, given learning rates from 1e-7 to 10."""
    given = np.logspace(-7, 1, STARTS).tolist()
    losses = []
    with _progress() as bar, ProcessPoolExecutor(workers, process_context(), initializer=_alone) as pool:
        task = bar.add_task("plain loops", total=STARTS, note="")
        try:
            for rate, loss in zip(given, pool.map(partial(_start, controller), range(STARTS), given), strict=True):
                losses.append(loss)
                bar.update(task, completed=len(losses), note=f"given {rate:.1e}")
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    result = np.array(losses)
    broken = int((~np.isfinite(result)).sum())
    finite = result[np.isfinite(result)]
    console.print(
        f"{STARTS} plain Adam loops given rates from 1e-7 to 1e+1: {broken} diverged, "
        f"final held-out loss {finite.min():.4f} .. {finite.max():.4f} over 5 seeds"
    )
    return result


def _alone() -> None:
    """One thread for each process; Ctrl-C is for the first of them, which ends the others."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _start(controller: rlrate.Controller, index: int, given: float) -> float:
    workload = make_workload(WORKLOAD, np.random.default_rng(0))
    run = plain_run(workload, make_optimizer("adam"), REPORT_SEED + index % 5)
    run.optimizer.param_groups[0]["lr"] = given
    scheduler = rlrate.LearnedLR(run.optimizer, total_steps=STEPS, controller=controller)
    for _ in range(STEPS):
        loss = run.backward()
        run.optimizer.step()
        scheduler.step(loss)
    return _heldout(run.model, workload)


def _heldout(model: nn.Module, workload: Workload) -> float:
    inputs, targets = workload.heldout
    model.eval()
    with torch.no_grad():
        return float(workload.loss(model(inputs), targets))


def _compare(controller: rlrate.Controller, out: Path, workers: int) -> Comparison:
    with _progress() as bar:
        task = bar.add_task("comparing", total=1, note="")

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, note=what)

        return compare(
            [WORKLOAD],
            OPTIMIZERS,
            steps=STEPS,
            controller=controller,
            schedules=SCHEDULES,
            out=out / "comparison",
            workers=workers,
            progress=report,
        )


def _verdict(comparison: Comparison, starts: Losses) -> None:
    """Learned against Adam at its best constant rate, seed by seed."""
    learned = np.array(comparison.row(WORKLOAD, "adam", "learned").losses)
    constant, peak, trials = _best_constant(len(learned))
    logs = np.log(learned / constant)
    low, high = bootstrap(logs)
    console.print(
        f"learned, no learning rate given / Adam at the best constant of {trials} rates ({peak:.3g}, the best on these "
        f"very seeds): [bold]{np.exp(logs.mean()):.3f}[/bold] (95 % interval {low:.3f} .. {high:.3f}, "
        f"{len(logs)} paired seeds)"
    )
    total = comparison.summary()["all"]
    console.print(
        f"learned / best tuned of all {len(comparison.settings['schedules'])} schedules, {len(OPTIMIZERS)} optimizers: "
        f"{total['ratio']:.3f}; diverged: {total['diverged'] + int((~np.isfinite(starts)).sum())} of "
        f"{total['runs'] + len(starts)} learned runs"
    )


def _best_constant(seeds: int) -> tuple[Losses, float, int]:
    """Losses of Adam at the constant rate that is best on the reported seeds: a choice that favours it."""
    draw = Draw(make_workload(WORKLOAD, np.random.default_rng(0)), make_optimizer("adam"), STEPS)
    peaks = peak_grid("adam", 9)
    cells = [(peak, REPORT_SEED + seed) for peak in peaks for seed in range(seeds)]
    trace = run_schedules(draw, [c[1] for c in cells], ["constant"] * len(cells), [c[0] for c in cells])
    losses = trace.heldout_loss.reshape(len(peaks), seeds)
    best = int(np.argmin([centre(row) for row in losses]))
    return losses[best], float(peaks[best]), len(peaks)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=not sys.stdout.isatty(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/demo"))
