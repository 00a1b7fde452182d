"""A made-up comparison in the schema of the store: curves that look real, and outcomes that are known."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlrate.experiments.store import Curve, Results, Row, Store, sort_rows

PROBLEMS = {
    "digits-cnn-batchnorm adam 400": ("held-out", "adam", 400),
    "char-transformer-small adam 600": ("held-out", "adam", 600),
    "digits-gru momentum 400": ("held-out", "momentum", 400),
    "wine-mlp adam 200": ("selection", "adam", 200),
}
SCHEDULES = {"constant": 1.25, "cosine": 1.0, "linear": 1.03, "step": 1.12, "reduce-on-plateau": 1.2}
OTHERS = {
    "learned": ("learned", 1.08),
    "adam-1e-3-constant": ("default", 1.9),
    "schedule-free-adamw": ("self-tuning", 1.35),
    "replay": ("control", 1.3),
    "time-only": ("control", 1.4),
    "random": ("control", 3.0),
    "hold": ("control", 8.0),
}
FLOOR = {"digits-cnn-batchnorm adam 400": 0.05, "char-transformer-small adam 600": 1.2, "digits-gru momentum 400": 0.4}
STARTS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]


def simulated(seeds: int = 5, rates: int = 5, seed: int = 0, problems: int = 4) -> Results:
    """The learned method wins on one problem, ties on one and loses on one; ``hold`` breaks now and then."""
    rng = np.random.default_rng(seed)
    reported, tuning = [1000 + i for i in range(seeds)], [0, 1]
    names = dict(list(PROBLEMS.items())[:problems])
    grid = np.logspace(-4, 0, rates).tolist()
    methods = {name: {"group": "schedule", "what": f"{name}, rate tuned"} for name in SCHEDULES}
    methods |= {name: {"group": group, "what": f"{name}, as it comes"} for name, (group, _) in OTHERS.items()}
    rows = []
    for number, (problem, (kind, optimizer, steps)) in enumerate(names.items()):
        base: dict[str, Any] = {
            "problem": problem,
            "workload": problem.split()[0],
            "kind": kind,
            "optimizer": optimizer,
        }
        base |= {"steps": steps, "batch": 32}
        floor, noise = FLOOR.get(problem, 0.2), {s: rng.normal(0, 0.05) for s in reported + tuning}
        middle = grid[len(grid) // 2]
        for name, quality in SCHEDULES.items():
            for peak in grid:
                for s in tuning:
                    loss = _loss(floor * quality, peak / middle, noise[s] + rng.normal(0, 0.01))
                    rows.append(_row(base, name, "schedule", "tune", s, loss, peak=peak))
            for s in reported:
                loss = floor * quality * math.exp(noise[s] + rng.normal(0, 0.01))
                curve = _curve(rng, steps, floor, loss, middle, name)
                rows.append(_row(base, name, "schedule", "report", s, loss, peak=middle, budget=rates, curve=curve))
        for name, (group, quality) in OTHERS.items():
            quality *= {"learned": [0.85, 1.3, 1.0, 0.9][number % 4]}.get(name, 1.0)
            for s in reported:
                loss = floor * quality * math.exp(noise[s] + rng.normal(0, 0.03))
                loss = math.inf if name == "hold" and s == 1001 else loss
                curve = _curve(rng, steps, floor, loss, middle, name)
                rows.append(_row(base, name, group, "report", s, loss, curve=curve))
        if number < 2:
            for start in STARTS:
                for name in ("learned", "constant", "cosine"):
                    for s in reported[:2]:
                        off = 1.0 if name == "learned" else start / middle
                        loss = _loss(floor * 1.1, off, noise[s] + rng.normal(0, 0.02))
                        rows.append(_row(base, name, "", "start", s, loss, start=start))
    suite: dict[str, Any] = {
        "schema": 1,
        "title": "Made-up results",
        "name": "simulated",
        "seeds": reported,
        "tuning_seeds": tuning,
        "rates": rates,
        "schedules": list(SCHEDULES),
        "entrants": list(OTHERS),
        "problems": [
            {"name": p, "workload": p.split()[0], "kind": k, "optimizer": o, "steps": t, "batch": 32, "grid": grid}
            for p, (k, o, t) in names.items()
        ],
        "methods": methods,
        "controller": {"name": "default", "identity": "0123456789abcdef"},
        "command": "rlrate compare --suite held-out --out runs/held-out",
        "cells": len(rows),
        "runs": len(rows),
        "versions": {"rlrate": "0.1.0", "torch": "2.13.0"},
    }
    return Results(suite, sort_rows(suite, rows))


def save(results: Results, folder: Path, *, with_oracle: bool = True) -> Path:
    """Writes a comparison's folder as a run would."""
    cells = [replace(row, cell="all", cell_rows=len(results.rows), cell_index=i) for i, row in enumerate(results.rows)]
    Store(folder, results.suite).append("all", cells)
    if with_oracle:
        (folder / "oracle.json").write_text(json.dumps(oracle()))
    return folder


