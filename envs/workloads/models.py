"""The networks of the built-in workloads.

All of them run under ``torch.vmap``: no control flow that reads the data, no dropout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from rlrate.errors import WorkloadError

__all__ = ["MLP", "CharTransformer", "ConvNet", "Quadratic", "Recurrent"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky-relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}


def _activation(name: str) -> nn.Module:
    if name not in _ACTIVATIONS:
        raise WorkloadError(f"unknown activation {name!r}; choose from {', '.join(_ACTIVATIONS)}.")
    return _ACTIVATIONS[name]()


def _norm(name: str, features: int) -> nn.Module:
    if name == "none":
        return nn.Identity()
    if name == "layer":
        return nn.LayerNorm(features)
    if name == "rms":
        return nn.RMSNorm(features)
    if name == "batch":
        return nn.BatchNorm2d(features)
    if name == "group":
        return nn.GroupNorm(math.gcd(features, 4), features)
    raise WorkloadError(f"unknown norm {name!r}; choose from none, layer, rms, batch, group.")


def initialise(module: nn.Module, scheme: str, gain: float) -> None:
    """Set the weights of linear and convolutional layers from torch's global generator.

    Args:
        module: Changed in place.
        scheme: "default" leaves what torch drew; "kaiming", "xavier" and "orthogonal" draw anew and
            set the biases to zero.
        gain: Factor on every weight.
    """
    draw: dict[str, Callable[[Tensor], Tensor]] = {
        "kaiming": nn.init.kaiming_normal_,
        "xavier": nn.init.xavier_normal_,
        "orthogonal": nn.init.orthogonal_,
    }
    for layer in module.modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        if scheme != "default":
            draw[scheme](layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        if gain != 1.0:
            with torch.no_grad():
                layer.weight.mul_(gain)


class MLP(nn.Module):
    """Linear layers with an activation between; without hidden layers, a linear model.

    Args:
        inputs: Features per example; inputs of more axes are flattened.
        outputs: Numbers per example that come out.
        hidden: Widths of the hidden layers.
        activation: Name of the activation.
        norm: "none", "layer" or "rms", before each activation.
        residual: Add a layer's input to its output where the widths agree.
        init: See `initialise`.
        gain: See `initialise`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (),
        *,
        activation: str = "relu",
        norm: str = "none",
        residual: bool = False,
        init: str = "default",
        gain: float = 1.0,
    ) -> None:
        """Create the layers; arguments as above."""
        super().__init__()
        widths = [inputs, *hidden]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(before, after), _norm(norm, after), _activation(activation))
            for before, after in pairwise(widths)
        )
        self.skips = [residual and before == after for before, after in pairwise(widths)]
        self.head = nn.Linear(widths[-1], outputs)
        initialise(self, init, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) -> (batch, outputs)."""
        hidden = inputs.flatten(1)
        for layer, skip in zip(self.layers, self.skips, strict=True):
            hidden = hidden + layer(hidden) if skip else layer(hidden)
        return cast(Tensor, self.head(hidden))


class ConvNet(nn.Module):
    """3 x 3 convolutions that halve the picture twice, then a linear layer.

    Args:
        shape: (channels, height, width) of a picture.
        classes: Logits that come out.
        channels: Channels of the convolutions.
        pool: How the first two convolutions halve the picture: "stride", "average" or "max".
        head: "flatten" or "mean" (over places) before the linear layer.
        activation: Name of the activation.
        norm: "none", "group" or "batch", before each activation.
        residual: Add a convolution's input to its output where the shapes agree.
        init: See `initialise`.
        gain: See `initialise`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        channels: Sequence[int],
        *,
        pool: str = "stride",
        head: str = "flatten",
        activation: str = "relu",
        norm: str = "none",
        residual: bool = False,
        init: str = "default",
        gain: float = 1.0,
    ) -> None:
        """Create the layers; arguments as above."""
        super().__init__()
        before, height, width = shape
        blocks, self.skips = [], []
        for index, after in enumerate(channels):
            halve = index < 2
            stride = 2 if halve and pool == "stride" else 1
            block: list[nn.Module] = [
                # A bias before BatchNorm has no effect, so that its gradient is rounding noise.
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=norm != "batch"),
                _norm(norm, after),
                _activation(activation),
            ]
            if halve and pool != "stride":
                block.append(nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2))
            blocks.append(nn.Sequential(*block))
            self.skips.append(residual and before == after and not halve)
            if halve:
                height, width = height // 2, width // 2
            before = after
        self.blocks = nn.ModuleList(blocks)
        self.flatten = head == "flatten"
        self.head = nn.Linear(before * (height * width if self.flatten else 1), classes)
        initialise(self, init, gain)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channels, height, width) -> (batch, classes)."""
        hidden = inputs
        for block, skip in zip(self.blocks, self.skips, strict=True):
            hidden = hidden + block(hidden) if skip else block(hidden)
        hidden = hidden.flatten(1) if self.flatten else hidden.mean(dim=(2, 3))
        return cast(Tensor, self.head(hidden))


class Recurrent(nn.Module):
    """A GRU or LSTM whose last output a linear layer reads.

    Args:
        inputs: Features per step.
        outputs: Numbers per sequence that come out.
        hidden: Width of the recurrent state.
        cell: "gru" or "lstm".
        layers: Recurrent layers, one on top of the other.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, *, cell: str = "gru", layers: int = 1) -> None:
        """Create the layers; arguments as above."""
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[cell]
        self.core = kind(inputs, hidden, num_layers=layers, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, steps, inputs) -> (batch, outputs)."""
        return cast(Tensor, self.head(self.core(inputs)[0][:, -1]))


class CharTransformer(nn.Module):
    """A causal Transformer on characters: logits of the next character at every position.

    Args:
        characters: Size of the alphabet.
        context: Longest sequence.
        width: Features per position, a multiple of ``heads``.
        heads: Attention heads.
        blocks: Attention and MLP pairs.
        expansion: Width of a block's MLP relative to ``width``.
        pre_norm: Normalise before attention and MLP (else after, as in the original).
        activation: Name of the MLP's activation.
        norm: "layer", "rms" or "none".
        gain: Factor on the weights of every linear layer.
    """

    def __init__(
        self,
        characters: int,
        context: int,
        *,
        width: int = 32,
        heads: int = 2,
        blocks: int = 1,
        expansion: int = 2,
        pre_norm: bool = True,
        activation: str = "gelu",
        norm: str = "layer",
        gain: float = 1.0,
    ) -> None:
        """Create the layers; arguments as above."""
        super().__init__()
        self.embedding = nn.Embedding(characters, width)
        self.position = nn.Parameter(torch.empty(context, width))
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.normal_(self.position, std=0.1)
        self.blocks = nn.ModuleList(
            _Block(width, heads, expansion * width, pre_norm, activation, norm) for _ in range(blocks)
        )
        self.norm = _norm(norm, width) if pre_norm else nn.Identity()
        self.head = nn.Linear(width, characters)
        initialise(self, "default", gain)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, steps) int64 -> (batch, steps, characters)."""
        hidden = self.embedding(inputs) + self.position[: inputs.shape[1]]
        for block in self.blocks:
            hidden = block(hidden)
        return cast(Tensor, self.head(self.norm(hidden)))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, pre_norm: bool, activation: str, norm: str) -> None:
        super().__init__()
        self.heads, self.pre_norm = heads, pre_norm
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), _activation(activation), nn.Linear(inner, width))
        self.norms = nn.ModuleList([_norm(norm, width), _norm(norm, width)])

    def forward(self, hidden: Tensor) -> Tensor:
        first, second = self.norms
        if self.pre_norm:
            hidden = hidden + self._attend(first(hidden))
            return cast(Tensor, hidden + self.mlp(second(hidden)))
        hidden = first(hidden + self._attend(hidden))
        return cast(Tensor, second(hidden + self.mlp(hidden)))

    def _attend(self, hidden: Tensor) -> Tensor:
        # (batch, steps, 3 width) -> three of (batch, heads, steps, width / heads)
        parts = self.project(hidden).unflatten(-1, (3, self.heads, -1)).movedim(2, 0)
        query, key, value = parts.transpose(2, 3).unbind(0)
        # Written out: the fused kernel has no vmap rule on the CPU, and these are tiny.
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        steps = hidden.shape[1]
        future = torch.ones(steps, steps, dtype=torch.bool, device=hidden.device).triu(1)
        weights = scores.masked_fill(future, -math.inf).softmax(dim=-1)
        mixed = (weights @ value).transpose(1, 2).flatten(2)
        return cast(Tensor, self.merge(mixed))


class Quadratic(nn.Module):
    """A point to be moved to the bottom of a quadratic bowl whose centre is seen through noise.

    The output, for noise ``xi``, is ``sqrt(curvature) * (position - optimum - xi)``; half its
    squared length is the loss. The start is drawn from a standard normal distribution.

    Args:
        curvature: (dimensions,) positive numbers, the eigenvalues of the Hessian.
        optimum: (dimensions,) where the bottom is.
    """

    curvature: Tensor
    optimum: Tensor

    def __init__(self, curvature: Tensor, optimum: Tensor) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(curvature.shape))
        self.register_buffer("curvature", curvature.clone())
        self.register_buffer("optimum", optimum.clone())

    def forward(self, noise: Tensor) -> Tensor:
        """(batch, dimensions) -> (batch, dimensions)."""
        return self.curvature.sqrt() * (self.position - self.optimum - noise)
