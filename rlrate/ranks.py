"""What travels: losses from an accelerator to the host, and statistics between the processes of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

Loss = Tensor | float


class Ranks:
    """The processes that train one model together; alone when torch.distributed is not in use.

    Args:
        group: A process group, None for the default one, or False to stay alone.
    """

    def __init__(self, group: Any = None) -> None:
        self._alone = group is False
        self._group = None if group is False else group

    def __getstate__(self) -> dict[str, Any]:
        return {"_alone": self._alone, "_group": None}  # groups can be neither copied nor pickled

    @property
    def size(self) -> int:
        """Number of processes."""
        if self._alone or not dist.is_available() or not dist.is_initialized():
            return 1
        return dist.get_world_size(self._group)

    def device(self, like: torch.device) -> torch.device:
        """Where the backend wants its tensors."""
        return torch.device("cpu") if "gloo" in str(dist.get_backend(self._group)) else like

    def sum(self, tensor: Tensor, *, wait: bool = True) -> Any:
        """Adds up ``tensor`` over the processes, in place; returns a handle unless it waits."""
        return dist.all_reduce(tensor, group=self._group, async_op=not wait)

    def combine(
        self, rows: NDArray[np.float64], count: int, *, sharded: bool, device: torch.device
    ) -> NDArray[np.float64]:
        """Statistics of gradients from all processes.

        Sums over shards are added; those of replicas, which are equal, averaged over the processes that have any.

        Args:
            rows: Samples, shape (samples, columns), of which the first column is the gradient's square; NaN for what
                is not known.
            count: Number of rows to exchange: the same in every process, at least that of the samples.
            sharded: Whether each process holds a part of the parameters.
            device: Where the parameters are.

        Returns:
            Array of shape (samples, columns) that is the same in every process; NaN for what nobody knows.
        """
        rows = rows[-count:]
        padded = np.full((count, rows.shape[1]), math.nan)
        padded[: len(rows)] = rows
        if not sharded:
            padded[padded[:, 0] == 0.0] = math.nan  # no gradient here
        known = ~np.isnan(padded)
        sums = torch.from_numpy(np.stack([np.where(known, padded, 0.0), known.astype(float)])).to(self.device(device))
        self.sum(sums)
        total, number = sums.cpu().numpy()
        with np.errstate(all="ignore"):
            result = np.where(number > 0, total if sharded else total / number, math.nan)
        return np.asarray(result[number[:, 0] > 0])

    def agree(self, value: float, device: torch.device) -> float:
        """The first process's ``value``."""
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device(device))
        dist.broadcast(tensor, group=self._group, group_src=0)
        return float(tensor.cpu()[0])


class Flight:
    """A block of losses on its way to the host, which does not wait for it.

    Args:
        count: Updates in the block.
        losses: Those that are known; of several processes, one entry for each step, None where it is not known.
        doubts: Index of a loss or -1, and a tensor of the number of its updates that a GradScaler skipped.
        ranks: Losses are averaged over these.
        looked: How many of the losses, from the first on, were looked at for an alarm already.
    """

    def __init__(
        self,
        count: int,
        losses: Sequence[Loss | None],
        doubts: Sequence[tuple[int, Tensor]],
        ranks: Ranks,
        looked: int = 0,
    ) -> None:
        self.count, self.looked = count, looked
        self._landed: tuple[list[float], int] | None = None
        self._indices = [index for index, _ in doubts]
        self._size = len(losses)
        tensors = [loss for loss in losses if isinstance(loss, Tensor)] + [doubt for _, doubt in doubts]
        self._size_of_group = ranks.size
        self._shared = ranks.size > 1
        self._work: Any = None
        self._event: Any = None
        if not tensors and not self._shared:
            self._data = torch.tensor(losses, dtype=torch.float64)
            return
        device = tensors[0].device if tensors else torch.device("cpu")
        known = torch.tensor([loss is not None for loss in losses], dtype=torch.float32)
        parts = [_stack([0.0 if loss is None else loss for loss in losses], device)]
        if self._shared:
            parts.append(known.to(device, non_blocking=True))
        if doubts:
            parts.append(_stack([doubt for _, doubt in doubts], device))
        data = torch.cat(parts)
        if self._shared:
            data = data.to(ranks.device(device))
            self._work = ranks.sum(data, wait=False)
            if data.device.type != "cpu":
                self._work.wait()  # the stream waits, not the host
                self._work = None
        self._data = data.to("cpu", non_blocking=True) if data.device.type != "cpu" else data
        if data.device.type == "cuda":
            self._event = torch.Event(data.device)
            self._event.record()

    @classmethod
    def landed(cls, count: int, losses: Sequence[float], skipped: int, looked: int = 0) -> Flight:
        """A block that has arrived."""
        flight = cls(count, [], [], Ranks(False), looked)
        flight._landed = list(losses), skipped
        return flight

    def ready(self) -> bool:
        """Whether the losses have arrived."""
        return self._event is None or bool(self._event.query())

    def land(self) -> tuple[list[float], int]:
        """The losses that are known, and how many of the updates turned out to be skipped; waits if it must."""
        if self._landed is not None:
            return self._landed
        if self._work is not None:
            self._work.wait()
        if self._event is not None:
            self._event.synchronize()
        self._work = self._event = None
        values = self._data.tolist()
        losses, rest = values[: self._size], values[self._size :]
        gone: set[int] = set()
        if self._shared:
            known, rest = rest[: self._size], rest[self._size :]
            gone = {index for index, number in enumerate(known) if number == 0}
            losses = [loss / max(number, 1.0) for loss, number in zip(losses, known, strict=True)]
        gone |= {index for index, number in zip(self._indices, rest, strict=True) if number > 0}
        skipped = sum(rest) / self._size_of_group  # every process skips the same updates
        self._landed = [loss for index, loss in enumerate(losses) if index not in gone], round(skipped)
        return self._landed


def _stack(values: Sequence[Loss], device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.tensor([float(value) for value in values], dtype=torch.float64)
    dtype = torch.float64 if device.type == "cuda" else torch.float32
    tensors = [v if isinstance(v, Tensor) else torch.full((), v, device=device) for v in values]
    return torch.stack([tensor.reshape(()).to(device, dtype) for tensor in tensors])
