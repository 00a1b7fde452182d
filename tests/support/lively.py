"""Controllers whose answers depend on everything they see, and that remember it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate import Controller
from rlrate.control import ControlSpec
from rlrate.controller import linear_layers


@dataclass(frozen=True)
class Recording(Controller):
    """A controller that remembers what it saw and did."""

    seen: list[NDArray[np.float32]] = field(default_factory=list)
    done: list[float] = field(default_factory=list)

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        actions = super().act(observations)
        self.seen.append(observations[0])
        self.done.append(float(actions[0]))
        return actions


def lively_controller(seed: int = 0, spec: ControlSpec | None = None) -> Recording:
    """A random network whose actions depend on every signal, and that raises the rate on average."""
    generator = torch.Generator().manual_seed(seed)
    spec = spec or ControlSpec()
    width = len(spec.signals)
    layers = linear_layers(
        [
            (torch.randn(16, width, generator=generator) / width**0.5, torch.zeros(16)),
            (torch.randn(1, 16, generator=generator) / 4, torch.full((1,), 0.3)),
        ]
    )
    return Recording(layers, spec)
