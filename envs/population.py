"""N networks of one architecture, trained at once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rlrate.envs.chunks import Chunk, Layout, copied, is_rows
from rlrate.envs.forward import Forward
from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec
from rlrate.envs.replica import Replica
from rlrate.envs.streams import Batches, initial_model, noise_generator
from rlrate.envs.workload import Workload
from rlrate.errors import ConfigError, WorkloadError

__all__ = ["Population"]

#: Numbers that a chunk of networks may touch in a training step: a few MiB, so that weights,
#: gradients, optimizer state and activations of the chunk at work stay in the processor's caches.
CHUNK_NUMBERS = 1_300_000

#: Held-out examples that go through the networks at once.
EVALUATION_EXAMPLES = 256


class Population:
    """N networks of one architecture, trained at once, each at its own learning rate.

    It equals N separate torch loops (`rlrate.envs.plain`) with the same seeds: the same initial
    weights, batches, gradients, optimizer updates and noise, whatever its neighbours are. The
    networks' parameters live in the rows of one matrix; forward passes are vectorised over rows,
    and the torch optimizer itself makes the update. It steps a buffer of zeros at lr = 1; as the
    displacement of the optimizers offered is linear in the learning rate and their state does not
    depend on it, each row is then moved by its own rate times that displacement. Weight decay,
    which depends on the parameters, is applied apart.

    A module that cannot be vectorised (control flow that reads its data, random numbers from
    elsewhere than dropout or ``torch.rand*``) is run network by network, with one warning.

    Args:
        workload: What is trained. ``make_model`` must give the same architecture for each seed.
        optimizer: How, without a learning rate.
        seeds: One per network. A run depends on its own seed only.
        dtype: Of weights and floating point data.

    Attributes:
        size: N.
        parameters: Trainable parameters, each (N, *shape): views that follow the training.
        rows: The matrix that they are views of, a row for each network.
        starts: First column of each parameter in ``rows``.
        buffers: Buffers and frozen parameters by name, each (N, *shape).

    Raises:
        WorkloadError: Networks of different architectures.
        ConfigError: No seeds.
    """

    def __init__(
        self,
        workload: Workload,
        optimizer: OptimizerSpec,
        seeds: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if len(seeds) == 0:
            raise ConfigError("a population needs at least one seed, one per network.")
        self.workload, self.optimizer, self.dtype = workload, optimizer, dtype
        self.size = len(seeds)
        replicas = [Replica(initial_model(workload, seed, dtype)) for seed in seeds]
        first = replicas[0]
        shapes = [p.shape for p in first.parameters()]
        for replica in replicas:
            if [v.shape for v in replica._own] != [v.shape for v in first._own]:
                raise WorkloadError(
                    f"{workload.name}: make_model() gave networks of different shapes; draw the "
                    "architecture in the factory, so that it is the same for every seed."
                )
        self._layout = Layout(shapes)
        self.rows = torch.zeros(self.size, self._layout.width, dtype=dtype)
        self.starts = self._layout.starts
        self.parameters = self._layout.views(self.rows)
        for index, stack in enumerate(self.parameters):
            torch.stack([r.parameters()[index].detach() for r in replicas], out=stack)
        self.buffers = {
            name: torch.stack([r.buffers()[index].detach() for r in replicas])
            for index, name in enumerate(first.buffer_names)
        }
        self._batches = Batches(seeds, len(workload.train[0]), workload.batch_size)
        self._noise = [noise_generator(seed) for seed in seeds]
        self._forward = Forward(workload, dtype, first, self._noise)
        self._losses = torch.zeros(self.size, dtype=dtype)
        self._decoupled = OPTIMIZERS[optimizer.name].decoupled
        self._decay = float(optimizer.settings.get("weight_decay", 1e-2 if self._decoupled else 0))
        self._chunks = self._cut()

    def take(self, rows: Sequence[int]) -> Population:
        """Copies of the networks ``rows``, which go on by themselves; each may be taken several times.

        To be called after `update`, before `backward`.
        """
        other, index = copy.copy(self), torch.tensor(rows)
        other.size = len(rows)
        other.rows = self.rows[index]
        other.parameters = self._layout.views(other.rows)
        other.buffers = {name: value[index] for name, value in self.buffers.items()}
        other._batches = self._batches.take(rows)
        other._noise = [self._noise[row].clone_state() for row in rows]
        other._losses = self._losses[index]
        other._chunks = other._cut()
        saved = self._optimizer_state()
        other._load_optimizer({"rows": {k: v[index] for k, v in saved["rows"].items()}, "shared": saved["shared"]})
        return other

    @property
    def gradients(self) -> list[Tensor]:
        """Gradients of the last `backward`, like ``parameters``: valid until `update`."""
        parts = [chunk.gradients() for chunk in self._chunks]
        return parts[0] if len(parts) == 1 else [torch.cat(stacks) for stacks in zip(*parts, strict=True)]

    def backward(self) -> Tensor:
        """Compute loss and gradients of the next minibatch of every run.

        Returns:
            Mean loss over each run's minibatch, before the update: (N,), detached.
        """
        index = self._batches.next()
        if self._forward.loop is None:
            self._forward.probe(self._chunks[0].leaves, self._buffer_rows(slice(0, 1)), index[:1])
        for chunk in self._chunks:
            rows = chunk.rows
            self._losses[rows], grads = self._forward.gradients(
                chunk.leaves, self._buffer_rows(rows), index[rows], self._noise[rows]
            )
            chunk.keep(grads)
        return self._losses.clone()

    def update(self, lr: Tensor) -> None:
        """Make one update by the torch optimizer.

        Args:
            lr: Learning rate of each run, (N,).
        """
        rates = lr.to(self.dtype).reshape(self.size, 1)
        for chunk in self._chunks:
            rate = rates[chunk.rows]
            if self._decay and not self._decoupled:
                chunk.decay_gradients(self._decay)
            chunk.displace()
            if self._decay and self._decoupled:
                chunk.decay_weights(1 - rate * self._decay)
            chunk.move(rate)

    def heldout(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate every network, in evaluation mode, on the held-out examples; changes nothing.

        Args:
            limit: Look at the first ``limit`` examples only, and at their loss alone.

        Returns:
            Mean loss (N,), and share of examples classified correctly (N,): NaN where the workload
            has no classes.
        """
        return self._evaluate(limit, validation=False)

    def validation(self) -> Tensor:
        """Mean loss of every network on the validation examples of its workload, (N,); changes nothing.

        Where the workload has none, on the held-out examples.
        """
        return self._evaluate(None, validation=True)[0]

    def _evaluate(self, limit: int | None, *, validation: bool) -> tuple[Tensor, Tensor]:
        loss = torch.zeros(self.size, dtype=self.dtype)
        accuracy = torch.zeros(self.size, dtype=self.dtype)
        if self._forward.loop is None:
            index = torch.arange(self.workload.batch_size).unsqueeze(0)
            self._forward.probe(self._chunks[0].leaves, self._buffer_rows(slice(0, 1)), index)
        for chunk in self._chunks:
            rows = chunk.rows
            buffers = [value.clone() for value in self._buffer_rows(rows)]
            loss[rows], accuracy[rows] = self._forward.evaluate(
                [leaf.detach() for leaf in chunk.leaves], buffers, EVALUATION_EXAMPLES, limit, validation=validation
            )
        return loss, accuracy

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-equal continuation needs; take it after `update`, before `backward`."""
        return {
            "weights": self.rows.clone(),
            "buffers": {name: value.clone() for name, value in self.buffers.items()},
            "optimizer": self._optimizer_state(),
            "batches": self._batches.state_dict(),
            "noise": [generator.get_state() for generator in self._noise],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigError: The state is of a population of another size or architecture.
        """
        if state["weights"].shape != self.rows.shape:
            raise ConfigError(
                f"this state is of {tuple(state['weights'].shape)} networks and parameters, the "
                f"population has {tuple(self.rows.shape)}; load it into one built alike."
            )
        self.rows.copy_(state["weights"])
        for name, value in state["buffers"].items():
            self.buffers[name].copy_(value)
        self._load_optimizer(state["optimizer"])
        self._batches.load_state_dict(state["batches"])
        for generator, value in zip(self._noise, state["noise"], strict=True):
            generator.set_state(value)

    def _optimizer_state(self) -> dict[str, dict[str, Any]]:
        states = [chunk.state() for chunk in self._chunks]
        rows = {key: torch.cat([state[key] for state in states]) for key, value in states[0].items() if is_rows(value)}
        return {"rows": rows, "shared": {key: copied(v) for key, v in states[0].items() if not is_rows(v)}}

    def _load_optimizer(self, saved: dict[str, dict[str, Any]]) -> None:
        for chunk in self._chunks:
            chunk.load(
                {k: v[chunk.rows].clone() for k, v in saved["rows"].items()}
                | {k: copied(v) for k, v in saved["shared"].items()}
            )

    def _cut(self) -> list[Chunk]:
        bounds = _bounds(self.size, self._layout.width + self._forward.activations)
        # One for all chunks, which update in turn: it stays in the cache.
        rows = max(b - a for a, b in pairwise(bounds))
        scratch = [torch.zeros(rows, stop - start, dtype=self.dtype) for start, stop in self._layout.blocks]
        return [Chunk(self.rows, slice(a, b), self._layout, scratch, self.optimizer) for a, b in pairwise(bounds)]

    def _buffer_rows(self, rows: slice) -> list[Tensor]:
        return [value[rows] for value in self.buffers.values()]


def _bounds(size: int, numbers: int) -> list[int]:
    """Where to cut ``size`` networks, each touching ``numbers`` numbers, into equal chunks."""
    chunks = min(size, max(1, round(size * numbers / CHUNK_NUMBERS)))
    return [round(k * size / chunks) for k in range(chunks + 1)]
