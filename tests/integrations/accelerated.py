"""Runs of the small network under Accelerate; as a script, what each of two processes does."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DataLoaderConfiguration
from torch import nn

from rlrate import LearnedLR

from . import runs

EPOCHS, BATCHES = 6, 20


def forget() -> None:
    """Ends the state that Accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train(
    *,
    accumulate: int = 1,
    order: str = "before",
    split: bool = False,
    folder: Path | None = None,
    resume: Path | None = None,
    overflows: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """One run, as Accelerate's documentation writes one; returns the rates at each update and the scheduler.

    Args:
        accumulate: Batches for one update.
        split: Whether the processes share each batch, rather than take turns.
        order: Whether LearnedLR is made "before" prepare, "after" it, or kept "out" of it.
        folder: Where to save the state after the second epoch.
        resume: Whence to go on after the second epoch.
        overflows: Number of the batch whose gradients a GradScaler finds to be infinite; None for no GradScaler.
        options: For Accelerator.
    """
    loading = DataLoaderConfiguration(split_batches=split)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, dataloader_config=loading, **options)
    if overflows is not None:  # Accelerate has one on accelerators only
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6, growth_interval=1000)
    updates = EPOCHS * BATCHES // (1 if split else accelerator.num_processes) // accumulate
    model: Any = runs.network()
    optimizer: Any = runs.make_optimizer(model)
    data: Any = runs.loader(BATCHES)
    scheduler: Any = None if order == "after" else LearnedLR(optimizer, updates, runs.controller())
    learned = scheduler
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    if order == "after":
        scheduler = learned = LearnedLR(optimizer, updates, runs.controller())
    if order != "out":
        scheduler = accelerator.prepare(scheduler)
    if resume is not None:
        accelerator.load_state(str(resume))
    rates, losses, number = [], [], 0
    for epoch in range(0 if resume is None else 2, EPOCHS):
        if folder is not None and epoch == 2:
            accelerator.save_state(str(folder))
        for batch in data:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(batch["inputs"]), batch["labels"])
                accelerator.backward(loss * (float("inf") if number == overflows else 1.0))
                number += 1
                losses.append(loss.detach() / accumulate)
                if accelerator.sync_gradients:
                    learned.observe(sum(losses))
                    losses = []
                optimizer.step()
                if accelerator.sync_gradients:
                    rates.append(runs.rates_of(optimizer))
                if order != "out" or accelerator.sync_gradients:
                    scheduler.step()
                optimizer.zero_grad()
    return {"rates": rates, "learned": learned, "scheduler": scheduler, "updates": updates}


def train_by_trainer(folder: Path) -> dict[str, Any]:
    """The same run by Hugging Face's Trainer, which works out the budget, and has the loss of a part of each batch."""
    from transformers import Trainer

    from rlrate.integrations.huggingface import LearnedLRMixin

    from .test_huggingface import arguments, train

    class Shared(LearnedLRMixin, Trainer):
        def get_train_dataloader(self) -> Any:
            return self.accelerator.prepare(runs.loader(BATCHES))

        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = runs.make_optimizer(self.model)
            return self.optimizer

    folder.mkdir()
    record, _ = train(arguments(folder), Shared)
    return {"rates": record.rates, "learned": record.scheduler}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    os.environ |= {"RANK": sys.argv[1], "LOCAL_RANK": sys.argv[1], "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}  # they meet at a file
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    seen: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name, options in json.loads(sys.argv[3]).items():
            forget()
            run = train_by_trainer(folder / f"trainer{rank}") if name == "trainer" else train(**options)
            seen[name] = {"rates": run["rates"], "updates": run["learned"].updates, "calls": run["learned"].last_epoch}
        seen["warnings"] = [str(entry.message) for entry in caught if "LearnedLR" in str(entry.message)]
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads at times abort a process that takes them down, and there is nothing more to see
