"""One number for research on controllers: how far behind tuned schedules over many drawn workloads.

``python -m rlrate.experiments.regret CONTROLLER [CONTROLLER ...]`` prints, for each controller, the mean and median of
log(final held-out loss / that of the best tuned schedule) over a fixed set of draws. A number in the place of a
controller stands for one that always answers it; ``--family NAME`` draws from one family of the training part instead
of all. The references are kept in ``runs/regret.json``.

``python -m rlrate.experiments.regret --against DIR CONTROLLER [CONTROLLER ...]`` runs the controllers on the problems
of the comparison in DIR, such as one of the suite ``selection``, and prints the ratio to what its tuning would choose.

``python -m rlrate.experiments.regret --workload my_file.py:make --optimizer adam --steps 200,1000 ONE OTHER`` runs both
on the same fresh draws and prints the ratio of their final held-out losses, with an interval.

``python -m rlrate.experiments.regret --starts DIR`` prints, of the comparison in DIR, how many learned runs from given
rates diverged, and by how much their final losses differ between the rates.

``python -m rlrate.experiments.regret --between DIR OTHER`` prints the loss of the learned scheduler in one comparison
relative to that in another with another controller, over the problems and seeds that both have, with an interval over
seeds, and by problem. ``--on SUITE [--seeds 2,16] ONE [MORE ...] OTHER`` prints the same of controllers that it runs on
the problems of a suite, each relative to the last, without anything else that the suite compares; and a second
interval, over what other workloads of such kinds might have shown. Where workloads come under several optimizers, the
ratio for each of these too. With ``--validation 64`` the loss on so many held-out examples is shown at every decision,
and the others judge; with ``--untold`` nobody says how many updates make an epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.agents import run_controller
from rlrate.controller import Controller
from rlrate.envs import TrainingConfig, TrainingRuns
from rlrate.envs.split import load_part
from rlrate.envs.training import sample_draw
from rlrate.errors import ConfigError
from rlrate.experiments.compare import peak_grid
from rlrate.experiments.runs import run_controlled, run_schedules
from rlrate.experiments.statistics import Interval, clustered_interval, paired_difference
from rlrate.experiments.store import Results, load
from rlrate.experiments.suite import Problem, Suite, load_suite, make_draw
from rlrate.storage import write_atomically

#: Schedules whose best is the reference, each at the best of nine peak rates.
RIVALS = ("cosine", "warmup-cosine")

#: A loss that is not finite counts as this one.
BROKEN = 1e6


@dataclass(frozen=True)
class RegretSet:
    """Draws on which controllers are judged; they share no seed with any training.

    Attributes:
        families: Workload families to draw from: those of the training part, and no other.
        steps: Budgets, log-uniform.
        draws: Number of draws.
        runs: Networks for each.
        seed: Determines the draws.
    """

    families: tuple[str, ...] = tuple(load_part("training").families)
    steps: tuple[int, int] = (200, 600)
    draws: int = 32
    runs: int = 4
    seed: int = 777

    @property
    def config(self) -> TrainingConfig:
        """Where the draws come from."""
        return TrainingConfig(workload=list(self.families), steps=self.steps)


def references(judged: RegretSet) -> NDArray[np.float64]:
    """Mean log held-out loss of the best tuned schedule for each draw, shape (draws,).

    The rate is chosen on the very runs it is reported for, which favours the schedules.
    """
    best = []
    for index in range(judged.draws):
        seed = (judged.seed, 0, index)
        draw = sample_draw(judged.config, seed)
        seeds = TrainingRuns.sample(judged.config, seed, range(judged.runs)).seeds
        peaks = peak_grid(draw.optimizer.name, 9)
        cells = [(name, peak, s) for name in RIVALS for peak in peaks for s in seeds]
        trace = run_schedules(draw, [c[2] for c in cells], [c[0] for c in cells], [c[1] for c in cells])
        logs = _log(trace.heldout_loss).reshape(-1, judged.runs).mean(axis=1)
        best.append(logs.min())
    return np.array(best)


def regrets(controller: Controller, judged: RegretSet, reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(loss / reference) of ``controller`` for each draw, shape (draws,)."""
    # Every run starts as users' runs do.
    start = controller.spec.action.start
    config = replace(judged.config, spec=controller.spec)
    if start is not None:
        config = replace(config, start=start)
    values = []
    for index in range(judged.draws):
        runs = TrainingRuns.sample(config, (judged.seed, 0, index), range(judged.runs))
        run_controller(controller, runs)
        values.append(_log(runs.heldout_loss).mean())
    return np.array(values) - reference


