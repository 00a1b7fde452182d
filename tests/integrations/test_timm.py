"""The calls of timm's schedulers make the decisions of the plain loop; timm itself is not needed."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlrate import LearnedLR, SchedulerError
from rlrate.integrations.timm import TimmLearnedLR

from . import runs

BATCHES, EPOCHS = 22, 6


def parts(**options: Any) -> tuple[nn.Module, Any, TimmLearnedLR]:
    model = runs.network()
    optimizer = runs.make_optimizer(model)
    return model, optimizer, TimmLearnedLR(optimizer, EPOCHS * BATCHES, runs.controller(), **options)


def timm_loop(
    model: nn.Module, optimizer: Any, scheduler: TimmLearnedLR, epochs: range = range(EPOCHS)
) -> list[list[float]]:
    """As timm's own training script calls its scheduler."""
    rates = []
    for epoch in epochs:
        number = epoch * BATCHES
        for batch in runs.loader(BATCHES):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(batch["inputs"]), batch["labels"])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            rates.append(runs.rates_of(optimizer))
            number += 1
            scheduler.step_update(num_updates=number, metric=loss)
        scheduler.step(epoch + 1, 0.5)
    return rates


def expected() -> list[list[float]]:
    model = runs.network()
    optimizer = runs.make_optimizer(model)
    scheduler = LearnedLR(optimizer, EPOCHS * BATCHES, runs.controller())
    rates = runs.plain_loop(model, optimizer, scheduler, EPOCHS, BATCHES)
    assert len({rate for rate, _ in rates}) > 8
    return rates


def test_the_calls_of_timm_decide_as_the_plain_loop() -> None:
    run = parts()
    assert timm_loop(*run) == expected()
    assert run[2].metric == 0.5


def test_a_scale_of_a_group_is_kept_through_the_run() -> None:
    # runs.make_optimizer gives the second group a tenth of the first one's rate.
    model = runs.network()
    layers = list(model.parameters())
    groups: list[dict[str, Any]] = [{"params": layers[:2]}, {"params": layers[2:], "lr_scale": 0.1}]
    optimizer = torch.optim.AdamW(groups, lr=0.5)
    TimmLearnedLR(optimizer, 5)  # making one twice does not scale twice
    scheduler = TimmLearnedLR(optimizer, EPOCHS * BATCHES, runs.controller())
    assert timm_loop(model, optimizer, scheduler) == expected()


def test_a_scale_of_a_rate_that_is_a_tensor() -> None:
    parameter = nn.Parameter(torch.ones(3))
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([{"params": [parameter], "lr_scale": 0.5}], lr=rate)
    TimmLearnedLR(optimizer, 10)
    assert isinstance(optimizer.param_groups[0]["lr"], Tensor)
    assert optimizer.param_groups[0]["lr"].item() == 0.25


def test_a_resumed_run_goes_on_alike() -> None:
    whole = expected()
    model, optimizer, scheduler = parts()
    timm_loop(model, optimizer, scheduler, range(2))
    states = [part.state_dict() for part in (model, optimizer, scheduler)]
    rest = parts()
    for part, state in zip(rest, states, strict=True):
        part.load_state_dict(state)
    rest[2].step_update(2 * BATCHES)  # timm calls it, or step(), with where the run goes on
    rest[2].step(2)
    assert timm_loop(*rest, epochs=range(2, EPOCHS)) == whole[2 * BATCHES :]


@pytest.mark.parametrize(("call", "number"), [("step_update", 44), ("step", 2)])
def test_a_run_that_goes_on_without_its_state_is_told(call: str, number: int) -> None:
    scheduler = parts()[2]
    with pytest.warns(UserWarning, match=r"starts anew; save state_dict\(\) with each checkpoint"):
        getattr(scheduler, call)(number)
    getattr(scheduler, call)(number + 1)  # once


def test_calls_after_epochs_alone_are_too_few() -> None:
    model, optimizer, scheduler = parts()
    with pytest.warns(UserWarning, match="called once for 22 updates, too late for a decision"):
        for epoch in range(EPOCHS):
            for batch in runs.loader(BATCHES):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(batch["inputs"]), batch["labels"]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            scheduler.step(epoch + 1)
    assert scheduler.scheduler.updates == EPOCHS * BATCHES
    assert len(scheduler.scheduler.report().rates) == EPOCHS - 1


def test_an_update_that_a_grad_scaler_skips() -> None:
    model, optimizer, scheduler = parts()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    batch = next(iter(runs.loader(1)))
    for number in range(1, 4):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(batch["inputs"]), batch["labels"])
        scaled = scaler.scale(loss * (float("inf") if number < 3 else 1.0))
        scaled.backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler.step_update(number, loss)
    assert scheduler.scheduler.updates == 1


def test_a_loss_that_is_not_one_number() -> None:
    model, optimizer, scheduler = parts()
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(SchedulerError, match="one number per update"):
        scheduler.step_update(1, torch.ones(2))
