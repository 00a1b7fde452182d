"""LearnedLR in Lightning, with its automatic optimization.

::

    from rlrate.integrations.lightning import LearnedLRCallback, configure

    class Network(LightningModule):
        def configure_optimizers(self):
            return configure(self, torch.optim.AdamW(self.parameters()))

    trainer = Trainer(max_epochs=10, callbacks=[LearnedLRCallback()])
"""

from __future__ import annotations

import math
import warnings
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from rlrate.errors import ConfigError
from rlrate.integrations import MissingPackageError
from rlrate.scheduler import LearnedLR

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise MissingPackageError("lightning", "lightning") from error


def configure(module: LightningModule, optimizer: Optimizer, **options: Any) -> dict[str, Any]:
    """What ``configure_optimizers`` returns: the optimizer, and a LearnedLR that is stepped after every update.

    Args:
        module: The module that is about to be trained; its trainer knows the number of updates.
        optimizer: Its optimizer.
        options: Further arguments of :class:`rlrate.LearnedLR`; ``total_steps`` and ``steps_per_epoch`` among them,
            if the trainer's own counts of updates are not to be used.

    Returns:
        A dictionary that Lightning understands.

    Raises:
        ConfigError: when the trainer has no limit, so that the number of updates is not known.
        SchedulerError: for arguments that LearnedLR refuses.
    """
    if "total_steps" not in options:
        steps = module.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ConfigError("the number of updates is not known; give Trainer max_steps, or pass total_steps here")
        options["total_steps"] = int(steps)
        options.setdefault("steps_per_epoch", _steps_per_epoch(module.trainer))
    if not any(isinstance(callback, LearnedLRCallback) for callback in module.trainer.callbacks):
        warnings.warn(
            "LearnedLR goes by the gradients alone; give Trainer a LearnedLRCallback to let it see the loss",
            UserWarning,
            stacklevel=2,
        )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LearnedLR(optimizer, **options), "interval": "step"}}


def _steps_per_epoch(trainer: Trainer) -> int | None:
    """Updates in which the data are gone through, None where the trainer does not know or goes through a part only."""
    batches: float = trainer.num_training_batches
    share = trainer.limit_train_batches
    if math.isinf(batches) or isinstance(share, int) or share != 1.0:
        return None
    return max(1, math.ceil(batches / int(trainer.accumulate_grad_batches)))


class LearnedLRCallback(Callback):
    """Tells each update's loss to the LearnedLR that drives the training.

    Of several batches that are accumulated for one update, the mean counts. Does nothing under manual optimization,
    where the module itself calls ``scheduler.step(loss)``.

    Args:
        validation: Name of the logged metric that is a validation loss, such as ``"val_loss"``: it is told to the
            scheduler after each validation. None for none.
    """

    def __init__(self, validation: str | None = None) -> None:
        self._validation = validation
        self._losses: list[Tensor] = []

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """A new update begins."""
        self._losses = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes the loss of a batch, which Lightning has divided by the number of accumulated ones."""
        if not pl_module.automatic_optimization:
            return
        self._losses.append(loss.detach())
        mean = self._losses[0] if len(self._losses) == 1 else sum(self._losses) / len(self._losses)
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LearnedLR):
                config.scheduler.observe(mean)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the validation loss, if there is one.

        Raises:
            ConfigError: when no metric of that name was logged.
        """
        if self._validation is None or trainer.sanity_checking:
            return
        if self._validation not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise ConfigError(
                f"no metric {self._validation!r} was logged (there is {known}); log it in validation_step, or leave "
                "out validation"
            )
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, LearnedLR):
                config.scheduler.observe_validation(trainer.callback_metrics[self._validation])
