"""``rlrate compare`` and ``rlrate bench``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    suite: Annotated[
        str | None,
        typer.Option(
            help="A whole suite: smoke, held-out, held-out-15, feedback, long, short, selection, caution, crossed, "
            "kinds, full-batch, starts, optimizers, robustness, validated, or a TOML file. It says what is compared, "
            "so that the options above have no say, --controller aside.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder for the results. A comparison that was stopped goes on there.",
            show_default="runs/comparison, or runs/SUITE",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes over which the runs are spread; the result does not depend on it.",
            show_default="cores",
        ),
    ] = None,
    backend: Annotated[
        str, typer.Option(help='Where the runs are made: local, or ray for a Ray cluster ("rlrate[ray]").')
    ] = "local",
    reuse: Annotated[
        Path | None,
        typer.Option(
            help="With --suite: folder of an earlier comparison, whose runs count where nothing about them is new: "
            "those of all rivals, when only the controller is new.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what results.json or suite.json holds.")] = False,
) -> None:
    """Compare a controller, which is given no learning rate, with hand-tuned schedules.

    Example:  rlrate compare --workload digits-cnn --optimizer adam --steps 400

    Example:  rlrate compare --suite smoke --out runs/smoke

    Every schedule runs at the best learning rate of a grid, found for it on other seeds.

    All methods then start from the same weights and see the same batches.
    """
    with waiting("loading the comparison"):
        from rlrate import experiments
    settings: dict[str, Any] = {
        "controller": controller,
        "workers": workers or os.cpu_count() or 1,
        "backend": backend,
        "command": _command_line(),
    }
    if suite is not None:
        given = {"--workload": workload, "--optimizer": optimizer, "--schedule": schedule}
        for name, value in given.items():
            if value:
                raise ConfigError(f"{name} and --suite exclude each other: the suite says what is compared")
        _run_suite(suite, out or Path("runs") / Path(suite).stem, {**settings, "reuse": reuse}, as_json)
        return
    if reuse is not None:
        raise ConfigError("--reuse needs --suite")
    out = out or Path("runs/comparison")
    with Steps("comparing") as progress, _kept(out):
        comparison = experiments.compare(
            workload or DEFAULT_WORKLOADS,
            optimizer or DEFAULT_OPTIMIZERS,
            steps=steps,
            schedules=schedule,
            grid=grid,
            seeds=seeds,
            tuning_seeds=tuning_seeds,
            out=out,
            progress=progress.step,
            **settings,
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


def _run_suite(suite: str, out: Path, settings: dict[str, Any], as_json: bool) -> None:
    from rlrate.controller import Controller
    from rlrate.experiments import run_suite
    from rlrate.experiments.oracle import save_oracle
    from rlrate.experiments.overview import suite_table

    with Steps("comparing") as progress, _kept(out):
        results = run_suite(suite, out, progress=progress.step, **settings)
    with Steps("noisy quadratic") as progress:
        save_oracle(out, Controller.load(settings["controller"]), progress.step)
    if as_json:
        say_json({**results.suite, "complete": results.complete, "files": sorted(out.glob("[!.]*"))})
        return
    stdout().print(suite_table(results))
    say(f"{len(results.rows)} runs: {out / 'results.jsonl'}")


@contextmanager
def _kept(out: Path) -> Iterator[None]:
    """Says on Ctrl-C that nothing finished is lost."""
    try:
        yield
    except KeyboardInterrupt:
        note(f"finished runs are kept in {out}; the same command goes on with the others")
        raise


def _command_line() -> str:
    return shlex.join(["rlrate", *sys.argv[1:]])


def bench(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="scheduler, environment or comparison")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure what the scheduler costs, or how fast training environment or comparison are, on this machine.

    Example:  rlrate bench scheduler --json

    Example:  rlrate bench environment --json

    Example:  rlrate bench comparison --json

    The scheduler is measured beside CosineAnnealingLR, populations of networks beside a plain torch loop of one
    network, the grid of the suite smoke beside a plain loop for each of its runs, each in the same run.
    """
    if what not in _BENCHMARKS:
        raise ConfigError(unknown_name("benchmark", what, _BENCHMARKS))
    note("measuring for some minutes; other work on this machine spoils the figures")
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


def _comparison() -> dict[str, Any]:
    from rlrate.experiments.bench import comparison_benchmark

    return comparison_benchmark()


_BENCHMARKS: dict[str, Callable[[], dict[str, Any]]] = {
    "comparison": _comparison,
    "environment": _environment,
    "scheduler": _scheduler,
}


def _lines(figures: dict[str, Any], indent: str = "") -> list[str]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name}: {f'{value:,.4g}' if isinstance(value, float) else value}")
    return lines
