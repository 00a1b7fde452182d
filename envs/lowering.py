"""Forward passes of many networks at once, with the operations that vmap does badly replaced.

``torch.vmap`` turns the forward pass of one network into that of a stack of networks, operation by
operation. Some of its rules are slow on a CPU (linear layers and convolutions copy their weights, a
convolution becomes a grouped one) and some are missing (recurrent layers). `Lowering` intercepts
those calls inside ``vmap`` and computes them on the stacked tensors directly. What it does not
recognise it leaves to vmap.

Throughout, the *feature-major* layout is used where there is a choice: the stacked activations of a
layer live in memory as (networks, features, places, batch). The weights (networks, outputs, inputs)
then multiply from the left, so that their gradients come out in their own layout, without a
transposed copy; the bias gradient and batch statistics are sums over contiguous memory; and
convolutions and pooling read runs of ``batch`` numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch._C import _functorch  # no public way from vmap's tensors to the stacks and back
from torch._functorch import vmap as _vmap
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rlrate.envs import kernels

__all__ = ["Lowering", "Stacked"]

Handler: TypeAlias = Callable[..., Any]


class Stacked:
    """A level of ``vmap`` over ``runs`` networks, as a context.

    It is what ``torch.vmap`` does around a call, without the handling of nested containers, which
    costs more than the operations of a small network.
    """

    def __init__(self, runs: int) -> None:
        self._runs = runs

    def __enter__(self) -> Stacked:
        _vmap.lazy_load_decompositions()  # type: ignore[attr-defined]
        self._level = _functorch._vmap_increment_nesting(self._runs, "different")
        return self

    def __exit__(self, *error: object) -> None:
        _functorch._vmap_decrement_nesting()

    def enter(self, stack: Tensor) -> Tensor:
        """The tensor that a network sees of a stack (runs, ...)."""
        return _functorch._add_batch_dim(stack, 0, self._level)

    def leave(self, value: Tensor) -> Tensor:
        """The stack (runs, ...) of what a network computed."""
        return _functorch._remove_batch_dim(value, self._level, self._runs, 0)


class Lowering(TorchFunctionMode):
    """Active inside a ``vmap`` over networks: computes known operations on the stacked tensors.

    Args:
        noise: One generator per network, for dropout: its masks are then those that the network
            would draw alone, with torch's global generator in the same state.
        targets: The minibatch's stacked targets where all of them are classes >= 0, else None.
            Class targets of other origin may be ``ignore_index`` and are left to vmap.
    """

    def __init__(self, noise: Sequence[torch.Generator], targets: Tensor | None = None) -> None:
        super().__init__()
        self.noise = noise
        self._classes = None if targets is None else targets.untyped_storage().data_ptr()
        self._level = -1

    def __enter__(self) -> Lowering:
        self._level = _functorch.maybe_current_level() or -1
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        handler = _HANDLERS.get(func)
        if handler is not None and _functorch.maybe_current_level() == self._level:
            result = handler(self, *args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        return func(*args, **(kwargs or {}))

    def stacked(self, value: Any) -> Tensor | None:
        """The stack (N, ...) behind one of vmap's tensors; None for a value all networks share."""
        if not isinstance(value, Tensor) or not _functorch.is_batchedtensor(value):
            return None
        stack = _functorch.get_unwrapped(value)
        if _functorch.is_functorch_wrapped_tensor(stack):
            return None
        axis = _functorch.maybe_get_bdim(value)
        return stack if axis == 0 else stack.movedim(axis, 0)

    def wrap(self, stack: Tensor) -> Tensor:
        """Hand a stack (N, ...) back to vmap."""
        return _functorch._add_batch_dim(stack, 0, self._level)

    def mask(self, shape: Sequence[int], like: Tensor, p: float) -> Tensor:
        """Dropout masks (N, *shape), drawn as torch draws them for one network, scaled."""
        masks = [
            torch.empty(shape, dtype=like.dtype).bernoulli_(1 - p, generator=generator) for generator in self.noise
        ]
        return torch.stack(masks).div_(1 - p)


