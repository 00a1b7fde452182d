"""LearnedLR in Hugging Face's Trainer.

::

    from rlrate.integrations.huggingface import LearnedLRTrainer

    trainer = LearnedLRTrainer(model, arguments, train_dataset=data)
    trainer.train()

Trainer's own loop steps schedulers without a loss; :class:`LearnedLRMixin` supplies it, and makes the scheduler when
none was given. Put it before any class derived from Trainer: ``class Mine(LearnedLRMixin, SFTTrainer): ...``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from rlrate.errors import ConfigError
from rlrate.integrations import MissingPackageError
from rlrate.scheduler import LearnedLR

try:
    from transformers import Trainer
except ModuleNotFoundError as error:
    raise MissingPackageError("transformers", "huggingface") from error

# A mixin has no base, so that it fits any subclass of Trainer; the type checker must know one.
_Base: Any = Trainer if TYPE_CHECKING else object


class LearnedLRMixin(_Base):
    """Makes a Trainer use LearnedLR, and tell it each update's loss.

    With ``optimizers=(optimizer, LearnedLR(optimizer, total_steps))`` that scheduler is used. Otherwise one is made
    for Trainer's own optimizer and number of updates (and of updates in an epoch, where epochs were asked for), with
    ``lr_scheduler_kwargs`` of the training arguments as further arguments of :class:`rlrate.LearnedLR`. The learning
    rate, the scheduler's type and the warm-up of the training arguments are not used. Evaluations during the training
    are told to it too.
    """

    lr_scheduler: Any
    _update_loss: Tensor | None = None

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Makes the scheduler, unless one was given.

        Args:
            num_training_steps: The budget, in updates.
            optimizer: The optimizer to drive; None for that of the trainer.

        Returns:
            The scheduler.

        Raises:
            ConfigError: with DeepSpeed, which keeps gradients and updates to itself.
            SchedulerError: for arguments that LearnedLR refuses.
        """
        self._update_loss = None  # of a training that broke off
        if self.is_deepspeed_enabled:
            raise ConfigError("LearnedLR cannot see DeepSpeed's gradients and updates; use DDP or FSDP instead")
        if self.lr_scheduler is None:
            told = {"steps_per_epoch": self._steps_per_epoch(num_training_steps)}
            options = {**told, **(self.args.lr_scheduler_kwargs or {})}
            self.lr_scheduler = LearnedLR(
                self.optimizer if optimizer is None else optimizer, num_training_steps, **options
            )
            self._created_lr_scheduler = True  # Trainer makes a new one for each train()
        return self.lr_scheduler

    def _steps_per_epoch(self, num_training_steps: int) -> int | None:
        """Updates in which the data are gone through, None where the budget is not given in epochs."""
        epochs: float = self.args.num_train_epochs
        if self.args.max_steps > 0 or epochs <= 0:
            return None
        return max(1, round(num_training_steps / epochs))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """A forward and a backward pass, by Trainer; notes the loss.

        Returns:
            The loss, detached. Trainer has scaled it so that those of one update add up to that update's loss.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        self._update_loss = loss if self._update_loss is None else self._update_loss + loss
        if self.accelerator.sync_gradients:  # the last one before an update
            if isinstance(self.lr_scheduler, LearnedLR):
                self.lr_scheduler.observe(self._update_loss)
            self._update_loss = None
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """An evaluation by Trainer; while it trains, its ``eval_loss`` is told to the scheduler as a validation loss.

        Returns:
            Trainer's metrics. Of several evaluation data sets, whose losses have names of their own, none is told.
        """
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self.is_in_train and "eval_loss" in metrics and isinstance(self.lr_scheduler, LearnedLR):
            self.lr_scheduler.observe_validation(metrics["eval_loss"])
        return metrics


class LearnedLRTrainer(LearnedLRMixin, Trainer):
    """Hugging Face's Trainer with :class:`LearnedLRMixin`."""
