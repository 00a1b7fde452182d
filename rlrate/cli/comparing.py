"""``rlrate compare`` and ``rlrate bench``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rlrate.cli.terminal import Steps, note, say, say_json, stdout, waiting
from rlrate.errors import ConfigError, unknown_name

DEFAULT_WORKLOADS = ["digits-cnn"]
DEFAULT_OPTIMIZERS = ["momentum", "adagrad", "rmsprop", "adam"]


def compare(
    workload: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of `rlrate workloads`, or file.py:function. Repeatable.",
            show_default=", ".join(DEFAULT_WORKLOADS),
        ),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(help="Repeatable.", show_default=", ".join(DEFAULT_OPTIMIZERS)),
    ] = None,
    steps: Annotated[int, typer.Option(help="Updates of each run.")] = 400,
    controller: Annotated[str, typer.Option(help="Controller file, or the name of a bundled one.")] = "default",
    schedule: Annotated[
        list[str] | None, typer.Option(help="Hand-tuned rival. Repeatable.", show_default="all there are")
    ] = None,
    grid: Annotated[int, typer.Option(help="Learning rates tried for each schedule.")] = 9,
    seeds: Annotated[int, typer.Option(help="Paired seeds of the final runs.")] = 5,
    tuning_seeds: Annotated[int, typer.Option(help="Seeds with which the learning rates are tuned.")] = 2,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for results.json and pictures.")] = Path(
        "runs/comparison"
    ),
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes over which workloads and optimizers are spread; the result does not depend on it.",
            show_default="cores",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what results.json holds.")] = False,
) -> None:
    """Compare a controller, which is given no learning rate, with hand-tuned schedules.

    Example:  rlrate compare --workload digits-cnn --optimizer adam --steps 400

    Every schedule runs at the best learning rate of a grid, found for it on other seeds.

    All methods then start from the same weights and see the same batches.
    """
    with waiting("loading the comparison"):
        from rlrate import experiments
    with Steps("comparing") as progress:
        comparison = experiments.compare(
            workload or DEFAULT_WORKLOADS,
            optimizer or DEFAULT_OPTIMIZERS,
            steps=steps,
            controller=controller,
            schedules=schedule,
            grid=grid,
            seeds=seeds,
            tuning_seeds=tuning_seeds,
            out=out,
            workers=workers or os.cpu_count() or 1,
            progress=progress.step,
        )
    files = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    if as_json:
        say_json(json.loads((out / "results.json").read_text(encoding="utf-8")) | {"files": files})
        return
    stdout().print(comparison.table())
    total = comparison.summary()["all"]
    low, high = total["interval"]
    say(
        f"learned / best tuned schedule of the same optimizer: {total['ratio']:.3f} (95 % interval {low:.3f} .. "
        f"{high:.3f}); {total['diverged']} of {total['runs']} learned runs diverged"
    )
    for path in files:
        say(f"  {path}")


def bench(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="scheduler or environment")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure what the scheduler costs, or how fast the training environment is, on this machine.

    Example:  rlrate bench scheduler --json

    Example:  rlrate bench environment --json

    The scheduler is measured beside CosineAnnealingLR, populations of networks beside a plain torch loop of one
    network, each in the same run.
    """
    if what not in _BENCHMARKS:
        raise ConfigError(unknown_name("benchmark", what, _BENCHMARKS))
    note("measuring for a minute or two; other work on this machine spoils the figures")
    with waiting("measuring"):
        figures = _BENCHMARKS[what]()
    if as_json:
        say_json(figures)
        return
    for line in _lines(figures):
        say(line)


def _scheduler() -> dict[str, Any]:
    from rlrate.bench import scheduler_benchmark

    return scheduler_benchmark()


def _environment() -> dict[str, Any]:
    from rlrate.envs.bench import environment_benchmark

    return environment_benchmark()


_BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {"environment": _environment, "scheduler": _scheduler}


def _lines(figures: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {f'{value:,.4g}' if isinstance(value, float) else value}")
    return lines
