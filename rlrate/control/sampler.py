"""Gradient and update statistics from a fixed subset of coordinates, for N runs at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
WEIGHT_FLOOR = 1e-3

Optional = Tensor | None


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
    """

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        runs: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        limit: int = 2048,
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
        matrices = [i for i, shape in enumerate(shapes) if len(shape) >= 2 and shape.numel() > 0]
        self.weights = (torch.cat(weights) if weights else torch.zeros(0)).to(self.device)
        self._root = self.weights.sqrt()
        self.floor = total * WEIGHT_FLOOR**2
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        self._segments = [(int(offsets[i]), int(offsets[i + 1])) for i in matrices]
        self._segment_floor = torch.tensor(
            [shapes[i].numel() * WEIGHT_FLOOR**2 for i in matrices], dtype=self.dtype
        ).to(self.device)
        self._uniform = all(k == 1 for k in self.strides)
        self._before: Tensor | None = None
        self._gradient: Tensor | None = None
        self._previous: Tensor | None = None
        self._samples: list[Tensor] = []

    def gather(self, tensors: Sequence[Optional]) -> Tensor:
        """The sampled coordinates of ``tensors``, each (N, ...) or None for zeros: shape (N, S).

        Each is multiplied by the square root of the share it stands for, so that plain sums of products estimate those
        over all coordinates.
        """
        parts = []
        for tensor, k, count in zip(tensors, self.strides, self.counts, strict=True):
            if tensor is None:
                parts.append(torch.zeros((self.runs, count), dtype=self.dtype, device=self.device))
                continue
            flat = tensor.detach().reshape(self.runs, -1)
            parts.append((flat if k == 1 else flat[:, ::k]).to(self.device, self.dtype))
        values = torch.cat(parts, dim=1) if parts else torch.zeros((self.runs, 0), dtype=self.dtype)
        return values if self._uniform else values * self._root

    def norms(self, tensors: Sequence[Optional]) -> Tensor:
        """Euclidean norm of each run's tensors, estimated from the sample: shape (N,)."""
        norms: Tensor = torch.linalg.vector_norm(self.gather(tensors), dim=1)
        return norms

    def before(self, parameters: Sequence[Tensor], gradients: Sequence[Optional], *, scale: Optional = None) -> None:
        """Call with the gradients in place, just before the optimizer's update; they are divided by ``scale``."""
        self._before = self.gather(parameters)
        self._gradient = self.gather(gradients)
        if scale is not None:
            self._gradient = self._gradient / scale.to(self._gradient.device)

    def after(self, parameters: Sequence[Tensor]) -> None:
        """Call just after the update: adds one sample (nothing when ``before`` was not called)."""
        if self._before is None or self._gradient is None:
            return
        weights, gradient, previous = self._before, self._gradient, self._previous
        rows = [gradient, self.gather(parameters) - weights, weights]
        stack = torch.stack(rows if previous is None else [*rows, previous], dim=1)
        products = stack @ stack.mT  # (N, 3 or 4, 3 or 4)
        gg, uu, ww, gu = products[:, 0, 0], products[:, 1, 1], products[:, 2, 2], -products[:, 0, 1]
        if previous is None:
            gp = pp = torch.full_like(gg, math.nan)
        else:
            gp, pp = products[:, 0, 3], products[:, 3, 3]
        layer = self._largest_layer_ratio(stack[:, 1:3].square())
        self._samples.append(torch.stack([gg, gp, pp, uu, ww.clamp_min(self.floor), gu, layer]))
        self._previous, self._before, self._gradient = gradient, None, None

    def collect(self) -> NDArray[np.float64]:
        """Samples since the last call, copied to the host: shape (samples, 7, N). Forgets the last gradient."""
        self._previous = None
        if not self._samples:
            return np.zeros((0, len(COLUMNS), self.runs))
        stacked = torch.stack(self._samples).to("cpu", torch.float64).numpy()
        self._samples.clear()
        return np.asarray(stacked)

    def state_dict(self) -> dict[str, Any]:
        """Samples since the last :meth:`collect` and the gradient that the next cosine needs, as tensors."""
        previous = None if self._previous is None else self._previous.clone()
        return {"previous": previous, "samples": [sample.clone() for sample in self._samples]}

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
        self._samples = [sample.to(self.device, self.dtype, copy=True) for sample in samples]

    def _largest_layer_ratio(self, squares: Tensor) -> Tensor:
        """Largest |u_l|^2 / |w_l|^2 from the squares of update and weights, shape (N, 2, S)."""
        if not self._segments:
            return torch.zeros(self.runs, dtype=self.dtype, device=self.device)
        sums = torch.stack([squares[:, :, a:b].sum(2) for a, b in self._segments])
        return (sums[:, :, 0] / sums[:, :, 1].clamp_min(self._segment_floor[:, None])).amax(0)


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