def ratios(controller: Controller, results: Results) -> dict[str, tuple[float, str]]:
    """For each problem the ratio of ``controller`` to the configuration that is best on the tuning seeds, and its name.

    The ratio is the geometric mean over the reported seeds; problems that are not finished are left out.
    """
    found = {}
    for entry in results.suite["problems"]:
        mine = [row for row in results.rows if row.problem == entry["name"]]
        tried: dict[tuple[str, float], list[float]] = {}
        for row in mine:
            if row.role == "tune" and row.peak is not None:
                tried.setdefault((row.method, row.peak), []).append(row.heldout_loss)
        if not tried:
            continue
        method, peak = min(tried, key=lambda key: _log(np.array(tried[key])).mean())
        losses = {row.seed: row.heldout_loss for row in mine if (row.role, row.method) == ("report", method)}
        if not losses:
            continue
        problem = Problem(**{f.name: entry[f.name] for f in fields(Problem) if f.name in entry and f.name != "start"})
        runs = TrainingRuns(TrainingConfig(spec=controller.spec), make_draw(problem), sorted(losses))
        run_controller(controller, runs)
        behind = _log(runs.heldout_loss) - _log(np.array([losses[seed] for seed in sorted(losses)]))
        found[problem.name] = (float(np.exp(behind.mean())), f"{method} at {peak:.3g}")
    return found


def _print_ratios(name: str, controller: Controller, results: Results) -> None:
    found = ratios(controller, results)
    values = np.array([ratio for ratio, _ in found.values()])
    print(f"{name}: {np.exp(np.log(values).mean()):.3f}, worst {values.max():.2f}, {len(values)} problems")
    for problem, (ratio, rival) in found.items():
        print(f"  {problem}: {ratio:.3f} of {rival}")


def duel(one: Controller, other: Controller, config: TrainingConfig, draws: int = 16, runs: int = 5) -> Interval:
    """Ratio of the final held-out loss of ``one`` to that of ``other`` over paired runs, geometric mean.

    The interval is over draws and seeds. Draws and seeds are shared with no training.
    """
    logs = np.empty((2, draws, runs))
    for number, controller in enumerate((one, other)):
        # Every run starts as users' runs do.
        own = replace(config, spec=controller.spec, start=controller.spec.action.start or config.start)
        for index in range(draws):
            population = TrainingRuns.sample(own, (RegretSet.seed, 1, index), range(runs))
            run_controller(controller, population)
            logs[number, index] = _log(population.heldout_loss)
    return Interval(*np.exp(clustered_interval(logs[0] - logs[1])).tolist())


def starts(results: Results) -> tuple[int, int, float]:
    """Learned runs from given rates, how many diverged, and the largest ratio of losses less one.

    The ratio is between the rates of one problem, each the geometric mean over its seeds.
    """
    rows = [row for row in results.rows if (row.method, row.role) == ("learned", "start")]
    groups: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        assert row.start is not None
        groups.setdefault(row.problem, {}).setdefault(row.start, []).append(row.heldout_loss)
    ranges = [np.ptp([_log(np.array(losses)).mean() for losses in group.values()]) for group in groups.values()]
    return len(rows), sum(row.diverged for row in rows), float(np.expm1(max(ranges, default=math.nan)))


