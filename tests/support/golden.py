"""Files of this version, kept for later ones: `make golden` writes tests/golden anew.

Only for a change that is meant to break old files, with the format's version raised; else the tests are to pass as
they are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import comparing

FOLDER = Path(__file__).resolve().parents[1] / "golden"
TOTAL, CUT = 40, 17
#: Said in full, so that another default changes nothing in old files.
RULES = {"factor": 2.5, "multipliers": None, "start": 1e-3, "cap": 0.05, "cut": 0.5, "check": 5, "anneal": 0.3}
SIGNALS = (
    *("progress", "youth", "interval", "loss_known", "loss_initial", "loss_previous", "loss_fast", "loss_slow"),
    *("loss_best", "loss_slope", "loss_noise", "gradient_initial", "gradient_dispersion", "gradient_cosine"),
    *("momentum_cosine", "update_ratio", "layer_ratio", "rate_initial", "action_last", "action_mean", "cuts", "capped"),
)
RECIPE: dict[str, Any] = {
    "name": "golden",
    "iterations": 2,
    "runs": 2,
    "draws": 1,
    "environment": {"workload": "wine-mlp", "optimizer": "adam", "steps": 24},
    "cadence": {"decisions": 6, "first": 4, "ramp": 2, "probe": 3},
    "rules": {name: value for name, value in RULES.items() if value is not None},
    "signals": list(SIGNALS),
    "policy": {"net": [4]},
    "algorithm": {"n_epochs": 1, "batch_size": 10},
}


def observations(size: int) -> np.ndarray[Any, Any]:
    """Fixed observations, shape (20, size), float32; from sines, as generators may change between versions."""
    return (4 * np.sin(np.arange(20 * size) * 1.7).reshape(20, size)).astype(np.float32)


def controller() -> Any:
    """A small policy that reacts to everything."""
    from rlrate import Controller
    from rlrate.control import ControlSpec

    cadence = {"decisions": 8, "first": 3, "ramp": 3, "probe": 2}
    spec = ControlSpec.from_dict({"signals": list(SIGNALS), "cadence": cadence, "action": RULES})
    layers = []
    for number, (a, b) in enumerate(pairwise([len(spec.signals), 5, 1])):
        values = torch.from_numpy(np.sin(np.arange((a + 1) * b) * 2.3 + number).astype(np.float32)) / 4
        layers.append((values[: a * b].reshape(b, a).clone(), values[a * b :].clone()))
    return Controller(tuple(layers), spec, provenance={"kind": "golden", "share": 0.1})


class Run:
    """A training loop without random numbers."""

    def __init__(self, policy: Any) -> None:
        from rlrate import LearnedLR

        self.weights = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
        self.optimizer = torch.optim.Adam([self.weights], lr=0.1)
        self.scheduler = LearnedLR(self.optimizer, TOTAL, policy)
        self.step = 0

    def train(self, steps: int) -> list[float]:
        """The rates after each of some updates."""
        rates = []
        for _ in range(steps):
            targets = torch.sin(torch.arange(6, dtype=torch.float64) + 0.1 * (self.step % 5))
            loss = ((self.weights - targets) ** 2 * torch.arange(1, 7)).mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.scheduler.step(loss)
            self.step += 1
            rates.append(float(self.optimizer.param_groups[0]["lr"]))
        return rates

    def state(self) -> dict[str, Any]:
        """What a user saves."""
        return {
            "weights": self.weights.detach().clone(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load(self, state: dict[str, Any], step: int) -> None:
        """Continues from what was saved after ``step`` updates."""
        with torch.no_grad():
            self.weights.copy_(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.step = step


def digest(rows: list[dict[str, Any]]) -> str:
    """SHA-256 of all that the rows of a comparison say."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=dict).encode()).hexdigest()


def main() -> None:
    """Writes all files and what must be read from them."""
    from rlrate import Controller
    from rlrate.agents import Recipe, export, train

    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    policy = controller()
    policy.save(FOLDER / "controller.safetensors")
    run = Run(policy)
    run.train(CUT)
    torch.save(run.state(), FOLDER / "scheduler.pt")
    expected: dict[str, Any] = {
        "identity": policy.identity,
        "actions": policy.act(observations(len(policy.spec.signals))).tolist(),
        "rates": run.train(TOTAL - CUT),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(Recipe.from_dict(RECIPE), out)
        (FOLDER / "run").mkdir(exist_ok=True)
        for name in ("config.json", "checkpoint.pt"):
            shutil.copy(out / name, FOLDER / "run" / name)
        expected["trained"] = Controller.load(export(FOLDER / "run", out / "exported")).identity
        comparing.compare(out / "compared", problems=1, seeds=1)
        (FOLDER / "results").mkdir(exist_ok=True)
        for name in ("results.jsonl", "suite.json"):
            shutil.copy(out / "compared" / name, FOLDER / "results" / name)
        expected["rows"] = digest(comparing.rows(FOLDER / "results"))
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
