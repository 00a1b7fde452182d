"""The rows of a population's matrix of weights: what lies where, and the rows that are updated together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec

__all__ = ["Chunk", "Layout", "copied", "is_rows"]

#: Numbers from which on a parameter of one network is large: its gradient is not copied.
LARGE = 2048


class Layout:
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


class Chunk:
    """Some rows of a population, which are processed together."""

    def __init__(self, matrix: Tensor, rows: slice, layout: Layout, scratch: list[Tensor], spec: OptimizerSpec) -> None:
        self.rows, self._layout = rows, layout
        self.weights = matrix[rows]
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
        """Let the optimizer compute the displacements, at lr = 1."""
        self._optimizer.step()
        for _, displacement in self._large:
            displacement.grad = None  # the next gradient then takes its place in memory, and in the cache

    def decay_gradients(self, decay: float) -> None:
        """Add the gradient of an L2 penalty."""
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
        """Shrink the weights, each row by its own factor, (n, 1)."""
        if not any(self._unused):
            self.weights.mul_(factor)
            return
        for leaf, unused in zip(self.leaves, self._unused, strict=True):
            if not unused:
                leaf.detach().mul_(factor.view(-1, *[1] * (leaf.ndim - 1)))

    def move(self, rate: Tensor) -> None:
        """Move each row by its rate, (n, 1), times its displacement."""
        for weights, displacement in zip(self._weights, self._displacements, strict=True):
            weights.addcmul_(displacement, rate)
            displacement.zero_()

    def state(self) -> dict[str, Any]:
        """The optimizer's state, what belongs to weights as rows of the same layout."""
        states = [self._optimizer.state[displacement] for displacement in self._displacements]
        return {
            key: self._rows([state[key] for state in states]) if is_rows(value) else value
            for key, value in states[0].items()
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for (start, stop), displacement in zip(self._layout.blocks, self._displacements, strict=True):
            self._optimizer.state[displacement] = {
                key: value[:, start:stop].contiguous() if is_rows(value) else copied(value)
                for key, value in state.items()
            }

    def _rows(self, blocks: list[Tensor]) -> Tensor:
        rows = torch.zeros_like(self.weights)
        for (start, stop), block in zip(self._layout.blocks, blocks, strict=True):
            rows[:, start:stop] = block
        return rows


def is_rows(value: Any) -> bool:
    """Whether a part of an optimizer's state has a row for each network."""
    return isinstance(value, Tensor) and value.ndim == 2


def copied(value: Any) -> Any:
    """The value, without its memory."""
    return value.clone() if isinstance(value, Tensor) else value
