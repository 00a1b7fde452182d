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

#: Numbers from which on a parameter of one network is large: its gradient is not copied.
LARGE = 2048

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
        self._layout = _Layout(shapes)
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
        bounds = _bounds(self.size, self._layout.width + self._forward.activations)
        # One for all chunks, which update in turn: it stays in the cache.
        rows = max(b - a for a, b in pairwise(bounds))
        scratch = [torch.zeros(rows, stop - start, dtype=dtype) for start, stop in self._layout.blocks]
        self._chunks = [_Chunk(self, slice(a, b), self._layout, scratch) for a, b in pairwise(bounds)]

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
        states = [chunk.state() for chunk in self._chunks]
        rows = {key: torch.cat([state[key] for state in states]) for key, value in states[0].items() if _is_rows(value)}
        shared = {key: _copy(v) for key, v in states[0].items() if not _is_rows(v)}
        return {
            "weights": self.rows.clone(),
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
        if state["weights"].shape != self.rows.shape:
            raise ConfigError(
                f"this state is of {tuple(state['weights'].shape)} networks and parameters, the "
                f"population has {tuple(self.rows.shape)}; load it into one built alike."
            )
        self.rows.copy_(state["weights"])
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


class _Layout:
    """Where each parameter lies in a row of weights: small ones first, then the large ones.

    The small parameters make one block, whose gradients are copied together; each large one is a block
    of its own, whose gradient is used where autograd left it, as copying it would cost memory traffic.

    Attributes:
        width: Numbers in a row.
        blocks: First and last (exclusive) column of each block.
        large: Parameter of each block but the first ``len(blocks) - len(large)``.
    """

    def __init__(self, shapes: Sequence[torch.Size]) -> None:
        self.shapes = list(shapes)
        self.large = [i for i, shape in enumerate(shapes) if shape.numel() >= LARGE]
        self.small = [i for i, shape in enumerate(shapes) if shape.numel() < LARGE]
        self.starts = [0] * len(shapes)
        self.width = 0
        self.blocks: list[tuple[int, int]] = []
        for index in self.small + self.large:
            self.starts[index] = self.width
            stop = self.width + shapes[index].numel()
            if index in self.large:
                self.blocks.append((self.width, stop))
            self.width += -(-shapes[index].numel() // 16) * 16  # keeps rows aligned
            if self.small and index == self.small[-1]:
                self.blocks.append((0, self.width))

    def views(self, rows: Tensor) -> list[Tensor]:
        """Rows (n, width) as parameters, each (n, *shape)."""
        return [
            rows[:, start : start + shape.numel()].view(len(rows), *shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]


class _Chunk:
    """Some rows of a population, which are processed together."""

    def __init__(self, owner: Population, rows: slice, layout: _Layout, scratch: list[Tensor]) -> None:
        self.rows, self._layout = rows, layout
        self.weights = owner.rows[rows]
        self.leaves = [view.detach().requires_grad_() for view in layout.views(self.weights)]
        self._unused = [False] * len(self.leaves)
        self._weights = [self.weights[:, start:stop] for start, stop in layout.blocks]
        self._displacements = [block[: len(self.weights)].detach() for block in scratch]
        self._packed: list[Tensor] = []
        if layout.small:
            self._displacements[0].grad = packed = torch.zeros_like(self._displacements[0])
            self._packed = [
                packed[:, layout.starts[i] : layout.starts[i] + layout.shapes[i].numel()].view(
                    len(packed), *layout.shapes[i]
                )
                for i in layout.small
            ]
        self._large = list(zip(layout.large, self._displacements[bool(layout.small) :], strict=True))
        spec = owner.optimizer
        overrides: dict[str, Any] = {"weight_decay": 0.0}
        if OPTIMIZERS[spec.name].fused and not {"foreach", "fused", "differentiable"} & set(spec.kwargs):
            overrides["fused"] = True
        self._optimizer = spec.build(self._displacements, 1.0, **overrides)

    def keep(self, grads: Sequence[Tensor | None]) -> None:
        """Store the gradients; None, for a parameter the loss does not depend on, as zero."""
        self._unused = [grad is None for grad in grads]
        if any(self._unused):
            grads = [
                torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, self.leaves, strict=True)
            ]
        if self._packed:
            torch._foreach_copy_(self._packed, [grads[i] for i in self._layout.small])  # type: ignore[misc]
        for index, displacement in self._large:
            grad = grads[index]
            assert grad is not None
            displacement.grad = grad.reshape(displacement.shape).contiguous()

    def gradients(self) -> list[Tensor]:
        """What `keep` stored, each (n, *shape)."""
        stacks = dict(zip(self._layout.small, self._packed, strict=True))
        for index, displacement in self._large:
            assert displacement.grad is not None
            stacks[index] = displacement.grad.view(-1, *self._layout.shapes[index])
        return [stacks[i] for i in range(len(stacks))]

    def displace(self) -> None:
        self._optimizer.step()
        for _, displacement in self._large:
            displacement.grad = None  # the next gradient then takes its place in memory, and in the cache

    def decay_gradients(self, decay: float) -> None:
        if self._packed and not any(self._unused):
            packed = self._displacements[0].grad
            assert packed is not None
            packed.add_(self._weights[0], alpha=decay)
        else:
            for index, own in zip(self._layout.small, self._packed, strict=True):
                if not self._unused[index]:  # torch skips parameters without a gradient altogether
                    own.add_(self.leaves[index].detach(), alpha=decay)
        for index, displacement in self._large:
            if not self._unused[index]:
                assert displacement.grad is not None
                # Not in place: autograd may have given two parameters one gradient.
                displacement.grad = torch.add(displacement.grad, self.leaves[index].detach().flatten(1), alpha=decay)

    def decay_weights(self, factor: Tensor) -> None:
        if not any(self._unused):
            self.weights.mul_(factor)
            return
        for leaf, unused in zip(self.leaves, self._unused, strict=True):
            if not unused:
                leaf.detach().mul_(factor.view(-1, *[1] * (leaf.ndim - 1)))

    def move(self, rate: Tensor) -> None:
        for weights, displacement in zip(self._weights, self._displacements, strict=True):
            weights.addcmul_(displacement, rate)
            displacement.zero_()

    def state(self) -> dict[str, Any]:
        """The optimizer's state, what belongs to weights as rows of the same layout."""
        states = [self._optimizer.state[displacement] for displacement in self._displacements]
        return {
            key: self._rows([state[key] for state in states]) if _is_rows(value) else value
            for key, value in states[0].items()
        }

    def load(self, state: dict[str, Any]) -> None:
        for (start, stop), displacement in zip(self._layout.blocks, self._displacements, strict=True):
            self._optimizer.state[displacement] = {
                key: value[:, start:stop].contiguous() if _is_rows(value) else _copy(value)
                for key, value in state.items()
            }

    def _rows(self, blocks: list[Tensor]) -> Tensor:
        rows = torch.zeros_like(self.weights)
        for (start, stop), block in zip(self._layout.blocks, blocks, strict=True):
            rows[:, start:stop] = block
        return rows


def _bounds(size: int, numbers: int) -> list[int]:
    """Where to cut ``size`` networks, each touching ``numbers`` numbers, into equal chunks."""
    chunks = min(size, max(1, round(size * numbers / CHUNK_NUMBERS)))
    return [round(k * size / chunks) for k in range(chunks + 1)]


def _is_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
