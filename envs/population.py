"""N networks of one architecture, trained at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

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
        gradients: Gradients of the last `backward`, like ``parameters``; `update` may change them.
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
        offsets = [0]
        for shape in shapes:
            offsets.append(offsets[-1] + -(-shape.numel() // 16) * 16)  # keeps rows aligned
        self._weights = torch.zeros(self.size, offsets[-1], dtype=dtype)
        self._gradients = torch.zeros_like(self._weights)
        self.parameters = _views(self._weights, offsets, shapes)
        self.gradients = _views(self._gradients, offsets, shapes)
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
        numbers = offsets[-1] + self._forward.activations
        bounds = _bounds(self.size, numbers)
        # One for all chunks, which update in turn: it stays in the cache.
        scratch = torch.zeros_like(self._weights[: max(b - a for a, b in pairwise(bounds))])
        self._chunks = [_Chunk(self, slice(a, b), offsets, shapes, scratch) for a, b in pairwise(bounds)]

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
        loss = torch.zeros(self.size, dtype=self.dtype)
        accuracy = torch.zeros(self.size, dtype=self.dtype)
        if self._forward.loop is None:
            index = torch.arange(self.workload.batch_size).unsqueeze(0)
            self._forward.probe(self._chunks[0].leaves, self._buffer_rows(slice(0, 1)), index)

        for chunk in self._chunks:
            rows = chunk.rows
            buffers = [value.clone() for value in self._buffer_rows(rows)]
            loss[rows], accuracy[rows] = self._forward.evaluate(
                [leaf.detach() for leaf in chunk.leaves], buffers, EVALUATION_EXAMPLES
            )
        return loss, accuracy

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-equal continuation needs; take it after `update`, before `backward`."""
        states = [chunk.state() for chunk in self._chunks]
        rows = {key: torch.cat([state[key] for state in states]) for key, value in states[0].items() if _is_rows(value)}
        shared = {key: _copy(v) for key, v in states[0].items() if not _is_rows(v)}
        return {
            "weights": self._weights.clone(),
            "buffers": {name: value.clone() for name, value in self.buffers.items()},
            "optimizer": {"rows": rows, "shared": shared},
            "batches": self._batches.state_dict(),
            "noise": [generator.get_state() for generator in self._noise],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ConfigError: The state is of a population of another size or architecture.
        """
        if state["weights"].shape != self._weights.shape:
            raise ConfigError(
                f"this state is of {tuple(state['weights'].shape)} networks and parameters, the "
                f"population has {tuple(self._weights.shape)}; load it into one built alike."
            )
        self._weights.copy_(state["weights"])
        for name, value in state["buffers"].items():
            self.buffers[name].copy_(value)
        saved = state["optimizer"]
        for chunk in self._chunks:
            chunk.load(
                {k: v[chunk.rows].clone() for k, v in saved["rows"].items()}
                | {k: _copy(v) for k, v in saved["shared"].items()}
            )
        self._batches.load_state_dict(state["batches"])
        for generator, value in zip(self._noise, state["noise"], strict=True):
            generator.set_state(value)

    def _buffer_rows(self, rows: slice) -> list[Tensor]:
        return [value[rows] for value in self.buffers.values()]


class _Chunk:
    """Some rows of a population, which are processed together."""

    def __init__(
        self, owner: Population, rows: slice, offsets: list[int], shapes: list[torch.Size], scratch: Tensor
    ) -> None:
        self.rows = rows
        self.weights, self.gradients = owner._weights[rows], owner._gradients[rows]
        self.leaves = [view.detach().requires_grad_() for view in _views(self.weights, offsets, shapes)]
        self._grads = _views(self.gradients, offsets, shapes)
        self._unused = [False] * len(shapes)
        self._displacement = scratch[: len(self.weights)].detach()
        self._displacement.grad = self.gradients
        spec = owner.optimizer
        overrides: dict[str, Any] = {"weight_decay": 0.0}
        if OPTIMIZERS[spec.name].fused and not {"foreach", "fused", "differentiable"} & set(spec.kwargs):
            overrides["fused"] = True
        self._optimizer = spec.build([self._displacement], 1.0, **overrides)

    def keep(self, grads: Sequence[Tensor | None]) -> None:
        """Store the gradients; None, for a parameter the loss does not depend on, as zero."""
        pairs = [(own, g) for own, g in zip(self._grads, grads, strict=True) if g is not None]
        if len(pairs) < len(grads):
            self._unused = [grad is None for grad in grads]
            self.gradients.zero_()
        torch._foreach_copy_([own for own, _ in pairs], [g for _, g in pairs])

    def displace(self) -> None:
        self._optimizer.step()

    def decay_gradients(self, decay: float) -> None:
        if not any(self._unused):
            self.gradients.add_(self.weights, alpha=decay)
            return
        for own, leaf, unused in zip(self._grads, self.leaves, self._unused, strict=True):
            if not unused:  # torch skips parameters without a gradient altogether
                own.add_(leaf.detach(), alpha=decay)

    def decay_weights(self, factor: Tensor) -> None:
        if not any(self._unused):
            self.weights.mul_(factor)
            return
        for leaf, unused in zip(self.leaves, self._unused, strict=True):
            if not unused:
                leaf.detach().mul_(factor.view(-1, *[1] * (leaf.ndim - 1)))

    def move(self, rate: Tensor) -> None:
        self.weights.addcmul_(self._displacement, rate)
        self._displacement.zero_()

    def state(self) -> dict[str, Any]:
        return dict(self._optimizer.state[self._displacement])

    def load(self, state: dict[str, Any]) -> None:
        self._optimizer.state[self._displacement] = state


def _views(rows: Tensor, offsets: list[int], shapes: list[torch.Size]) -> list[Tensor]:
    return [
        rows[:, start : start + shape.numel()].view(len(rows), *shape)
        for start, shape in zip(offsets[:-1], shapes, strict=True)
    ]


def _bounds(size: int, numbers: int) -> list[int]:
    """Where to cut ``size`` networks, each touching ``numbers`` numbers, into equal chunks."""
    chunks = min(size, max(1, round(size * numbers / CHUNK_NUMBERS)))
    return [round(k * size / chunks) for k in range(chunks + 1)]


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