def between(one: Results, other: Results, method: str) -> tuple[Interval, dict[str, float]]:
    """Ratio of a method's final held-out loss in one comparison to that in another, and the same by problem.

    Geometric means over the problems and seeds that both have; the interval is over seeds.

    Raises:
        ConfigError: when they share no problem of which both have the same reported seeds.
    """
    losses: list[dict[str, dict[int, float]]] = [{}, {}]
    for found, results in zip(losses, (one, other), strict=True):
        for row in results.rows:
            if (row.method, row.role) == (method, "report"):
                found.setdefault(row.problem, {})[row.seed] = row.heldout_loss
    shared = [name for name in losses[0] if name in losses[1]]
    seeds = sorted(set.intersection(*(set(found[name]) for found in losses for name in shared))) if shared else []
    if not seeds:
        raise ConfigError(f"the comparisons share no reported runs of {method!r}; run one suite with both controllers")
    logs = np.array([[_log(np.array([found[name][seed] for seed in seeds])) for name in shared] for found in losses])
    return _paired(logs, shared)


@dataclass(frozen=True)
class Told:
    """What controllers are told beside what they see.

    Attributes:
        epochs: How many updates make an epoch.
        validation: The loss on so many held-out examples, at most half of them, at every decision; the others judge.
    """

    epochs: bool = True
    validation: int = 0


def on_suite(controller: Controller, suite: Suite, seeds: Sequence[int], told: Told = Told()) -> NDArray[np.float64]:
    """Log of the final held-out loss of a controller on the problems of a suite, shape (problems, seeds)."""
    logs = []
    for problem in suite.problems:
        draw = make_draw(replace(problem, validation=told.validation or problem.validation))
        spec, answer = controller.spec, controller.answer
        trace = run_controlled(draw, seeds, spec, answer, validated=told.validation > 0, told=told.epochs)
        logs.append(_log(trace.heldout_loss))
    return np.array(logs)


def side_by_side(
    one: Controller, other: Controller, suite: Suite, seeds: Sequence[int]
) -> tuple[Interval, dict[str, float]]:
    """Ratio of the final held-out loss of ``one`` to that of ``other`` on the problems of a suite, and by problem.

    Geometric means over problems and seeds; the interval is over seeds.
    """
    logs = np.array([on_suite(controller, suite, seeds) for controller in (one, other)])
    return _paired(logs, [problem.name for problem in suite.problems])


def over_workloads(difference: NDArray[np.float64], workloads: Sequence[str]) -> Interval:
    """Geometric mean of ratios, with an interval from redrawn workloads, then seeds within each.

    Args:
        difference: Log ratios, shape (problems, seeds).
        workloads: Of each problem the name of its workload; problems that share one are redrawn together.
    """
    names = list(dict.fromkeys(workloads))
    rows = [difference[[workload == name for workload in workloads]].mean(axis=0) for name in names]
    return Interval(*np.exp(clustered_interval(np.array(rows))).tolist())


def _paired(logs: NDArray[np.float64], problems: Sequence[str]) -> tuple[Interval, dict[str, float]]:
    """Ratio of the first of two to the second from log losses of shape (2, problems, seeds), and by problem."""
    ratio = Interval(*np.exp(paired_difference(logs[0], logs[1])).tolist())
    return ratio, dict(zip(problems, np.exp((logs[0] - logs[1]).mean(axis=1)).tolist(), strict=True))


