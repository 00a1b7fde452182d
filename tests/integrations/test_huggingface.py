"""Hugging Face's Trainer makes the decisions of the plain loop."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers import Trainer, TrainerCallback, TrainingArguments

from rlrate import ConfigError, LearnedLR
from rlrate.control import SIGNALS
from rlrate.integrations.huggingface import LearnedLRMixin, LearnedLRTrainer

from . import accelerated, runs

BATCHES, EPOCHS = 22, 6
SIGNALS_AT = {name: index for index, name in enumerate(SIGNALS)}


@pytest.fixture(autouse=True)
def no_state_is_left() -> Iterator[None]:
    accelerated.forget()
    yield
    accelerated.forget()
    gc.collect()


class Model(nn.Module):
    """What Trainer expects: keyword arguments in, a dictionary with a loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.net = runs.network()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.mse_loss(self.net(inputs), labels)}


class Counting(Model):
    """As language models do it: the loss is a sum over tokens, divided by those of all accumulated batches."""

    def forward(self, inputs: Tensor, labels: Tensor, num_items_in_batch: Any = None, **_: Any) -> dict[str, Tensor]:
        if num_items_in_batch is None:
            return super().forward(inputs, labels)
        return {"loss": nn.functional.mse_loss(self.net(inputs), labels, reduction="sum") / num_items_in_batch}


class InOrder(Trainer):
    def get_train_dataloader(self) -> Any:
        return runs.loader(BATCHES)


class Learned(LearnedLRMixin, InOrder):
    pass


