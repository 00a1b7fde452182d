"""One training run as an ordinary torch loop: what a population must equal, run by run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlrate.envs.optimizers import OptimizerSpec
from rlrate.envs.streams import Batches, initial_model, noise_generator
from rlrate.envs.workload import Workload

__all__ = ["PlainRun", "plain_run"]


@dataclass
class PlainRun:
    """The parts of an ordinary training loop.

    Attributes:
        workload: What is trained.
        model: In training mode.
        optimizer: The torch optimizer on the model's parameters.
        batches: The order of examples; its batches have shape (1, batch_size).
        inputs: (examples, ...) training inputs.
        targets: (examples, ...) training targets.
        noise: What dropout draws from, instead of torch's global generator.
    """

    workload: Workload
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    inputs: Tensor
    targets: Tensor
    noise: torch.Generator

    def backward(self) -> Tensor:
        """Compute the gradients of the next minibatch; returns its loss, detached."""
        index = self.batches.next()[0]
        inputs, targets = self.inputs[index], self.targets[index]
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.noise.get_state())
            loss = self.workload.loss(self.model(inputs), targets)
            self.noise.set_state(torch.get_rng_state())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step(self, lr: float) -> Tensor:
        """One training step at learning rate ``lr``; returns the loss before it."""
        loss = self.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        return loss


def plain_run(workload: Workload, optimizer: OptimizerSpec, seed: int, dtype: torch.dtype = torch.float32) -> PlainRun:
    """Set up run ``seed`` of a `Population` as an ordinary loop of one network.

    Args:
        workload: What to train.
        optimizer: How, without a learning rate.
        seed: Determines initial weights, order of batches and noise, as in a `Population`.
        dtype: Of weights and floating point data.
    """
    model = initial_model(workload, seed, dtype)
    inputs, targets = (_cast(values, dtype) for values in workload.train)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return PlainRun(
        workload=workload,
        model=model,
        optimizer=optimizer.build(parameters, 0.0),
        batches=Batches([seed], len(inputs), workload.batch_size),
        inputs=inputs,
        targets=targets,
        noise=noise_generator(seed),
    )


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values
