"""What frameworks do to schedulers: step them without a loss, too often, or around a wrapped optimizer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, SequentialLR

from rlrate import LearnedLR, SchedulerError

from . import runs

STEPS = 60


def drive(scheduler: Any, learned: LearnedLR, model: nn.Module, optimizer: Any, *, observed: bool) -> list[float]:
    rates = []
    for batch in runs.loader(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch["inputs"]), batch["labels"])
        loss.backward()  # type: ignore[no-untyped-call]
        if observed:
            learned.observe(float("nan"))  # only the latest counts
            learned.observe(loss)
        optimizer.step()
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step(*(() if observed else (loss,)))
    return rates


def parts(total: int = STEPS) -> tuple[LearnedLR, nn.Module, Optimizer]:
    model = runs.network()
    optimizer = runs.make_optimizer(model)
    return LearnedLR(optimizer, total, runs.controller()), model, optimizer


def test_a_loss_that_was_observed_is_as_good_as_one_that_is_passed() -> None:
    told, asked = parts(), parts()
    assert drive(told[0], *told, observed=False) == drive(asked[0], *asked, observed=True)


def test_within_other_schedulers_it_can_be_told_the_loss() -> None:
    plain, chained, second = parts(), parts(), parts(STEPS - 5)
    chain = ChainedScheduler([chained[0]], chained[2])
    assert drive(chain, *chained, observed=True) == drive(plain[0], *plain, observed=False)
    sequence = SequentialLR(second[2], [LinearLR(second[2], 0.1, total_iters=5), second[0]], [5])
    drive(sequence, *second, observed=True)
    blind = parts(STEPS - 5)
    other = SequentialLR(blind[2], [LinearLR(blind[2], 0.1, total_iters=5), blind[0]], [5])
    drive(other, LearnedLR(runs.make_optimizer(runs.network()), 5), *blind[1:], observed=True)
    losses = [name for name in second[0].report().signals if "loss" in name]
    columns = [second[0].report().signals.index(name) for name in losses]
    seen, unseen = (run[0].report().observations[:, columns] for run in (second, blind))
    assert (seen != 0).sum() > (unseen != 0).sum()


def test_a_passed_loss_wins_and_an_observed_one_counts_once() -> None:
    scheduler, model, optimizer = parts()
    cuts = []
    for step, batch in enumerate(runs.loader(30)):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch["inputs"]), batch["labels"])
        loss.backward()  # type: ignore[no-untyped-call]
        if step in (10, 20):
            scheduler.observe(float("nan"))
        optimizer.step()
        scheduler.step(loss if step != 20 else None)
        cuts.append(scheduler.report().cuts)
    assert cuts[19] == 0 and cuts[-1] == 1
    with pytest.raises(SchedulerError, match="one number per update"):
        scheduler.observe(torch.ones(2))


def test_updates_are_counted_where_they_are_made() -> None:
    scheduler, model, optimizer = parts()
    assert (scheduler.pending, scheduler.updates) == (0, 0)
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    assert (scheduler.pending, scheduler.updates) == (1, 1)
    scheduler.step()
    assert (scheduler.pending, scheduler.updates) == (0, 1)


ALONE = """
import sys
import rlrate.integrations.timm
print(*{name.partition(".")[0] for name in sys.modules})
for module, package in (("huggingface", "transformers"), ("lightning", "lightning")):
    sys.modules[package] = None  # as if it were not installed
    try:
        __import__(f"rlrate.integrations.{module}")
    except ImportError as error:
        assert isinstance(error, rlrate.RlrateError)
        print(error)
"""


def test_without_the_frameworks() -> None:
    printed = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True).stdout
    loaded, *errors = printed.splitlines()
    assert "rlrate" in loaded.split()
    assert not set(loaded.split()) & {"transformers", "accelerate", "lightning", "pytorch_lightning", "timm"}
    assert errors == [
        'this integration needs transformers, which is not installed: pip install "rlrate[huggingface]"',
        'this integration needs lightning, which is not installed: pip install "rlrate[lightning]"',
    ]
