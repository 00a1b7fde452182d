"""The random streams of one training run: initial weights, order of batches, noise."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlrate.envs.workload import Workload

__all__ = ["Batches", "initial_model", "noise_generator"]

# Streams derived from a run's seed; numpy.random.SeedSequence keeps them independent.
_WEIGHTS, _BATCHES, _NOISE = range(3)

#: Indices drawn ahead at once, over all runs: 1 MiB of int64.
_AHEAD = 1 << 17


def initial_model(workload: Workload, seed: int, dtype: torch.dtype) -> nn.Module:
    """The network with which run ``seed`` starts, in training mode.

    It is drawn in float32 whatever ``dtype`` is, so that a run in float64 starts at the same
    weights. Torch's global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_integer(seed, _WEIGHTS))
        model = workload.make_model()
    return model.to(dtype).train()


def noise_generator(seed: int) -> torch.Generator:
    """What run ``seed`` draws dropout masks and other noise of its forward pass from."""
    return torch.Generator().manual_seed(_integer(seed, _NOISE))


class Batches:
    """The order in which each of N runs sees the examples.

    Every run shuffles the examples anew for each epoch; a batch that begins at the end of an epoch
    goes on with the first examples of the next one.

    Args:
        seeds: One per run.
        examples: Number of training examples.
        batch_size: Examples per batch.
    """

    def __init__(self, seeds: Sequence[int], examples: int, batch_size: int) -> None:
        self.examples, self.batch_size = examples, batch_size
        self._generators = [np.random.default_rng([seed, _BATCHES]) for seed in seeds]
        self._rest: NDArray[np.int64] = np.empty((len(seeds), 0), np.int64)
        self._block = torch.empty((0, len(seeds), batch_size), dtype=torch.int64)
        self._next = 0

    def next(self) -> Tensor:
        """Indices of the next batch of every run, shape (N, batch_size), contiguous."""
        if self._next == len(self._block):
            self._draw()
        self._next += 1
        return self._block[self._next - 1]

    def take(self, rows: Sequence[int]) -> Batches:
        """Copies of the orders ``rows``, which go on by themselves; each may be taken several times."""
        other = copy.copy(self)
        other._generators = [copy.deepcopy(self._generators[row]) for row in rows]
        other._rest = self._rest[list(rows)]
        other._block, other._next = self._block[self._next :, list(rows)], 0
        return other

    def _draw(self) -> None:
        runs, size = len(self._generators), self.batch_size
        wanted = max(1, _AHEAD // max(runs * size, 1)) * size
        epochs = max(1, -(-(wanted - self._rest.shape[1]) // self.examples))
        rows = [
            np.concatenate([rest, *(generator.permutation(self.examples) for _ in range(epochs))])
            for rest, generator in zip(self._rest, self._generators, strict=True)
        ]
        order = np.stack(rows)
        steps = order.shape[1] // size
        self._rest = order[:, steps * size :]
        block = order[:, : steps * size].reshape(runs, steps, size).transpose(1, 0, 2)
        self._block = torch.from_numpy(np.ascontiguousarray(block))
        self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """Everything the order still to come depends on."""
        return {
            "generators": [generator.bit_generator.state for generator in self._generators],
            "rest": torch.from_numpy(self._rest.copy()),
            "block": self._block[self._next :].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self._rest = state["rest"].numpy().copy()
        self._block, self._next = state["block"].clone(), 0


def _integer(seed: int, stream: int) -> int:
    return int(np.random.SeedSequence([seed, stream]).generate_state(1, np.uint64)[0] >> 1)
