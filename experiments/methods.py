"""The registry of methods: what is compared, one small declaration each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from rlrate.envs import OPTIMIZERS
from rlrate.experiments.schedules import GRADIENT_NORM, GREEDY, PLATEAU, schedule_help, schedule_names

__all__ = ["LEARNED", "METHODS", "Method", "default_rate", "entrant_names"]

LEARNED = "learned"


@dataclass(frozen=True)
class Method:
    """One competitor.

    Attributes:
        name: Unique.
        group: "schedule", "learned", "control", "default", "self-tuning" or "search".
        what: One line for people.
        task: How it is run; see `rlrate.experiments.cells`.
        optimizer: What replaces the optimizer of the problem, if anything.
        schedule: Schedule of a default.
        rate: Learning rate of a default; None for torch's.
        budget: Trials that it makes by itself, in whole runs, rounded up.
        validated: Whether the controller is shown the loss on the problem's validation part at every decision.
        told: Whether the controller is told how many updates make an epoch.
    """

    name: str
    group: str
    what: str
    task: str
    optimizer: str = ""
    schedule: str = "constant"
    rate: float | None = None
    budget: int = 0
    validated: bool = False
    told: bool = True


def default_rate(optimizer: str) -> float:
    """The learning rate that torch gives an optimizer."""
    return float(inspect.signature(OPTIMIZERS[optimizer].torch_class).parameters["lr"].default)


def _default(optimizer: str) -> Method:
    rate = default_rate(optimizer)
    settings = ", ".join(f"{key} {value}" for key, value in OPTIMIZERS[optimizer].defaults.items())
    return Method(
        optimizer,
        "default",
        f"torch's {OPTIMIZERS[optimizer].torch_class.__name__}{f' ({settings})' if settings else ''} "
        f"at its default rate {rate:g}, constant",
        "defaults",
        optimizer=optimizer,
        rate=rate,
    )


_REACTIVE = {
    PLATEAU: "Halved when the training loss has not fallen for three of 40 intervals (torch's ReduceLROnPlateau).",
    GREEDY: "Raised after each of 60 intervals in which the loss improved on its best, else lowered (GreedyLR).",
    GRADIENT_NORM: "Lowered while the gradient's norm is above its slow average, raised while below.",
}

_ALL = [
    *(
        Method(name, "schedule", _REACTIVE[name] if name in _REACTIVE else schedule_help(name), "schedules")
        for name in schedule_names()
    ),
    Method(LEARNED, "learned", "The controller; given no learning rate and no trial.", "controlled"),
    Method("learned-adam", "learned", "The same on Adam, in place of the problem's optimizer.", "controlled", "adam"),
    Method(
        "learned-untold",
        "learned",
        "The same as learned, not told how many updates make an epoch.",
        "controlled",
        told=False,
    ),
    Method(
        "learned-validated",
        "learned",
        "The same, shown a validation loss at every decision.",
        "controlled",
        validated=True,
    ),
    Method("adam-1e-3-constant", "default", "Adam at 1e-3, constant.", "defaults", optimizer="adam", rate=1e-3),
    Method(
        "adam-1e-3-cosine",
        "default",
        "Adam under a cosine from 1e-3.",
        "defaults",
        optimizer="adam",
        schedule="cosine",
        rate=1e-3,
    ),
    Method(
        "adam-1e-3-greedy",
        "default",
        "Adam under GreedyLR's rule from 1e-3.",
        "defaults",
        optimizer="adam",
        schedule=GREEDY,
        rate=1e-3,
    ),
    Method(
        "default-greedy",
        "default",
        "GreedyLR's rule on the problem's optimizer, from torch's default rate.",
        "defaults",
        schedule=GREEDY,
    ),
    *(_default(name) for name in OPTIMIZERS),
    Method("lookahead-adam", "default", "Lookahead (k 5, alpha 0.5) around Adam at 1e-3.", "loop", rate=1e-3),
    Method("schedule-free-adamw", "self-tuning", "Schedule-Free AdamW, defaults, warm-up over 5 %.", "loop"),
    Method("schedule-free-sgd", "self-tuning", "Schedule-Free SGD, defaults, warm-up over 5 %.", "loop"),
    Method("prodigy", "self-tuning", "Prodigy, defaults, under a cosine as its authors advise.", "loop"),
    Method("d-adaptation-adam", "self-tuning", "D-Adaptation (Adam), defaults, under a cosine.", "loop"),
    Method("d-adaptation-sgd", "self-tuning", "D-Adaptation (SGD, momentum 0.9), defaults, under a cosine.", "loop"),
    Method(
        "range-test-cosine",
        "search",
        "Learning-rate range test, then a cosine from a tenth of the rate with the lowest loss.",
        "search",
        budget=1,
    ),
    Method(
        "bayesian",
        "search",
        "Rate chosen by Bayesian optimisation (Optuna's TPE) in each of 8 stages, as AutoLRS does.",
        "search",
        budget=2,
    ),
    Method(
        "replay",
        "control",
        "The learned schedule without feedback: its mean log rate on the tuning seeds, replayed.",
        "controlled",
        budget=1,
    ),
    Method(
        "time-only",
        "control",
        "The controller sees the clock only; other signals are fixed at their mean on the tuning seeds.",
        "controlled",
        budget=1,
    ),
    Method(
        "open-loop",
        "control",
        "The controller's mean action of the moment over draws of the training part, whatever it sees here.",
        "open-loop",
    ),
    Method("random", "control", "Random actions in place of the controller's.", "controlled"),
    Method(
        "hold",
        "control",
        "No action: the rate stays where the start and the fixed rules put it.",
        "controlled",
    ),
]

#: Every method by name.
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def entrant_names() -> list[str]:
    """Names of the methods that are not tuned over a grid."""
    return [method.name for method in _ALL if method.group != "schedule"]
