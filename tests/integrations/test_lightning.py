"""Lightning makes the decisions of the plain loop."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from rlrate import ConfigError, LearnedLR
from rlrate.control import SIGNALS
from rlrate.integrations.lightning import LearnedLRCallback, configure

from . import runs

BATCHES, EPOCHS = 22, 6

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no:UserWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]


class Network(LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = runs.network()
        self.options = {"controller": runs.controller(), **options}

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch["inputs"]), batch["labels"])

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.training_step(batch, index)

    def configure_optimizers(self) -> Any:
        return configure(self, runs.make_optimizer(self.net), **self.options)


class Record(Callback):
    """The rates of each update, and the scheduler."""

    def __init__(self) -> None:
        self.rates: list[list[float]] = []
        self.scheduler: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.scheduler = trainer.lr_scheduler_configs[0].scheduler
        # Lightning's own hooks come before the update, when the first rate is not known yet.
        self.scheduler.optimizer.register_step_post_hook(lambda opt, *_: self.rates.append(runs.rates_of(opt)))


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {
        "default_root_dir": tmp_path,
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }


def fit(options: dict[str, Any], *callbacks: Callback, module: Network | None = None, **more: Any) -> Record:
    record = Record()
    callbacks = callbacks or (LearnedLRCallback(),)
    trainer = Trainer(**{**options, "callbacks": [*callbacks, record]})
    trainer.fit(module or Network(), runs.loader(BATCHES), **more)
    return record


def expected(updates: int, **more: Any) -> list[list[float]]:
    model = runs.network()
    optimizer = runs.make_optimizer(model)
    scheduler = LearnedLR(optimizer, updates, runs.controller())
    rates = runs.plain_loop(model, optimizer, scheduler, EPOCHS, BATCHES, **more)
    assert len(rates) == updates and len({rate for rate, _ in rates}) > 8
    return rates


def test_lightning_decides_as_the_plain_loop(options: dict[str, Any]) -> None:
    record = fit(options)
    assert record.rates == expected(EPOCHS * BATCHES)
    assert record.scheduler.budget == record.scheduler.updates == EPOCHS * BATCHES


@pytest.mark.parametrize("accumulate", [2, 4])  # with four, the last update of an epoch has two batches only
def test_accumulation(options: dict[str, Any], accumulate: int) -> None:
    updates = EPOCHS * -(-BATCHES // accumulate)
    record = fit({**options, "accumulate_grad_batches": accumulate})
    # Lightning divides by the same number for the last, smaller group, too; and the loss is a mean of shares.
    rates = expected(updates, accumulate=accumulate, divide_by=accumulate, average=True)
    assert record.rates == rates
    assert record.scheduler.budget == updates


def test_clipping(options: dict[str, Any]) -> None:
    assert fit({**options, "gradient_clip_val": 0.5}).rates == expected(EPOCHS * BATCHES, clip=0.5)


def test_without_the_callback_it_goes_by_the_gradients_and_says_so(options: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="by the gradients alone; give Trainer a LearnedLRCallback"):
        record = fit(options, Callback())
    assert record.rates == expected(EPOCHS * BATCHES, sees_loss=False) != expected(EPOCHS * BATCHES)


@pytest.mark.parametrize("cut", [BATCHES, 3 * BATCHES])  # within an epoch Lightning does not resume the data
def test_a_run_resumed_from_a_checkpoint_goes_on_alike(options: dict[str, Any], cut: int, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=cut, save_top_k=-1)
    saving = {**options, "enable_checkpointing": True}
    whole = fit(saving, LearnedLRCallback(), keep)
    rest = fit(saving, LearnedLRCallback(), keep, ckpt_path=tmp_path / f"step={cut}.ckpt")
    assert rest.rates == whole.rates[cut:] == expected(EPOCHS * BATCHES)[cut:]


def test_validation_does_not_step_it(options: dict[str, Any]) -> None:
    record = fit({**options, "val_check_interval": 5}, val_dataloaders=runs.loader(2))
    assert isinstance(record.scheduler, LRScheduler) and not isinstance(record.scheduler, ReduceLROnPlateau)
    assert record.rates == expected(EPOCHS * BATCHES)


class Validated(Network):
    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.log("val_loss", self.training_step(batch, index))


def test_a_logged_validation_loss_is_told(options: dict[str, Any]) -> None:
    module = Validated(controller=runs.controller(tuple(SIGNALS)))
    record = fit(options, LearnedLRCallback("val_loss"), module=module, val_dataloaders=runs.loader(2))
    report = record.scheduler.report()
    known = report.observations[:, list(SIGNALS).index("validation_known")]
    assert known.tolist() == [float(update > BATCHES) for update in report.updates]


def test_a_validation_loss_that_was_not_logged_is_asked_for(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no metric 'loss' was logged"):
        fit(options, LearnedLRCallback("loss"), module=Validated(), val_dataloaders=runs.loader(2))


def test_the_rates_are_logged(options: dict[str, Any], tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    monitor = LearningRateMonitor("step")
    record = fit({**options, "logger": logger, "log_every_n_steps": 1}, LearnedLRCallback(), monitor)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = [float(row["lr-AdamW/pg1"]) for row in csv.DictReader(file)]
    assert len(logged) == EPOCHS * BATCHES
    assert logged[1:] == [rate for rate, _ in record.rates][1:]  # before the first update there is none yet


def test_the_modules_own_optimization_is_its_own_affair(options: dict[str, Any]) -> None:
    class Manual(Network):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            optimizer, scheduler = self.optimizers(), self.lr_schedulers()
            loss = super().training_step(batch, index)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            scheduler.step(loss)
            return loss

    assert fit(options, module=Manual()).rates == expected(EPOCHS * BATCHES)


def test_lightnings_default_of_one_step_an_epoch_is_warned_of(options: dict[str, Any]) -> None:
    class Rarely(Network):
        def configure_optimizers(self) -> Any:
            whole = super().configure_optimizers()
            del whole["lr_scheduler"]["interval"]
            return whole

    with pytest.warns(UserWarning, match="called once for 22 updates, too late for a decision; call it after each"):
        fit(options, module=Rarely())


def test_a_budget_that_is_not_known(options: dict[str, Any]) -> None:
    endless = {**options, "max_epochs": -1}
    with pytest.raises(ConfigError, match="give Trainer max_steps, or pass total_steps"):
        fit(endless)
    record = fit({**options, "max_steps": 10, "max_epochs": -1}, module=Network(total_steps=None))
    assert record.scheduler.budget is None and record.scheduler.updates == 10


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, BATCHES),
        ({"accumulate_grad_batches": 4}, 6),
        ({"max_steps": 60}, BATCHES),
        ({"limit_train_batches": 11}, None),  # which eleven of them may differ from epoch to epoch
        ({"limit_train_batches": 0.5}, None),
    ],
)
def test_an_epochs_updates_are_told(options: dict[str, Any], given: dict[str, Any], told: int | None) -> None:
    record = fit({**options, **given}, module=Network(controller=runs.controller(tuple(SIGNALS))))
    assert runs.told(record.scheduler) == told


@pytest.mark.parametrize(("asked", "told"), [({"steps_per_epoch": 7}, 7), ({"steps_per_epoch": None}, None)])
def test_another_epoch_can_be_told_or_none(options: dict[str, Any], asked: dict[str, Any], told: int | None) -> None:
    record = fit(options, module=Network(**{"controller": runs.controller(tuple(SIGNALS)), **asked}))
    assert runs.told(record.scheduler) == told
