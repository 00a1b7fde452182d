"""What the processes of test_distributed.py do; each leaves what it saw in a file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rlrate import LearnedLR
from rlrate.control import SIGNALS, USUAL, ControlSpec
from rlrate.controller import Controller, linear_layers

STEPS = 60


def controller(signals: tuple[str, ...] = USUAL) -> Controller:
    """Reacts to every signal, and raises the rate on average."""
    generator = torch.Generator().manual_seed(0)
    spec = ControlSpec(signals=signals)
    width = len(spec.signals)
    hidden = torch.randn(16, width, generator=generator) / width**0.5, torch.zeros(16)
    last = torch.randn(1, 16, generator=generator) / 4, torch.full((1,), 0.3)
    return Controller(linear_layers([hidden, last]), spec)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    inputs = torch.randn(16, 6, generator=generator)
    return inputs, torch.stack([inputs[:, 0] * inputs[:, 1], inputs[:, 2].sin()], 1)


def train(model: nn.Module, rank: int, size: int, case: str, **options: Any) -> dict[str, Any]:
    """One process's share of a run."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    signals = tuple(SIGNALS) if case in ("told", "told-both", "untold") else USUAL
    scheduler = LearnedLR(optimizer, STEPS, controller(signals), **options)
    rates = []
    for step in range(STEPS):
        inputs, targets = (part.chunk(size)[rank] for part in batch(step))
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if case == "lacking" and rank == 1:
            optimizer.zero_grad()
        optimizer.step()
        value: Any = loss
        if case == "nan" and step == 31 and rank == 1:
            value = float("nan")
        if case == "silent" and rank == 1:
            value = None
        if case == "told-both" or (case == "told" and rank == 0):
            scheduler.observe_validation(2.0 - 0.03 * step if rank == 0 else 100.0)
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    weights = []
    for parameter in model.parameters():
        full = getattr(parameter, "full_tensor", None)
        weights.append((parameter if full is None else full()).detach().flatten())
    report = scheduler.report()
    return {
        "rates": rates,
        "weights": torch.cat(weights),
        "observations": torch.from_numpy(report.observations),
        "cuts": report.cuts,
    }


def run(case: str, rank: int, size: int) -> dict[str, Any]:
    model: nn.Module = network()
    options: dict[str, Any] = {}
    if case == "group":
        options["process_group"] = dist.new_group(list(range(size)))
    if case == "alone":
        options["process_group"] = False
    if case == "fsdp":
        from torch.distributed.fsdp import fully_shard

        fully_shard(model)
    elif case in ("ddp", "group", "silent", "nan", "told", "told-both", "untold"):
        model = nn.parallel.DistributedDataParallel(model)
    return train(model, rank, size, case, **options)


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=size)
    seen = {case: run(case, rank, size) for case in sys.argv[4:]}
    torch.save(seen, folder / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # gloo's threads at times abort a process that takes them down, and there is nothing more to see
