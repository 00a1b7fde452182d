"""A workload family of one's own: forecasting noisy oscillators with small networks.

``rlrate train --workload oscillators.py:make`` trains a controller on it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rlrate.envs import Workload


class Forecaster(nn.Module):
    """The value some steps ahead of a window, as a correction of the window's last value."""

    def __init__(self, window: int, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(window, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Windows of shape (batch, window) to forecasts of shape (batch, 1)."""
        return x[..., -1:] + self.body(x)


def make(rng: np.random.Generator) -> Workload:
    """Draws frequencies, damping and the network's width."""
    window, ahead, length = 24, int(rng.integers(2, 8)), 700
    time = np.arange(length + window + ahead)
    frequencies, phases = rng.uniform(0.02, 0.3, 3), rng.uniform(0, 2 * np.pi, 3)
    series = np.sin(2 * np.pi * frequencies[:, None] * time + phases[:, None]).sum(axis=0)
    series = (series * np.sin(0.01 * time) + rng.normal(0, 0.05, time.size)).astype(np.float32)
    windows = torch.from_numpy(np.stack([series[i : i + window] for i in range(length)]))
    targets = torch.from_numpy(series[window + ahead - 1 :][:length, None].copy())
    width = int(rng.integers(24, 65))
    return Workload.from_dataset(
        "oscillators",
        lambda: Forecaster(window, width),
        (windows[:500], targets[:500]),
        (windows[500:], targets[500:]),
        nn.functional.mse_loss,
        batch_size=int(rng.integers(16, 65)),
    )
