"""Gradient and update statistics from a fixed subset of coordinates, for N runs at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlrate.errors import ConfigError

#: Columns of a sample, each summed over coordinates: |g|^2, g.g_previous, |g_previous|^2, |u|^2, |w|^2,
#: -g.u and the largest |u_l|^2/|w_l|^2 over weight matrices l (u: the update that was applied).
COLUMNS = ("gg", "gp", "pp", "uu", "ww", "gu", "layer")

#: Smallest root mean square of the weights assumed, so that a network that starts at zero can leave it.
WEIGHT_FLOOR = 1e-2

Optional = Tensor | None
#: The tensors of all parameters: one each, or one matrix of which they are parts.
Tensors = Sequence[Optional] | Tensor
Combine = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class UpdateSampler:
    """Measures gradients and weight updates around an optimizer step, without leaving the device.

    At most about ``limit`` coordinates per run are looked at: every ``k``-th of each parameter, weighted by the share
    they stand for, so the memory needed does not grow with the model. Models below the limit are measured exactly.

    Args:
        shapes: Shape of each parameter of one run (without the leading axis of runs).
        runs: N, the number of runs.
        device: Where the statistics are kept.
        dtype: Arithmetic; half precision parameters are measured in float32.
        limit: Number of coordinates.
        sizes: Number of coordinates of each whole parameter, when ``shapes`` are those of shards.
        starts: First column of each parameter, for callers that have the parameters of a run in one row of a matrix.
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        runs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        limit: int = 1024,
        sizes: Sequence[int] | None = None,
        starts: Sequence[int] = (),
    ) -> None:
        total = sum(shape.numel() for shape in shapes)
        self.runs = runs
        self.dtype = dtype if dtype == torch.float64 else torch.float32
        self.device = torch.device(device)
        self.strides = [_stride(shape, total, limit) for shape in shapes]
        self.counts = [-(-shape.numel() // k) for shape, k in zip(shapes, self.strides, strict=True)]
        weights = [
            torch.full((count,), shape.numel() / max(count, 1), dtype=self.dtype)
            for shape, count in zip(shapes, self.counts, strict=True)
        ]
        self.weights = (torch.cat(weights) if weights else torch.zeros(0)).to(self.device)
        self._root = self.weights.sqrt()
        sizes = [shape.numel() for shape in shapes] if sizes is None else sizes
        matrices = [i for i, shape in enumerate(shapes) if len(shape) >= 2 and sizes[i] > 0]
        self.floor = sum(sizes) * WEIGHT_FLOOR**2
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self._segments = [(int(offsets[i]), int(offsets[i + 1])) for i in matrices]
        self._segment_floor = np.array([[sizes[i] * WEIGHT_FLOOR**2] for i in matrices])
        self._uniform = all(k == 1 for k in self.strides)
        self._columns: Optional = None
        if starts:
            parts = zip(starts, self.strides, self.counts, strict=True)
            self._columns = torch.cat([torch.arange(a, a + k * n, k) for a, k, n in parts]).to(self.device)
        self._before: Tensor | None = None
        self._gradient: Tensor | None = None
        self._previous: Tensor | None = None
        self._samples: list[tuple[Tensor, Tensor]] = []

    def gather(self, tensors: Tensors) -> Tensor:
        """The sampled coordinates of ``tensors``: shape (N, S).

        Each is multiplied by the square root of the share it stands for, so that plain sums of products estimate those
        over all coordinates.

        Args:
            tensors: Each (N, ...) or None for zeros; or one matrix (N, columns) that holds them as ``starts`` says.
        """
        if isinstance(tensors, Tensor):
            assert self._columns is not None
            values = tensors.detach().index_select(1, self._columns).to(self.device, self.dtype)
            return values if self._uniform else values.mul_(self._root)
        if self.runs == 1:
            return self._gather_single(tensors)
        parts = []
        for tensor, k, count in zip(tensors, self.strides, self.counts, strict=True):
            if tensor is None:
                parts.append(torch.zeros((self.runs, count), dtype=self.dtype, device=self.device))
                continue
            flat = tensor.detach().reshape(self.runs, -1)
            parts.append((flat if k == 1 else flat[:, ::k]).to(self.device, self.dtype))
        values = torch.cat(parts, dim=1) if parts else torch.zeros((self.runs, 0), dtype=self.dtype)
        return values if self._uniform else values * self._root

    @torch.no_grad()
    def _gather_single(self, tensors: Sequence[Optional]) -> Tensor:
        """The same with fewer operations; the leading axis may be missing."""
        parts = []
        for tensor, k, count in zip(tensors, self.strides, self.counts, strict=True):
            if tensor is None:
                part = torch.zeros(count, dtype=self.dtype, device=self.device)
            else:
                part = tensor.as_strided((count,), (k,)) if tensor.is_contiguous() else _pick(tensor, count, k)
                if part.device != self.device or part.dtype != self.dtype:
                    part = part.to(self.device, self.dtype)
            parts.append(part)
        values = torch.cat(parts) if parts else torch.zeros(0, dtype=self.dtype)
        return (values if self._uniform else values * self._root).unsqueeze(0)

    def norms(self, tensors: Tensors) -> Tensor:
        """Euclidean norm of each run's tensors, estimated from the sample: shape (N,)."""
        norms: Tensor = torch.linalg.vector_norm(self.gather(tensors), dim=1)
        return norms

    def before(self, parameters: Tensors, gradients: Tensors, *, scale: Optional = None) -> None:
        """Call with the gradients in place, just before the optimizer's update; they are divided by ``scale``."""
        self._before = self.gather(parameters)
        self._gradient = self.gather(gradients)
        if scale is not None:
            self._gradient = self._gradient / scale.to(self._gradient.device)

    def after(self, parameters: Tensors) -> None:
        """Call just after the update: adds one sample (nothing when ``before`` was not called)."""
        if self._before is None or self._gradient is None:
            return
        weights, gradient, previous = self._before, self._gradient, self._previous
        rows = [gradient, self.gather(parameters) - weights, weights]
        stack = torch.stack(rows if previous is None else [*rows, previous], dim=1)
        squares = stack[:, 1:3].square()
        layers = [squares[:, :, a:b].sum(2) for a, b in self._segments]
        # What the columns are made of is looked at later, on the host.
        self._samples.append(
            (stack @ stack.mT, torch.stack(layers) if layers else squares.new_zeros((0, self.runs, 2)))
        )
        self._previous, self._before, self._gradient = gradient, None, None

    def collect(self, combine: Combine | None = None) -> NDArray[np.float64]:
        """Samples since the last call, copied to the host: shape (samples, 7, N). Forgets the last gradient.

        Args:
            combine: Is given what the columns are made of, sums over coordinates, as rows of shape (samples, sums);
                what it returns takes their place.
        """
        self._previous = None
        samples, self._samples = self._samples, []
        if not samples and combine is None:
            return np.zeros((0, len(COLUMNS), self.runs))
        # Two copies, however many samples there are: each makes an accelerator wait.
        packed, layers = np.zeros(0), np.zeros((0, len(self._segments), self.runs, 2))
        if samples:
            packed = torch.cat([products.flatten() for products, _ in samples]).to("cpu", torch.float64).numpy()
            layers = torch.stack([sums for _, sums in samples]).to("cpu", torch.float64).numpy()
        values, at = np.full((len(samples), self.runs, 4, 4), math.nan), 0
        for sample, (products, _) in zip(values, samples, strict=True):
            size = products.shape[1]  # the first one has no gradient before it
            sample[:, :size, :size] = packed[at : at + products.numel()].reshape(products.shape)
            at += products.numel()
        if combine is not None:
            size = self.runs * 16
            sums = combine(np.concatenate([values.reshape(-1, size), layers.reshape(len(layers), -1)], axis=1))
            values = sums[:, :size].reshape(-1, self.runs, 4, 4)
            layers = sums[:, size:].reshape(len(sums), *layers.shape[1:])
        gg, uu, ww, gu = values[:, :, 0, 0], values[:, :, 1, 1], values[:, :, 2, 2], -values[:, :, 0, 1]
        layer = np.zeros_like(gg)
        if layers.size:
            with np.errstate(all="ignore"):
                layer = (layers[..., 0] / np.maximum(layers[..., 1], self._segment_floor)).max(axis=1)
        rows = [gg, values[:, :, 0, 3], values[:, :, 3, 3], uu, np.maximum(ww, self.floor), gu, layer]
        return np.stack(rows, axis=1)

    def state_dict(self) -> dict[str, Any]:
        """Samples since the last :meth:`collect` and the gradient that the next cosine needs, as tensors."""
        previous = None if self._previous is None else self._previous.clone()
        return {"previous": previous, "samples": [[a.clone(), b.clone()] for a, b in self._samples]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned.

        Raises:
            ConfigError: when the state belongs to parameters of other shapes.
        """
        previous, samples = state["previous"], state["samples"]
        if previous is not None and previous.shape != (self.runs, sum(self.counts)):
            raise ConfigError("the state was saved with parameters of other shapes")
        self._before = self._gradient = None
        self._previous = None if previous is None else previous.to(self.device, self.dtype, copy=True)
        self._samples = [
            (a.to(self.device, self.dtype, copy=True), b.to(self.device, self.dtype, copy=True)) for a, b in samples
        ]


def _pick(tensor: Tensor, count: int, k: int) -> Tensor:
    """Every ``k``-th coordinate of a tensor of any layout in memory, without a copy of the whole."""
    coordinates = torch.arange(0, count * k, k, device=tensor.device)
    return tensor[torch.unravel_index(coordinates, tensor.shape)].clone()


def _stride(shape: torch.Size, total: int, limit: int) -> int:
    """Every how many coordinates of a parameter are sampled."""
    size = shape.numel()
    if total <= limit or size <= 4:
        return 1
    k = max(1, size // max(4, round(limit * size / total)))
    # A stride that shares a factor with the row length would visit only some columns.
    row = shape[-1] if len(shape) else 1
    while k > 1 and math.gcd(k, max(row, 1)) != 1:
        k += 1
    return k
