"""Suites: what a comparison compares, read from files that people can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rlrate.envs import OPTIMIZERS, Workload, make_optimizer, make_workload
from rlrate.envs.extending import read_extending
from rlrate.envs.training import Draw
from rlrate.envs.workloads.models import MLP, ConvNet
from rlrate.errors import ConfigError, unknown_name
from rlrate.experiments.methods import METHODS, entrant_names
from rlrate.experiments.schedules import schedule_names

__all__ = ["GRID_CENTRE", "REPORT_SEED", "Problem", "Suite", "load_suite", "make_draw", "peak_grid", "suite_names"]

_FOLDER = Path(__file__).parent / "suites"

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


@dataclass(frozen=True)
class Problem:
    """What every method of a suite is run on.

    Attributes:
        workload: Name, or "file.py:function".
        optimizer: Name of the optimizer whose rate is scheduled.
        steps: Budget of every run, in updates.
        kind: Free text that groups problems in a report.
        batch: Examples per update; None for the workload's own.
        start: Learning rates given at the start; each adds runs of role "start".
        width: Factor on the width of hidden layers, for workloads whose network is the built-in MLP or ConvNet.
        depth: Factor on their number.
        sample: Seed with which a family is sampled.
        validation: Held-out examples, at most half of them, that judge no run: a controller may be shown their loss.
        name: Unique in the suite; made of the others if empty.
    """

    workload: str
    optimizer: str
    steps: int
    kind: str = ""
    batch: int | None = None
    start: tuple[float, ...] = ()
    width: float = 1.0
    depth: int = 1
    sample: int = 0
    validation: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        for label in ("workload", "optimizer", "kind", "name"):
            if not isinstance(getattr(self, label), str):
                raise ConfigError(f"a problem's {label} must be text, got {getattr(self, label)!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(unknown_name("optimizer", self.optimizer, OPTIMIZERS))
        for label, least in (("steps", 1), ("depth", 1), ("sample", 0), ("validation", 0)):
            check_integer(label, getattr(self, label), least)
        if self.batch is not None:
            check_integer("batch", self.batch, 1)
        if isinstance(self.width, bool) or not isinstance(self.width, int | float) or not self.width > 0:
            raise ConfigError(f"width must be a positive factor, got {self.width!r}")
        if not all(isinstance(rate, int | float) and 0 < rate < np.inf for rate in self.start):
            raise ConfigError(f"start must list positive learning rates, got {list(self.start)!r}")
        object.__setattr__(self, "start", tuple(float(rate) for rate in self.start))
        object.__setattr__(self, "width", float(self.width))
        if not self.name:
            object.__setattr__(self, "name", self._describe())

    def to_dict(self) -> dict[str, Any]:
        """Its attributes; a validation part, which came later, is named only where there is one."""
        plain = asdict(self)
        if not self.validation:
            del plain["validation"]
        return plain

    def _describe(self) -> str:
        parts = [self.workload, self.optimizer, str(self.steps)]
        parts += [f"batch {self.batch}"] if self.batch is not None else []
        parts += [f"width x{self.width:g}"] if self.width != 1.0 else []
        parts += [f"depth x{self.depth}"] if self.depth != 1 else []
        parts += [f"sample {self.sample}"] if self.sample else []
        return " ".join(parts)


@dataclass(frozen=True)
class Suite:
    """A whole comparison, apart from the controller.

    Attributes:
        name: What it is called.
        title: One line for people.
        problems: What is trained.
        schedules: Tuned over a grid of peak rates, with the optimizer of the problem.
        entrants: Methods that are given no trials.
        seeds: Number of reported runs of each method.
        tuning_seeds: Number of other runs with which the peak rates are chosen.
        rates: Number of peak rates in a grid.
        whole_grid: Whether each schedule is run at each rate on the reported seeds too: then it is known what a search
            that chooses by the tuning seeds ends with.
    """

    name: str
    title: str
    problems: tuple[Problem, ...]
    schedules: tuple[str, ...] = field(default_factory=lambda: tuple(schedule_names()))
    entrants: tuple[str, ...] = ("learned",)
    seeds: int = 5
    tuning_seeds: int = 2
    rates: int = 9
    whole_grid: bool = False

    def __post_init__(self) -> None:
        for label in ("seeds", "tuning_seeds", "rates"):
            check_integer(label, getattr(self, label), 1)
        if not isinstance(self.whole_grid, bool):
            raise ConfigError(f"whole_grid must be true or false, got {self.whole_grid!r}")
        if self.tuning_seeds > REPORT_SEED:
            raise ConfigError(f"tuning_seeds must be at most {REPORT_SEED}, so that no run is both tuned and reported")
        for name in self.schedules:
            if name not in schedule_names():
                raise ConfigError(unknown_name("schedule", name, schedule_names()))
        for name in self.entrants:
            if name not in entrant_names():
                raise ConfigError(unknown_name("entrant", name, entrant_names()))
        for label in ("schedules", "entrants"):
            if len(set(getattr(self, label))) < len(getattr(self, label)):
                raise ConfigError(f"{label} names something twice: {', '.join(getattr(self, label))}")
        if not self.problems or not self.schedules:
            raise ConfigError("a comparison needs at least one problem (workload and optimizer) and one schedule")
        without = [problem.name for problem in self.problems if not problem.validation]
        shown = [name for name in self.entrants if METHODS[name].validated]
        if shown and without:
            raise ConfigError(
                f"{shown[0]} is shown a validation loss, but {without[0]} has no examples for it: set validation, a "
                "number of held-out examples, in the suite or the problem"
            )
        names = [problem.name for problem in self.problems]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"two problems are called {twice!r}: give one of them another name")

    @property
    def methods(self) -> tuple[str, ...]:
        """Schedules, then entrants."""
        return (*self.schedules, *self.entrants)

    @property
    def report_seeds(self) -> list[int]:
        """Seeds of the reported runs."""
        return [REPORT_SEED + index for index in range(self.seeds)]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, as in ``suite.json``."""
        problems = [
            {**p.to_dict(), "start": list(p.start) or None, "grid": peak_grid(p.optimizer, self.rates).tolist()}
            for p in self.problems
        ]
        return {
            "name": self.name,
            "title": self.title,
            "seeds": self.report_seeds,
            "tuning_seeds": list(range(self.tuning_seeds)),
            "rates": self.rates,
            "schedules": list(self.schedules),
            "entrants": list(self.entrants),
            **({"whole_grid": True} if self.whole_grid else {}),
            "problems": problems,
            "methods": {name: {"group": METHODS[name].group, "what": METHODS[name].what} for name in self.methods},
        }


