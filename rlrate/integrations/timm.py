"""LearnedLR in a training loop that is written for timm's schedulers.

They are called ``step(epoch, metric)`` after each epoch and ``step_update(num_updates, metric)`` after each update, and
multiply the rate of a parameter group by its ``lr_scale``. timm itself is not needed.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, SupportsFloat

from torch import Tensor
from torch.optim import Optimizer

from rlrate.controller import Controller
from rlrate.groups import copies, write
from rlrate.scheduler import LearnedLR

Metric = Tensor | SupportsFloat | None


class TimmLearnedLR:
    """A LearnedLR with the calls of timm's schedulers.

    Args:
        optimizer: As for :class:`rlrate.LearnedLR`. Groups keep the ratios of their rates times their ``lr_scale``.
        total_steps: The budget: epochs times updates in an epoch.
        controller: As for :class:`rlrate.LearnedLR`, like all ``options``.
        options: ``min_lr``, ``max_lr``, ``steps_per_epoch``, ``process_group``.

    Raises:
        SchedulerError: for arguments that LearnedLR refuses.
        ControllerError: when the controller cannot be loaded.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None,
        controller: Controller | str | os.PathLike[str] = "default",
        **options: Any,
    ) -> None:
        groups = optimizer.param_groups
        for group in groups:
            group.setdefault("initial_lr", *copies([group["lr"]]))
        if any("lr_scale" in group for group in groups):
            write(groups, [group["initial_lr"] * group.get("lr_scale", 1.0) for group in groups])
        self.optimizer = optimizer
        self.scheduler = LearnedLR(optimizer, total_steps, controller, **options)
        self.metric: Metric = None
        self._begun = False

    def step(self, epoch: int, metric: Metric = None) -> None:
        """Call after each epoch. The rate follows updates, not epochs: after :meth:`step_update`, this does nothing.

        Args:
            epoch: The next epoch's number; tells a run that goes on from one that begins.
            metric: Kept as ``metric``, and not used otherwise.
        """
        self._begin(epoch > 0)
        if self.scheduler.pending:
            self.scheduler.step()
        if metric is not None:
            self.metric = metric

    def step_update(self, num_updates: int, metric: Metric = None) -> None:
        """Call after each update.

        Args:
            num_updates: Updates so far; they are counted where the optimizer makes them, so this too only tells a run
                that goes on from one that begins.
            metric: The loss of this update, as for :meth:`rlrate.LearnedLR.step`.

        Raises:
            SchedulerError: for a loss that is not a scalar.
        """
        self._begin(num_updates > 1)
        if self.scheduler.pending:  # timm also calls this to set the rate with which a run goes on
            self.scheduler.step(metric)

    def state_dict(self) -> dict[str, Any]:
        """That of the LearnedLR; timm's checkpoints do not hold it, so save it beside them."""
        return self.scheduler.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continues where :meth:`state_dict` was called.

        Raises:
            SchedulerError: when the state is not that of a LearnedLR with this controller and budget.
        """
        self.scheduler.load_state_dict(state_dict)
        self._begun = True

    def _begin(self, later: bool) -> None:
        """At the first call: warns when it is that of a run that goes on, and yet no update was seen."""
        if later and not self._begun and not self.scheduler.updates:
            warnings.warn(
                "the run goes on, but its LearnedLR starts anew; save state_dict() with each checkpoint, and load it",
                UserWarning,
                stacklevel=3,
            )
        self._begun = True