def _linear(mode: Lowering, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    x, w, b = mode.stacked(input), mode.stacked(weight), mode.stacked(bias)
    if w is None or w.ndim != 3 or (bias is not None and b is None):
        return NotImplemented
    if x is None:
        if _functorch.is_functorch_wrapped_tensor(input):
            return NotImplemented
        x = input.expand(len(w), *input.shape)
    with temporarily_pop_interpreter_stack():
        rows = x if x.ndim == 3 else x.reshape(len(x), -1, x.shape[-1])
        y = kernels.affine(w, b, rows.mT).mT
        return mode.wrap(y if x.ndim == 3 else y.reshape(*x.shape[:-1], w.shape[1]))


def _cross_entropy(
    mode: Lowering,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    x, y = mode.stacked(input), mode.stacked(target)
    usual = weight is None and size_average is None and reduce is None and ignore_index < 0
    if (
        not usual
        or reduction != "mean"
        or label_smoothing != 0.0
        or x is None
        or y is None
        or x.ndim < 3
        or y.ndim != x.ndim - 1
        or y.untyped_storage().data_ptr() != mode._classes
    ):
        return NotImplemented
    with temporarily_pop_interpreter_stack():
        # (N, batch, classes, ...) -> (N, classes, batch * ...): the sums run over contiguous rows.
        logits = x.movedim(2, 1).flatten(2)
        classes = y.flatten(1).unsqueeze(1)
        loss = -F.log_softmax(logits, dim=1).gather(1, classes).squeeze(1).mean(1)
        return mode.wrap(loss)


def _conv(
    mode: Lowering,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    x, w, b = mode.stacked(input), mode.stacked(weight), mode.stacked(bias)
    if w is None or (bias is not None and b is None) or groups != 1 or isinstance(padding, str):
        return NotImplemented
    axes = w.ndim - 3
    if x is None:
        if _functorch.is_functorch_wrapped_tensor(input):
            return NotImplemented
        x = input.expand(len(w), *input.shape)
    if x.ndim != axes + 3:
        return NotImplemented
    steps, pads, holes = (_tuple(value, axes) for value in (stride, padding, dilation))
    with temporarily_pop_interpreter_stack():
        if axes == 1:  # a picture one row high
            x, w = x.unsqueeze(-2), w.unsqueeze(-2)
            steps, pads, holes = (1, *steps), (0, *pads), (1, *holes)
        y = kernels.convolve(w, b, x.movedim(1, -1), steps, pads, holes).movedim(-1, 1)
        return mode.wrap(y.squeeze(-2) if axes == 1 else y)


def _max_pool2d(
    mode: Lowering,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    if _tuple(dilation, 2) != (1, 1) or return_indices:
        return NotImplemented
    return _pool2d(mode, input, kernel_size, stride, padding, ceil_mode, kernels.MaxPool.apply)


def _avg_pool2d(
    mode: Lowering,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    if divisor_override is not None:
        return NotImplemented
    return _pool2d(mode, input, kernel_size, stride, padding, ceil_mode, kernels.AvgPool.apply)


def _pool2d(
    mode: Lowering,
    input: Tensor,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    pool: Any,
) -> Any:
    x, size = mode.stacked(input), _tuple(kernel_size, 2)
    tiles = stride is None or stride == [] or _tuple(stride, 2) == size
    if x is None or x.ndim != 5 or not tiles or _tuple(padding, 2) != (0, 0) or ceil_mode:
        return NotImplemented
    with temporarily_pop_interpreter_stack():
        return mode.wrap(pool(x.movedim(1, -1), *size).movedim(-1, 1))


def _batch_norm(
    mode: Lowering,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    x = mode.stacked(input)
    rest = [mode.stacked(value) for value in (running_mean, running_var, weight, bias)]
    given = (running_mean, running_var, weight, bias)
    if x is None or any((a is None) != (b is None) for a, b in zip(given, rest, strict=True)):
        return NotImplemented
    if any(r is not None and not r.is_contiguous() for r in rest[:2]):
        return NotImplemented
    with temporarily_pop_interpreter_stack():
        # The channels of all networks are the channels of one picture (networks * channels, -1).
        features = x.movedim(1, -1)
        mean, var, scale, shift = (None if r is None else r.reshape(-1) for r in rest)
        channels = features.reshape(1, x.shape[0] * x.shape[2], -1)
        y = F.batch_norm(channels, mean, var, scale, shift, training, momentum, eps)
        return mode.wrap(y.view(features.shape).movedim(-1, 1))


def _attention(
    mode: Lowering,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if dropout_p != 0.0 or enable_gqa:
        return NotImplemented
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -torch.inf)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        else:
            scores = scores + attn_mask
    return scores.softmax(-1) @ value


def _dropout(mode: Lowering, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    x = mode.stacked(input)
    if x is None or inplace or not training or not 0.0 < p < 1.0:
        return NotImplemented
    with temporarily_pop_interpreter_stack():
        return mode.wrap(x * mode.mask(x.shape[1:], x, p))


def _random(func: Any, like: bool) -> Handler:
    def handler(mode: Lowering, *args: Any, **kwargs: Any) -> Any:
        if not mode.noise or "generator" in kwargs or "out" in kwargs:
            return NotImplemented
        if like:  # drawn as torch draws it for one network, whose tensor is a row of the stack
            x, stack = args[0], mode.stacked(args[0])
            if stack is None and _functorch.is_functorch_wrapped_tensor(x):
                return NotImplemented
            kwargs = {"dtype": x.dtype, **kwargs}
            args = (x.shape if stack is None else stack.shape[1:],)
        with temporarily_pop_interpreter_stack():
            draws = [func(*args, **kwargs, generator=generator) for generator in mode.noise]
            return mode.wrap(torch.stack(draws))

    return handler


def _recurrent(kind: str) -> Handler:
    def handler(
        mode: Lowering,
        input: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: Any = False,
    ) -> Any:
        if not isinstance(has_biases, bool):  # a packed sequence
            return NotImplemented
        weights = [mode.stacked(weight) for weight in params]
        per_layer = 4 if has_biases else 2
        if any(w is None for w in weights) or len(weights) != per_layer * num_layers * (2 if bidirectional else 1):
            return NotImplemented
        stacks = cast(list[Tensor], weights)
        runs = len(stacks[0])
        start = [mode.stacked(h) for h in (hx if isinstance(hx, (tuple, list)) else (hx,))]
        given = hx if isinstance(hx, (tuple, list)) else (hx,)
        start = [g.expand(runs, *g.shape) if s is None else s for g, s in zip(given, start, strict=True)]
        x = mode.stacked(input)
        x = input.expand(runs, *input.shape) if x is None else x
        if x.ndim != 4:
            return NotImplemented
        drop = mode.mask if train and dropout > 0 else None
        with temporarily_pop_interpreter_stack():
            # (N, steps, batch, features) -> (N, features, steps, batch)
            sequence = x.permute(0, 3, 2, 1) if batch_first else x.permute(0, 3, 1, 2)
            output, last = kernels.recurrent(
                kind,
                sequence,
                cast(list[Tensor], start),
                stacks,
                num_layers,
                biases=has_biases,
                directions=2 if bidirectional else 1,
                drop=drop,
                p=dropout,
            )
            output = output.permute(0, 3, 2, 1) if batch_first else output.permute(0, 2, 3, 1)
            return tuple(mode.wrap(t) for t in (output, *last))

    return handler


def _tuple(value: Any, length: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * length if len(values) == 1 else values


_HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    F.cross_entropy: _cross_entropy,
    torch.conv1d: _conv,
    torch.conv2d: _conv,
    F.max_pool2d: _max_pool2d,
    F.avg_pool2d: _avg_pool2d,
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    F.dropout: _dropout,
    torch.rand: _random(torch.rand, like=False),
    torch.randn: _random(torch.randn, like=False),
    torch.rand_like: _random(torch.rand, like=True),
    torch.randn_like: _random(torch.randn, like=True),
    torch._VF.gru: _recurrent("gru"),
    torch._VF.lstm: _recurrent("lstm"),
    torch._VF.rnn_tanh: _recurrent("rnn_tanh"),
    torch._VF.rnn_relu: _recurrent("rnn_relu"),
}
