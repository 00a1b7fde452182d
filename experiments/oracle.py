"""The noisy quadratic, where the best schedule can be computed: optimal, greedy and learned side by side.

Under SGD the second moment of each coordinate's error follows a recursion (see `rlrate.envs.workloads.quadratic`), so
the expected loss of any schedule is known in closed form. The schedule that is best at the end is found by numerical
optimisation; the one that is best at each single step falls far behind it (short-horizon bias; Wu et al., 2018).

``python -m rlrate.experiments.oracle DIR [CONTROLLER]`` writes ``DIR/oracle.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.controller import Controller
from rlrate.envs import make_optimizer, make_workload
from rlrate.envs.training import Draw
from rlrate.envs.workloads.quadratic import QuadraticWorkload
from rlrate.errors import ConfigError
from rlrate.experiments.engine import Report
from rlrate.experiments.runs import run_controlled, run_tables
from rlrate.experiments.schedules import factor_table
from rlrate.experiments.store import to_json
from rlrate.experiments.suite import REPORT_SEED
from rlrate.storage import write_atomically

__all__ = ["NoisyQuadratic", "greedy_schedule", "optimal_schedule", "oracle", "save_oracle"]

Array = NDArray[np.float64]

WORKLOAD = "quadratic-20"
STEPS = 400
SEEDS = 32

#: Learning rates among which schedules are looked for, times the largest curvature; 2 is the limit of stability.
BOUNDS = (1e-6, 2.0)


@dataclass(frozen=True)
class NoisyQuadratic:
    """Expected losses of SGD on a noisy quadratic.

    Attributes:
        curvature: Eigenvalues h, shape (D,).
        noise: Variance of the noise of a minibatch's optimum, sigma^2 / b, shape (D,).
        start: Second moment of the error at the start, shape (D,).
    """

    curvature: Array
    noise: Array
    start: Array

    @classmethod
    def of(cls, workload: QuadraticWorkload) -> NoisyQuadratic:
        """That of a workload; its start is standard normal around the origin."""
        sigma = workload.sigma.double().numpy()
        return cls(
            workload.curvature.double().numpy(),
            sigma**2 / workload.batch_size,
            1.0 + workload.optimum.double().numpy() ** 2,
        )

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest rate to look at."""
        steepest = float(self.curvature.max())
        return BOUNDS[0] / steepest, BOUNDS[1] / steepest

    def loss(self, moment: Array) -> float:
        """Expected excess loss where the error has this second moment."""
        return float(0.5 * (self.curvature * moment).sum())

    def advance(self, moment: Array, rate: float) -> Array:
        """The second moment after an update: (1 - a h)^2 m + (a h)^2 sigma^2 / b."""
        step = rate * self.curvature
        moved: Array = (1.0 - step) ** 2 * moment + step**2 * self.noise
        return moved

    def losses(self, rates: Array) -> Array:
        """Expected loss before each update and after the last, shape (T + 1,)."""
        moment, found = self.start, [self.loss(self.start)]
        for rate in rates:
            moment = self.advance(moment, float(rate))
            found.append(self.loss(moment))
        return np.array(found)

    def gradient(self, rates: Array) -> tuple[float, Array]:
        """The final expected loss, and its gradient with respect to the rates, shape (T,)."""
        h = self.curvature
        steps = rates[:, None] * h
        kept, added = (1.0 - steps) ** 2, steps**2 * self.noise
        moments = np.empty((len(rates) + 1, len(h)))
        moments[0] = self.start
        for index in range(len(rates)):
            np.multiply(kept[index], moments[index], out=moments[index + 1])
            moments[index + 1] += added[index]
        adjoints = np.empty_like(kept)
        adjoint = 0.5 * h
        for index in range(len(rates) - 1, -1, -1):
            adjoints[index] = adjoint
            adjoint = adjoint * kept[index]
        changes = 2.0 * h * (steps * self.noise - (1.0 - steps) * moments[:-1])
        return self.loss(moments[-1]), (adjoints * changes).sum(axis=1)


def greedy_schedule(problem: NoisyQuadratic, steps: int) -> Array:
    """At each update the rate with the lowest expected loss after it, in closed form; shape (steps,)."""
    h, moment, rates = problem.curvature, problem.start, []
    for _ in range(steps):
        rates.append(float((h**2 * moment).sum() / (h**3 * (moment + problem.noise)).sum()))
        moment = problem.advance(moment, rates[-1])
    return np.array(rates)


def optimal_schedule(problem: NoisyQuadratic, steps: int) -> Array:
    """The schedule with the lowest expected loss at the end, by L-BFGS over the logs of the rates; shape (steps,)."""
    from scipy.optimize import minimize

    def objective(logs: Array) -> tuple[float, Array]:
        rates = np.exp(logs)
        loss, slope = problem.gradient(rates)
        value = np.log(loss)  # losses span decades
        return float(value), slope * rates / loss

    begin = best_peak(problem, factor_table("cosine", steps))
    guesses = [begin, greedy_schedule(problem, steps)]
    low, high = problem.bounds
    found = [
        minimize(
            objective,
            np.log(np.clip(guess, low, high)),
            jac=True,
            bounds=[(np.log(low), np.log(high))] * steps,
            method="L-BFGS-B",
            options={"maxiter": 1500, "maxfun": 2000},
        )
        for guess in guesses
    ]
    rates: Array = np.exp(min(found, key=lambda result: result.fun).x)
    return rates


