"""One small training run, which every framework is to repeat: its network, its batches, and the plain loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from rlrate import Controller, LearnedLR
from rlrate.control import SIGNALS, USUAL, Cadence, ControlSpec
from rlrate.controller import linear_layers

BATCH = 8


def controller(signals: tuple[str, ...] = USUAL) -> Controller:
    """Reacts to every signal, and raises the rate on average."""
    generator = torch.Generator().manual_seed(0)
    spec = ControlSpec(signals, cadence=Cadence(decisions=12, first=3, ramp=3, probe=2))
    width = len(spec.signals)
    hidden = torch.randn(16, width, generator=generator) / width**0.5, torch.zeros(16)
    last = torch.randn(1, 16, generator=generator) / 4, torch.full((1,), 0.3)
    return Controller(linear_layers([hidden, last]), spec)


def told(scheduler: LearnedLR) -> int | None:
    """Updates of an epoch as its controller, which must see :data:`SIGNALS`, was told, None where it was not."""
    seen = dict(zip(SIGNALS, scheduler.report().observations[-1].tolist(), strict=True))
    return round(10 ** (2 * seen["epoch_updates"])) if seen["epochs_known"] else None


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


class Examples(Dataset[dict[str, Tensor]]):
    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(2)
        self.inputs = torch.randn(size, 6, generator=generator)
        self.labels = torch.stack([self.inputs[:, 0] * self.inputs[:, 1], self.inputs[:, 2].sin()], 1)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"inputs": self.inputs[index], "labels": self.labels[index]}


def loader(batches: int, size: int = BATCH) -> DataLoader[dict[str, Tensor]]:
    """That many batches, always in the same order."""
    return DataLoader(Examples(batches * size), batch_size=size)


def make_optimizer(model: nn.Module, **options: Any) -> Optimizer:
    """Two groups, one with a tenth of the other's rate."""
    first, second = list(model.parameters())[:2], list(model.parameters())[2:]
    return torch.optim.AdamW([{"params": first, "lr": 0.5}, {"params": second, "lr": 0.05}], **options)


def rates_of(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def plain_loop(
    model: nn.Module,
    optimizer: Optimizer,
    scheduler: LearnedLR,
    epochs: int,
    batches: int,
    *,
    size: int = BATCH,
    accumulate: int = 1,
    clip: float = 0.0,
    divide_by: int | None = None,
    average: bool = False,
    sees_loss: bool = True,
    leave_out: int | None = None,
) -> list[list[float]]:
    """Trains; returns the rates of the groups at each update.

    Batches are accumulated with their loss divided by their number, or by ``divide_by``; the scheduler is told the
    sum of these, or their average. Batch number ``leave_out`` is left out.
    """
    rates = []
    for epoch in range(epochs):
        waiting = list(loader(batches, size))
        if leave_out is not None and epoch == leave_out // batches:
            del waiting[leave_out % batches]
        while waiting:
            group, waiting = waiting[:accumulate], waiting[accumulate:]
            total = torch.zeros(())
            for batch in group:
                loss = nn.functional.mse_loss(model(batch["inputs"]), batch["labels"]) / (divide_by or len(group))
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            # Just before the update: LearnedLR sets the first rate when it sees the first gradients.
            optimizer.step()
            rates.append(rates_of(optimizer))
            total = total / len(group) if average else total
            scheduler.step(total if sees_loss else None)
            optimizer.zero_grad()
    return rates