def suite_names() -> list[str]:
    """The bundled suites."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def _bundled(name: str) -> Path:
    if name not in suite_names():
        raise ConfigError(f"{unknown_name('suite', name, suite_names())}, or a file that ends in .toml")
    return _FOLDER / f"{name}.toml"


def load_suite(name: str) -> Suite:
    """Reads a suite; with ``extends = "held-out"`` (a name or a path) what it does not say is as there.

    A ``[[problem]]`` whose optimizer is a list of names stands for one problem with each.

    Args:
        name: A bundled suite, or the path of a TOML file.

    Raises:
        ConfigError: There is none, it is no TOML, or it says something unknown; the message names the file.
    """
    path = Path(name) if name.endswith(".toml") else _bundled(name)
    try:
        data = read_extending(path, _bundled)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no suite {error.filename!r}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the suite {error.filename}: {error.strerror}") from None
    try:
        return _read_suite(path.stem, data)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _read_suite(name: str, data: dict[str, Any]) -> Suite:
    tables = data.pop("problem", None)
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError("a suite lists its problems as [[problem]] tables")
    common = {"validation": data.pop("validation")} if "validation" in data else {}
    started = data.pop("starts", True)
    if not isinstance(started, bool):
        raise ConfigError(f"starts must be true or false, got {started!r}")
    known = {f.name for f in fields(Suite)} - {"name", "problems"}
    _check_entries("suite", data, known, {"title"})
    problems = []
    for table in tables:
        _check_entries("[[problem]]", table, {f.name for f in fields(Problem)}, {"workload", "optimizer", "steps"})
        start = table.get("start", []) if started else []
        starts = start if isinstance(start, list) else [start]
        optimizers = table["optimizer"] if isinstance(table["optimizer"], list) else [table["optimizer"]]
        if not optimizers:
            raise ConfigError(f"optimizer of {table['workload']!r} is an empty list: name at least one")
        for optimizer in optimizers:
            problems.append(Problem(**{**common, **table, "optimizer": optimizer, "start": tuple(starts)}))
    for key in ("schedules", "entrants"):
        if key in data:
            data[key] = _names(key, data[key])
    return Suite(**data, name=name, problems=tuple(problems))


def _names(label: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(f"{label} must be a list of names")
    return tuple(value)


def _check_entries(where: str, table: Mapping[str, Any], known: set[str], needed: set[str]) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(unknown_name(f"entry of {where}", key, sorted(known)))
    missing = needed - set(table)
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(sorted(missing))}")


def check_integer(label: str, value: Any, least: int) -> None:
    """Raises a ConfigError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        what = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ConfigError(f"{label} must be {what}, got {value!r}")


def peak_grid(optimizer: str, size: int) -> NDArray[np.float64]:
    """``size`` peak rates, log-spaced over the four decades around the optimizer's usual rate."""
    middle = GRID_CENTRE[optimizer]
    return np.array([10.0**middle]) if size == 1 else np.logspace(middle - 2, middle + 2, size)


@lru_cache(maxsize=32)
def make_draw(problem: Problem) -> Draw:
    """Workload, optimizer and budget of a problem.

    Raises:
        WorkloadError: The workload is unknown or does not work.
        ConfigError: Its network cannot be scaled as the problem asks.
    """
    workload = make_workload(problem.workload, np.random.default_rng(problem.sample))
    if problem.width != 1.0 or problem.depth != 1:
        workload = _scaled(workload, problem.width, problem.depth)
    if problem.batch is not None:
        workload = replace(workload, batch_size=min(problem.batch, len(workload.train[0])))
    if problem.validation:
        workload = workload.with_validation(problem.validation)
    return Draw(workload, make_optimizer(problem.optimizer), problem.steps)


def _scaled(workload: Workload, width: float, depth: int) -> Workload:
    make = workload.make_model
    if not (isinstance(make, partial) and make.func in (MLP, ConvNet) and len(make.args) == 3):
        raise ConfigError(
            f"{workload.name}: width and depth can be scaled for networks of the built-in MLP and ConvNet only"
        )
    *shape, hidden = make.args
    wide = [max(1, round(width * units)) for units in hidden]
    deep = [units for units in wide for _ in range(depth)]
    network: Callable[..., nn.Module] = make.func
    return replace(workload, make_model=partial(network, *shape, deep, **make.keywords))
