"""Layers of N networks at once, on stacked tensors in the feature-major layout.

Shapes: N networks, C or I input and O output features, B examples; activations are (N, features,
..., B) and weights (N, O, I, ...), the first axis being the network throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["AvgPool", "MaxPool", "affine", "convolve", "recurrent"]

Pair: TypeAlias = tuple[int, ...]


def affine(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """Weight (N, O, I) times x (N, I, M) plus bias (N, O): (N, O, M)."""
    if bias is None:
        return torch.bmm(weight, x)
    return torch.baddbmm(bias.unsqueeze(-1), weight, x)


def convolve(weight: Tensor, bias: Tensor | None, x: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
    """Convolve x (N, C, H, W, B) with weight (N, O, C, h, w), bias (N, O): (N, O, H', W', B)."""
    columns: Tensor = Patches.apply(  # type: ignore[no-untyped-call]
        x, weight.shape[-2:], stride, padding, dilation
    )
    runs, channels, h, w, rows, columns_out, batch = columns.shape
    y = affine(weight.flatten(2), bias, columns.view(runs, channels * h * w, -1))
    return y.view(runs, -1, rows, columns_out, batch)


class Patches(torch.autograd.Function):
    """The patches under a kernel: (N, C, H, W, B) -> (N, C, h, w, H', W', B)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Tensor:
        ctx.shape, ctx.geometry = x.shape, (kernel, stride, padding, dilation)
        if any(padding):
            runs, channels, height, width, batch = x.shape
            (up, left) = padding
            padded = x.new_zeros(runs, channels, height + 2 * up, width + 2 * left, batch)
            padded[:, :, up : up + height, left : left + width] = x
            x = padded
        rows, columns = (
            (size - hole * (k - 1) - 1) // step + 1
            for size, k, step, hole in zip(x.shape[2:4], kernel, stride, dilation, strict=True)
        )
        a, b, c, d, e = x.stride()
        patches = x.as_strided(
            (*x.shape[:2], *kernel, rows, columns, x.shape[-1]),
            (a, b, c * dilation[0], d * dilation[1], c * stride[0], d * stride[1], e),
        )
        return patches.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        (h, w), stride, (up, left), dilation = ctx.geometry
        runs, channels, height, width, batch = ctx.shape
        rows, columns = grad.shape[4:6]
        total = grad.new_zeros(runs, channels, height + 2 * up, width + 2 * left, batch)
        for i in range(h):
            for j in range(w):
                top, start = i * dilation[0], j * dilation[1]
                total[
                    :,
                    :,
                    top : top + rows * stride[0] : stride[0],
                    start : start + columns * stride[1] : stride[1],
                ] += grad[:, :, i, j]
        inner = total[:, :, up : up + height, left : left + width]
        return inner, None, None, None, None


def _tiles(x: Tensor, h: int, w: int) -> list[Tensor]:
    """The h * w sub-pictures that hold one place of every tile, in the order of the scan."""
    rows, columns = x.shape[2] // h * h, x.shape[3] // w * w
    return [x[:, :, i:rows:h, j:columns:w] for i in range(h) for j in range(w)]


