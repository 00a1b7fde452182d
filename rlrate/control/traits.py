"""What an optimizer's settings tell of its updates, whatever its class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: Momentum counts as this at most, so that its memory 1 / (1 - momentum) stays finite.
MOST_MOMENTUM = 0.9999


@dataclass(frozen=True)
class OptimizerTraits:
    """How the updates of an optimizer come about; those of plain SGD where nothing is known.

    Attributes:
        adaptive: Whether updates are divided by the size of the gradients, coordinate by coordinate (AdaGrad, RMSprop,
            Adam and their kin, and those that take the sign).
        momentum: Share of an update that the next one keeps, in [0, 1): ``momentum``, or the first of ``betas``.
    """

    adaptive: bool = False
    momentum: float = 0.0

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> OptimizerTraits:
        """Reads the parameter group of an optimizer, by the names that torch's own optimizers use for settings.

        SGD and its kin have neither ``eps``, which keeps a division from failing, nor ``betas``.
        """
        betas = group.get("betas")
        first = betas[0] if isinstance(betas, tuple | list) and betas else None
        kept = max(_share(group.get("momentum")), _share(first))
        return cls("eps" in group or betas is not None, min(kept, MOST_MOMENTUM))


def _share(value: object) -> float:
    """A setting in [0, 1]; 0 for anything else."""
    if not isinstance(value, int | float | torch.Tensor):
        return 0.0
    number = float(value)
    return number if 0.0 <= number <= 1.0 else 0.0
