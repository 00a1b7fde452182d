"""The learning rates of an optimizer's groups: their ratios, their bounds, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

Rate = float | Tensor
Group = dict[str, Any]


class Groups:
    """Spreads one rate over parameter groups by the ratios of the rates that they were given.

    Args:
        rates: The given rates.
        max_lr: Highest rate of each group, or one for all.
    """

    def __init__(self, rates: Iterable[Rate], max_lr: float | Sequence[float]) -> None:
        self._highest = None if isinstance(max_lr, int | float) else [float(bound) for bound in max_lr]
        self._bound = float(max_lr) if isinstance(max_lr, int | float) else math.inf
        self.take(rates)

    def __len__(self) -> int:
        return len(self._given)

    @property
    def largest(self) -> float:
        """The largest given rate."""
        return self._largest

    @property
    def highest(self) -> float:
        """The rate of the group with the largest given one at which every group has met its bound."""
        if self._highest is None:
            return self._bound
        pairs = zip(self._highest, self._given, strict=False)
        return max((bound * (self._largest / given) for bound, given in pairs if given > 0.0), default=math.inf)

    def take(self, rates: Iterable[Rate]) -> None:
        """Notes the given rates anew; when none of them is positive and finite, all count the same."""
        self._given = [float(rate) for rate in rates]
        self._largest = max(self._given)
        if not (math.isfinite(self._largest) and self._largest > 0.0):
            self._given, self._largest = [1e-3] * len(self._given), 1e-3

    def spread(self, rate: float) -> list[float]:
        """The rate of each group; the one that was given the largest gets exactly ``rate``."""
        largest = self._largest
        rates = [rate if given == largest else given * (rate / largest) for given in self._given]
        if self._highest is not None:
            rates[: len(self._highest)] = map(min, rates, self._highest)
        # A group that was added later may have been given more than the largest one.
        return [min(each, self._bound) for each in rates]

    def join(self, groups: Sequence[Group]) -> list[float]:
        """Takes in the groups that were added since the last call; returns the rates they were given."""
        added = []
        for group in groups[len(self._given) :]:
            lr = group["lr"]
            # A default that is a tensor is shared by the groups, and already holds the current rate.
            twins = [given for other, given in zip(groups, self._given, strict=False) if other["lr"] is lr]
            given = twins[0] if twins and isinstance(lr, Tensor) else float(lr)
            self._given.append(given if math.isfinite(given) else self._largest)
            group.setdefault("initial_lr", self._given[-1])
            added.append(self._given[-1])
        return added

    def state_dict(self) -> dict[str, Any]:
        """The given rates."""
        return {"given": list(self._given), "largest": self._largest}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from what :meth:`state_dict` returned."""
        self._given, self._largest = list(state["given"]), state["largest"]


def write(groups: Sequence[Group], rates: Sequence[Rate]) -> None:
    """Sets the groups' rates; a tensor is filled in place, so that a compiled optimizer keeps its graph."""
    for group, rate in zip(groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def changed(groups: Sequence[Group], last: Sequence[Rate]) -> bool:
    """Whether somebody else may have written a rate since ``last`` was; accelerators are not asked."""
    for group, rate in zip(groups, last, strict=False):
        lr = group["lr"]
        if isinstance(lr, Tensor):
            if lr.device.type != "cpu" or lr.item() != float(rate):
                return True
        elif lr != rate:
            return True
    return False


def copies(rates: Iterable[Rate]) -> list[Rate]:
    """The rates; those that are tensors as tensors of their own."""
    return [rate.clone() if isinstance(rate, Tensor) else rate for rate in rates]
