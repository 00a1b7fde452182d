"""A workload family of one's own, unlike those that the default controller was trained on: recurrent networks.

Each sequence has two marked numbers; the network is to add them (Hochreiter and Schmidhuber, 1997). The loss stays on a
plateau until the network remembers.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from rlrate.envs import Workload


class Adder(nn.Module):
    """A GRU that reads a sequence and answers once, at its end."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.GRU(2, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sequences of shape (batch, length, 2) to sums of shape (batch, 1)."""
        states, _ = self.body(x)
        return self.head(states[..., -1, :])


def make(rng: np.random.Generator) -> Workload:
    """Draws the sequences' length, the distance between the marks, and the network's width."""
    count, length, width = 1500, int(rng.integers(8, 17)), int(rng.integers(16, 41))
    values = rng.uniform(0.0, 1.0, (count, length)).astype(np.float32)
    marks = np.zeros_like(values)
    first, second = rng.integers(0, length // 2, count), rng.integers(length // 2, length, count)
    rows = np.arange(count)
    marks[rows, first] = marks[rows, second] = 1.0
    inputs = torch.from_numpy(np.stack([values, marks], axis=2))
    targets = torch.from_numpy((values * marks).sum(axis=1, keepdims=True))
    return Workload.from_dataset(
        "adding",
        lambda: Adder(width),
        (inputs[:1200], targets[:1200]),
        (inputs[1200:], targets[1200:]),
        nn.functional.mse_loss,
        batch_size=int(rng.integers(16, 65)),
    )