def oracle() -> dict[str, Any]:
    """The noisy quadratic's schedules."""
    t = np.linspace(0, 1, 41)
    rates = {
        "optimal": 0.5 * (1 - t) ** 0.5 + 0.01,
        "greedy": 0.5 / (1 + 40 * t),
        "learned": np.minimum(0.02 * np.exp(20 * t), 0.4) * (1 - t) + 0.01,
    }
    losses = {
        name: np.exp(-5 * np.cumsum(rate) / 41 * k)
        for (name, rate), k in zip(rates.items(), (1, 0.8, 0.95), strict=True)
    }
    schedules = {
        name: {"rate": rate.tolist(), "expected_loss": [1.0, *losses[name]], "final": float(losses[name][-1])}
        for name, rate in rates.items()
    }
    return {
        "updates": list(range(1, 42)),
        "schedules": schedules,
        "what": "expected loss in closed form",
        "dimensions": 20,
        "condition": 100.0,
        "noise": 0.1,
        "steps": 41,
    }


def _loss(floor: float, off: float, noise: float) -> float:
    """A valley over the rate: slow to the left, broken to the far right."""
    decades = math.log10(off)
    return math.inf if decades > 1.5 else floor * math.exp(noise + (1.2 if decades > 0 else 0.4) * decades**2)


def _curve(rng: np.random.Generator, steps: int, floor: float, loss: float, peak: float, name: str) -> Curve:
    updates = np.unique(np.linspace(0, steps, 61)[1:].astype(int))
    checks = np.unique(np.linspace(0, steps, 21)[1:].astype(int))
    end = loss if math.isfinite(loss) else floor * 50

    def fall(at: np.ndarray) -> np.ndarray:
        return np.asarray(end + (2.3 - min(end, 2.0)) * np.exp(-6 * at / steps))

    shape = {"cosine": 0.5 + 0.5 * np.cos(np.pi * updates / steps), "linear": 1 - updates / steps + 1e-3}
    rate = peak * shape.get(name, np.ones(len(updates)))
    if name == "learned":
        rate = peak * np.minimum(np.exp(12 * updates / steps - 5), 1) * np.clip(4 * (1.02 - updates / steps), 0, 1)
    train = 0.9 * fall(updates) * np.exp(rng.normal(0, 0.06, len(updates)))
    held = fall(checks)
    held[-1] = loss
    if not math.isfinite(loss):
        train[len(train) // 3 :] = math.inf
        held[len(held) // 3 :] = math.inf
    return Curve(updates, train, rate, checks, held)


def _row(base: dict[str, Any], method: str, group: str, role: str, seed: int, loss: float, **more: Any) -> Row:
    fields = {"budget": 0, "peak": None, "start": None, "curve": None} | base | more
    fields |= {"method": method, "group": group, "role": role, "seed": seed, "heldout_loss": loss}
    key = hashlib.sha256(repr((base, method, role, seed, more.get("peak"), more.get("start"))).encode()).hexdigest()
    fields |= {"heldout_accuracy": max(0.0, 1 - loss / 3) if math.isfinite(loss) else 0.1}
    fields |= {"diverged": not math.isfinite(loss), "updates": base["steps"], "seconds": 0.4, "key": key[:16]}
    return Row(**fields, versions={}, cell="", cell_rows=1, cell_index=0)