def best_peak(problem: NoisyQuadratic, factors: Array) -> Array:
    """``factors`` times the peak with the lowest expected loss at the end."""
    peaks = np.geomspace(*problem.bounds, 400)
    with np.errstate(all="ignore"):
        finals = [problem.losses(peak * factors)[-1] for peak in peaks]
    best: Array = peaks[int(np.nanargmin(finals))] * factors
    return best


def oracle(
    controller: Controller,
    *,
    workload: str = WORKLOAD,
    steps: int = STEPS,
    seeds: int = SEEDS,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Compares schedules on a noisy quadratic under SGD.

    Args:
        controller: The learned scheduler; its schedule is its mean log rate over the seeds.
        workload: Name of a noisy quadratic.
        steps: Budget in updates.
        seeds: Runs that the learned schedule is the mean of, and with which the closed form is checked.
        progress: Called with (schedules done, in all, what is computed).

    Returns:
        ``schedules``: for each name its ``rate`` (T,), ``expected_loss`` (T + 1,), its last as ``final``, and
        ``measured``: the mean final loss of real runs. For the learned one these are its own runs, with feedback.

    Raises:
        ConfigError: The workload is no noisy quadratic.
    """
    made = make_workload(workload, np.random.default_rng(0))
    if not isinstance(made, QuadraticWorkload):
        raise ConfigError(f"{workload} is no noisy quadratic: its best schedule is not known")
    problem, draw = NoisyQuadratic.of(made), Draw(made, make_optimizer("sgd"), steps)
    runs = [REPORT_SEED + index for index in range(seeds)]
    makers: dict[str, Callable[[], Array]] = {
        "optimal": lambda: optimal_schedule(problem, steps),
        "greedy": lambda: greedy_schedule(problem, steps),
        "cosine": lambda: best_peak(problem, factor_table("cosine", steps)),
        "constant": lambda: best_peak(problem, factor_table("constant", steps)),
    }
    schedules: dict[str, dict[str, Any]] = {}
    for index, (name, make) in enumerate(makers.items()):
        if progress is not None:
            progress(index, len(makers) + 1, f"oracle: {name} schedule")
        rates = make()
        measured = run_tables(draw, runs, rates).heldout_loss
        schedules[name] = _entry(problem, rates, measured)
    if progress is not None:
        progress(len(makers), len(makers) + 1, "oracle: learned schedule")
    logs: list[Array] = []
    trace = run_controlled(
        draw, runs, controller.spec, controller.answer, watch=lambda rates: logs.append(np.log(rates).mean())
    )
    schedules["learned"] = _entry(problem, np.exp(np.array(logs)), trace.heldout_loss)
    if progress is not None:
        progress(len(makers) + 1, len(makers) + 1, "oracle")
    h = problem.curvature
    return {
        "what": f"{workload} under SGD: expected excess loss in closed form; rates chosen for it, seen by nobody; the "
        f"learned schedule is the mean log rate of {seeds} runs",
        "workload": workload,
        "steps": steps,
        "seeds": seeds,
        "dimensions": len(h),
        "condition": float(h.max() / h.min()),
        "noise": float(np.sqrt(problem.noise).mean()),
        "controller": controller.identity,
        "updates": list(range(steps + 1)),
        "schedules": schedules,
    }


def save_oracle(folder: Path, controller: Controller, progress: Report | None = None, **settings: Any) -> Path:
    """Writes what :func:`oracle` finds to ``oracle.json`` unless it is there for this controller; returns its path."""
    path = folder / "oracle.json"
    if path.exists():
        try:
            if json.loads(path.read_text(encoding="utf-8")).get("controller") == controller.identity:
                return path
        except ValueError:
            pass  # written anew
    text = json.dumps(to_json(oracle(controller, progress=progress, **settings)), allow_nan=False) + "\n"
    write_atomically(path, text.encode())
    return path


def _entry(problem: NoisyQuadratic, rates: Array, measured: Array) -> dict[str, Any]:
    losses = problem.losses(rates)
    return {
        "rate": rates.tolist(),
        "expected_loss": losses.tolist(),
        "final": float(losses[-1]),
        "measured": float(measured.mean()),
    }


def main(arguments: list[str]) -> None:
    """Writes the file and prints one line for each schedule."""
    torch.set_num_threads(1)
    path = save_oracle(Path(arguments[0]), Controller.load(arguments[1] if len(arguments) > 1 else "default"))
    schedules = json.loads(path.read_text(encoding="utf-8"))["schedules"]
    best = schedules["optimal"]["final"]
    for name, entry in schedules.items():
        print(
            f"{name:9} expected final loss {entry['final']:.5f} ({entry['final'] / best:.2f} x optimal), "
            f"measured {entry['measured']:.5f}, highest rate {max(entry['rate']):.3g}"
        )
    print(path)


if __name__ == "__main__":
    main(sys.argv[1:])