class Record(TrainerCallback):
    """The rates of each update, and the scheduler."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.scheduler: Any = None

    def on_optimizer_step(self, *_: Any, optimizer: Any, lr_scheduler: Any, **__: Any) -> None:
        self.rates.append(runs.rates_of(optimizer))
        self.scheduler = lr_scheduler


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return arguments(tmp_path)


def arguments(folder: Path) -> dict[str, Any]:
    """Of a training that logs every update, with the controller of the plain loop."""
    runs.controller().save(folder / "controller.safetensors")
    return {
        "output_dir": str(folder / "out"),
        "num_train_epochs": EPOCHS,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "lr_scheduler_kwargs": {"controller": str(folder / "controller.safetensors")},
    }


def train(
    options: dict[str, Any], kind: type[Trainer] = Learned, model: nn.Module | None = None, **more: Any
) -> tuple[Record, Trainer]:
    record = Record()
    arguments = TrainingArguments(**{key: value for key, value in options.items() if key != "resume"})
    trainer = kind(model=model or Model(), args=arguments, callbacks=[record], **more)
    trainer.train(resume_from_checkpoint=options.get("resume"))
    return record, trainer


def expected(*, updates: int, accumulate: int = 1, clip: float = 1.0, **more: Any) -> list[list[float]]:
    """The plain loop with Trainer's optimizer: weights and biases in groups of their own."""
    model = runs.network()
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": biases}], weight_decay=0.0, fused=True)
    scheduler = LearnedLR(optimizer, updates, runs.controller())
    rates = runs.plain_loop(model, optimizer, scheduler, EPOCHS, BATCHES, accumulate=accumulate, clip=clip, **more)
    assert len(rates) == updates and len({rate for rate, _ in rates}) > 8
    return rates


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("model", [Model, Counting])
def test_the_trainer_decides_as_the_plain_loop(
    options: dict[str, Any], accumulate: int, model: type[nn.Module]
) -> None:
    updates = EPOCHS * -(-BATCHES // accumulate)  # the last one of an epoch has fewer batches
    record, trainer = train({**options, "gradient_accumulation_steps": accumulate}, model=model())
    rates = expected(updates=updates, accumulate=accumulate)
    assert record.scheduler.budget == record.scheduler.updates == updates
    if model is Model:
        assert record.rates == rates
    else:  # the same sums, in another order
        torch.testing.assert_close(record.rates, rates, rtol=1e-6, atol=0.0)
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged == [rate for rate, _ in record.rates]


def test_with_an_optimizer_and_a_scheduler_of_ones_own(options: dict[str, Any]) -> None:
    updates = EPOCHS * BATCHES

    def parts() -> tuple[Model, Any, LearnedLR]:
        model = Model()
        optimizer = runs.make_optimizer(model)
        return model, optimizer, LearnedLR(optimizer, updates, runs.controller())

    model, optimizer, scheduler = parts()
    rates = runs.plain_loop(model.net, optimizer, scheduler, EPOCHS, BATCHES, clip=1.0)
    model, optimizer, scheduler = parts()
    record, _ = train(options, model=model, optimizers=(optimizer, scheduler))
    assert record.scheduler is scheduler
    assert record.rates == rates


def test_a_trainer_without_the_mixin_goes_by_the_gradients(options: dict[str, Any]) -> None:
    updates = EPOCHS * BATCHES
    blind: list[list[float]] = []
    seeing: list[list[float]] = []
    for sees_loss, rates in ((False, blind), (True, seeing)):
        model = Model()
        optimizer = runs.make_optimizer(model)
        scheduler = LearnedLR(optimizer, updates, runs.controller())
        rates += runs.plain_loop(model.net, optimizer, scheduler, EPOCHS, BATCHES, clip=1.0, sees_loss=sees_loss)
    model = Model()
    optimizer = runs.make_optimizer(model)
    scheduler = LearnedLR(optimizer, updates, runs.controller())
    record, _ = train(options, InOrder, model, optimizers=(optimizer, scheduler))
    assert record.rates == blind != seeing


@pytest.mark.parametrize("cut", [5, 20])
def test_a_run_resumed_from_a_checkpoint_goes_on_alike(options: dict[str, Any], cut: int) -> None:
    saving = {**options, "save_strategy": "steps", "save_steps": cut, "gradient_accumulation_steps": 2}
    whole, _ = train(saving)
    rest, _ = train({**saving, "resume": f"{options['output_dir']}/checkpoint-{cut}"})
    assert rest.rates == whole.rates[cut:]
    assert rest.scheduler.report().rates.tolist() == whole.scheduler.report().rates.tolist()


def test_evaluations_do_not_step_it(options: dict[str, Any]) -> None:
    record, _ = train({**options, "eval_strategy": "steps", "eval_steps": 3}, eval_dataset=runs.Examples(8))
    assert isinstance(record.scheduler, LRScheduler) and not isinstance(record.scheduler, ReduceLROnPlateau)
    assert record.rates == expected(updates=EPOCHS * BATCHES)


def test_evaluations_tell_their_loss(options: dict[str, Any], tmp_path: Path) -> None:
    seen = runs.controller(tuple(SIGNALS)).save(tmp_path / "seeing.safetensors")
    options = {**options, "lr_scheduler_kwargs": {"controller": str(seen)}, "eval_strategy": "steps", "eval_steps": 40}
    data = runs.Examples(8)
    record, trainer = train(options, eval_dataset=data)
    report = record.scheduler.report()
    known = report.observations[:, SIGNALS_AT["validation_known"]]
    assert known.tolist() == [float(update > 40) for update in report.updates]
    trainer.evaluate()  # after the training it is nobody's business
    two, _ = train(options, eval_dataset={"one": data, "other": data})
    assert not two.scheduler.report().observations[:, SIGNALS_AT["validation_known"]].any()


def test_every_training_has_a_scheduler_of_its_own(options: dict[str, Any]) -> None:
    first, trainer = train(options)
    scheduler = first.scheduler
    trainer.args.num_train_epochs = 1
    trainer.train()
    assert first.scheduler is not scheduler
    assert first.scheduler.budget == BATCHES


def test_the_ready_made_trainer_learns(options: dict[str, Any]) -> None:
    del options["lr_scheduler_kwargs"]  # the bundled controller
    record, trainer = train(options, LearnedLRTrainer, train_dataset=runs.Examples(100))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert record.scheduler.controller.identity == LearnedLR(runs.make_optimizer(Model()), 1).controller.identity
    assert losses[-1] < losses[0]


def test_deepspeed_is_refused(options: dict[str, Any]) -> None:
    trainer = Learned(model=Model(), args=TrainingArguments(**options))
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ConfigError, match="cannot see DeepSpeed's gradients and updates; use DDP or FSDP"):
        trainer.create_scheduler(10)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, BATCHES),
        ({"gradient_accumulation_steps": 4}, 6),
        ({"num_train_epochs": 2.5}, BATCHES),
        ({"max_steps": 60}, None),
    ],
)
def test_an_epochs_updates_are_told(options: dict[str, Any], given: dict[str, Any], told: int | None) -> None:
    runs.controller(tuple(SIGNALS)).save(options["lr_scheduler_kwargs"]["controller"])
    record, _ = train({**options, **given})
    assert runs.told(record.scheduler) == told


@pytest.mark.parametrize("asked", [7, None])
def test_another_epoch_can_be_told_or_none(options: dict[str, Any], asked: int | None) -> None:
    runs.controller(tuple(SIGNALS)).save(options["lr_scheduler_kwargs"]["controller"])
    kwargs = {**options["lr_scheduler_kwargs"], "steps_per_epoch": asked}
    record, _ = train({**options, "lr_scheduler_kwargs": kwargs})
    assert runs.told(record.scheduler) == asked