class MaxPool(torch.autograd.Function):
    """Maximum over tiles of h x w places of x (N, C, H, W, B); ties go to the first, as in torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: int, w: int) -> Tensor:  # noqa: D102
        tiles = _tiles(x, h, w)
        best = tiles[0].contiguous()
        winners = []
        for tile in tiles[1:]:
            # Written with "not <=" so that a NaN wins, as it does in torch.
            winners.append(torch.le(tile, best).logical_not_())
            best = torch.maximum(best, tile)
        ctx.save_for_backward(*winners)
        ctx.shape, ctx.size = x.shape, (h, w)
        return best

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: D102
        (grad,) = grads
        total = grad.new_zeros(ctx.shape)
        tiles = _tiles(total, *ctx.size)
        for tile, winner in zip(reversed(tiles[1:]), reversed(ctx.saved_tensors), strict=True):
            torch.mul(grad, winner, out=tile)
            grad = grad - tile
        tiles[0].copy_(grad)
        return total, None, None


class AvgPool(torch.autograd.Function):
    """Mean over tiles of h x w places of x (N, C, H, W, B)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, h: int, w: int) -> Tensor:  # noqa: D102
        first, *others = _tiles(x, h, w)
        ctx.shape, ctx.size = x.shape, (h, w)
        total = first.contiguous() if not others else first + others[0]
        for tile in others[1:]:
            total += tile
        return total / (h * w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # noqa: D102
        h, w = ctx.size
        share = grads[0] / (h * w)
        total = share.new_zeros(ctx.shape)
        for tile in _tiles(total, h, w):
            tile.copy_(share)
        return total, None, None


Masks: TypeAlias = Callable[[Sequence[int], Tensor, float], Tensor]


def recurrent(
    kind: str,
    x: Tensor,
    start: Sequence[Tensor],
    params: Sequence[Tensor],
    layers: int,
    *,
    biases: bool,
    directions: int,
    drop: Masks | None,
    p: float,
) -> tuple[Tensor, list[Tensor]]:
    """Run a stack of recurrent layers, as ``torch.nn.GRU``, ``LSTM`` and ``RNN`` define them.

    The inputs of all time steps are projected by one product, so the loop over time holds only what
    depends on the state.

    Args:
        kind: "gru", "lstm", "rnn_tanh" or "rnn_relu".
        x: (N, features, steps, B).
        start: First states, each (N, layers * directions, B, H): hidden, and cell for "lstm".
        params: Weights and biases in torch's order, stacked.
        layers: Number of layers.
        biases: Whether ``params`` has biases.
        directions: 2 to run each layer backwards in time as well.
        drop: Draws dropout masks between layers; None for no dropout.
        p: Probability of dropout.

    Returns:
        Outputs (N, directions * H, steps, B) and last states like ``start``.
    """
    step = _STEPS[kind]
    lasts: list[tuple[Tensor, ...]] = []
    per_cell = 4 if biases else 2
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            w_input, w_state, *b = params[index * per_cell : (index + 1) * per_cell]
            steps, batch = x.shape[2:]
            # Biases outside the reset gate could be added once; torch's order is kept for all.
            inputs = affine(w_input, b[0] if b else None, x.reshape(*x.shape[:2], steps * batch))
            parts = inputs.view(*inputs.shape[:2], steps, batch).unbind(2)
            state = tuple(s[:, index].mT for s in start)
            hidden: list[Tensor] = []
            for part in reversed(parts) if direction else parts:
                state = step(part, affine(w_state, b[1] if b else None, state[0]), state)
                hidden.append(state[0])
            outputs.append(torch.stack(hidden[::-1] if direction else hidden, dim=2))
            lasts.append(state)
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=1)
        if drop is not None and layer < layers - 1:
            # torch draws the mask for (steps, batch, features)
            x = x * drop((*x.shape[2:], x.shape[1]), x, p).permute(0, 3, 1, 2)
    last = [torch.stack([s.mT for s in states], dim=1) for states in zip(*lasts, strict=True)]
    return x, last


def _gru(part: Tensor, inner: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    (hidden,) = state
    size = hidden.shape[1]
    reset, update = (part[:, : 2 * size] + inner[:, : 2 * size]).sigmoid().chunk(2, dim=1)
    new = torch.addcmul(part[:, 2 * size :], reset, inner[:, 2 * size :]).tanh()
    return (torch.lerp(new, hidden, update),)


def _lstm(part: Tensor, inner: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    _, cell = state
    gates = part + inner
    enter, forget, new, leave = gates.chunk(4, dim=1)
    cell = torch.addcmul(forget.sigmoid() * cell, enter.sigmoid(), new.tanh())
    return leave.sigmoid() * cell.tanh(), cell


def _rnn_tanh(part: Tensor, inner: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return ((part + inner).tanh(),)


def _rnn_relu(part: Tensor, inner: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (F.relu(part + inner),)


_STEPS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "gru": _gru,
    "lstm": _lstm,
    "rnn_tanh": _rnn_tanh,
    "rnn_relu": _rnn_relu,
}