def main(arguments: Sequence[str], cache: Path = Path("runs/regret.json")) -> None:
    """Prints one line for each controller."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser("python -m rlrate.experiments.regret", description="Judges controllers.")
    parser.add_argument("controllers", nargs="*", help="files, bundled names, numbers; methods with --between")
    parser.add_argument("--family", choices=load_part("training").families, help="of the training part; default: all")
    parser.add_argument("--against", metavar="DIR", help="on the problems of this comparison")
    parser.add_argument("--starts", metavar="DIR", help="what given rates do in this comparison")
    parser.add_argument("--between", nargs=2, metavar=("DIR", "OTHER"), help="two controllers by their comparisons")
    parser.add_argument("--on", metavar="SUITE", help="two controllers on the problems of this suite")
    parser.add_argument("--seeds", help="first and last seed with --on; default: those that the suite reports")
    parser.add_argument("--untold", action="store_true", help="with --on: of how many updates make an epoch")
    parser.add_argument("--validation", type=int, default=0, metavar="N", help="with --on: show the loss on N examples")
    parser.add_argument("--workload", help="two controllers on fresh draws of it")
    parser.add_argument("--optimizer", default="adam")
    parser.add_argument("--steps", default="200,1000", help="least and most updates of a draw")
    given = parser.parse_args(arguments)
    names = given.controllers
    if given.starts:
        runs, diverged, difference = starts(load(given.starts))
        print(f"{runs} learned runs from given rates: {diverged} diverged, losses differ by at most {difference:.2%}")
    elif given.between:
        one, other = (load(folder) for folder in given.between)
        for method in names or ["learned"]:
            _print_between(method, *between(one, other, method))
    elif given.on:
        suite = load_suite(given.on)
        seeds = suite.report_seeds
        if given.seeds is not None:
            first, last = _two(given.seeds) or (1, 0)
            seeds = list(range(first, last + 1))
        if len(names) < 2 or not seeds:
            parser.error("--on compares controllers with the last one named, on --seeds FIRST,LAST")
        if given.validation < 0:
            parser.error(f"--validation is a number of examples, got {given.validation}")
        _print_on(names, suite, seeds, Told(not given.untold, given.validation))
    elif given.against:
        results = load(given.against)
        for name in names:
            _print_ratios(name, controller_of(name), results)
    elif given.workload:
        budgets = _two(given.steps)
        if len(names) != 2 or budgets is None:
            parser.error("--workload compares two controllers, over --steps LEAST,MOST")
        config = TrainingConfig(workload=given.workload, optimizer=given.optimizer, steps=budgets)
        ratio = duel(controller_of(names[0]), controller_of(names[1]), config)
        print(f"{names[0]} / {names[1]}: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], 16 draws x 5 runs")
    else:
        _print_regrets(names, cache, RegretSet(families=(given.family,)) if given.family else RegretSet())


def _two(text: str) -> tuple[int, int] | None:
    """Two numbers and a comma; None for anything else."""
    parts = [part.strip() for part in text.split(",")]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else None


def _print_on(names: Sequence[str], suite: Suite, seeds: Sequence[int], told: Told) -> None:
    controllers = [controller_of(name) for name in names]
    other = on_suite(controllers[-1], suite, seeds, told)
    workloads = [problem.workload for problem in suite.problems]
    for name, controller in zip(names[:-1], controllers, strict=False):
        logs = np.array([on_suite(controller, suite, seeds, told), other])
        _print_between(f"{name} / {names[-1]}", *_paired(logs, [problem.name for problem in suite.problems]))
        if len(set(workloads)) > 1:
            wide = over_workloads(logs[0] - logs[1], workloads)
            print(f"  with other workloads: [{wide.low:.3f}, {wide.high:.3f}], {len(set(workloads))} workloads")
        if len(set(workloads)) < len(workloads):
            behind: dict[str, list[float]] = {}
            for problem, row in zip(suite.problems, logs[0] - logs[1], strict=True):
                behind.setdefault(problem.optimizer, []).append(float(row.mean()))
            print("  by optimizer:", ", ".join(f"{k} {np.exp(np.mean(v)):.3f}" for k, v in behind.items()))


def _print_between(name: str, ratio: Interval, parts: dict[str, float]) -> None:
    print(f"{name}: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], {len(parts)} problems")
    for problem, value in parts.items():
        print(f"  {problem}: {value:.3f}")


def _print_regrets(names: Sequence[str], cache: Path, judged: RegretSet) -> None:
    record = json.loads(cache.read_text()) if cache.exists() else {}
    if repr(judged) not in record:
        record[repr(judged)] = references(judged).tolist()
        write_atomically(cache, json.dumps(record).encode())
    for name in names:
        values = regrets(controller_of(name), judged, np.array(record[repr(judged)]))
        print(f"{name}: mean {values.mean():+.3f}, median {np.median(values):+.3f}, worst {values.max():+.2f}")


def _log(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    logs: NDArray[np.float64] = np.log(np.clip(np.where(np.isfinite(losses), losses, BROKEN), 1e-12, BROKEN))
    return logs


def controller_of(name: str) -> Controller:
    """The controller of a bundled name or a file; one that always answers it for a number."""
    try:
        return Controller.constant(float(name))
    except ValueError:
        return Controller.load(name)


if __name__ == "__main__":
    main(sys.argv[1:])
