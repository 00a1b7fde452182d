"""Losses that are not those of a fixed prediction task: rewards of one's own actions, and data that drift."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Source, choose_source, split, standardise
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, style

__all__ = ["Drifting", "Policy", "bandit", "drift", "regret_loss"]


class Policy(nn.Module):
    """A policy over a few arms, to be trained by REINFORCE (Williams 1992).

    In training an arm is drawn from the policy for each example, and the output is the logarithm of its probability in
    the column of that arm, and zero in the others. In evaluation the output is the probability of every arm. With
    `regret_loss` the gradient in training is that of the expected regret, which is the loss in evaluation.

    Args:
        inputs: Features of a context.
        arms: Number of arms.
        hidden: Widths of the hidden layers.
        options: Further arguments of `MLP`.
    """

    def __init__(self, inputs: int, arms: int, hidden: list[int], **options: Any) -> None:
        super().__init__()
        self.network = MLP(inputs, arms, hidden, **options)

    def forward(self, contexts: Tensor) -> Tensor:
        """(batch, inputs) -> (batch, arms)."""
        logits = self.network(contexts)
        if not self.training:
            return cast(Tensor, logits.softmax(dim=1))
        # The arm whose logit plus Gumbel noise is largest is one drawn from the softmax.
        noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
        perturbed = logits.detach() - torch.log(-torch.log(noise))
        chosen = (perturbed == perturbed.amax(dim=1, keepdim=True)).to(logits.dtype)
        return cast(Tensor, logits.log_softmax(dim=1) * chosen)


def regret_loss(output: Tensor, regret: Tensor) -> Tensor:
    """Mean over the batch of each arm's output times its regret.

    Args:
        output: (batch, arms) of a `Policy`.
        regret: (batch, arms), in training less a baseline.
    """
    return (output * regret).sum(dim=1).mean()


@register_workload("bandit", description="Policy gradient on a contextual bandit; held-out loss = expected regret")
def bandit(rng: np.random.Generator) -> Workload:
    """A policy trained by REINFORCE: the training loss tells little about how good it is.

    Rewards are those of a random network of the context plus noise. The baseline in training is the mean reward of the
    context's arms, or none at all, which makes the gradient noisier.
    """
    contexts, arms, size = log_integer(rng, 2, 16), int(rng.integers(2, 9)), synthetic.SIZE
    x = rng.normal(size=(size, contexts))
    rewards, _ = standardise(synthetic.teacher(rng, x, arms), np.zeros((1, arms)))
    rewards = rewards + rng.uniform(0, 0.5) * rng.normal(size=arms)  # some arms are better everywhere
    regret = rewards.max(axis=1, keepdims=True) - rewards
    train_size, heldout_size = log_integer(rng, 300, 2000), 256
    noisy = regret + rng.uniform(0, 1) * rng.normal(size=regret.shape)
    if rng.random() < 0.75:
        noisy -= noisy.mean(axis=1, keepdims=True)
    inputs, seen, true = (torch.from_numpy(values.astype(np.float32)) for values in (x, noisy, regret))
    hidden = [log_integer(rng, 8, 48)] * int(rng.integers(1, 3))
    return Workload(
        name="bandit/teacher",
        family="bandit",
        make_model=partial(Policy, contexts, arms, hidden, **style(rng, {"none": 3, "layer": 1})),
        train=(inputs[heldout_size:][:train_size], seen[heldout_size:][:train_size]),
        heldout=(inputs[:heldout_size], true[:heldout_size]),
        loss=regret_loss,
        batch_size=batch_size(rng, train_size),
    )


class Drifting(nn.Module):
    """A network whose inputs turn, in a plane for each pair of columns, by a little with every training step.

    Args:
        network: The network behind.
        columns: Features of an example.
        speed: Angle of one training step in radians.
    """

    step: Tensor

    def __init__(self, network: nn.Module, columns: int, speed: float) -> None:
        super().__init__()
        self.network, self.speed = network, speed
        self.pairs = columns // 2
        self.register_buffer("step", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, columns) -> what the network says of the inputs as they are now."""
        angle = self.step * self.speed
        first, second = inputs[:, : self.pairs], inputs[:, self.pairs : 2 * self.pairs]
        rest = inputs[:, 2 * self.pairs :]
        turned = [angle.cos() * first - angle.sin() * second, angle.sin() * first + angle.cos() * second, rest]
        if self.training:
            self.step = self.step + 1
        return cast(Tensor, self.network(torch.cat(turned, dim=1)))


DRIFTING: dict[str, Source] = {
    "teacher": synthetic.teacher_classification,
    "blobs": synthetic.blobs,
    "linear": synthetic.linear_classification,
    "teacher-values": synthetic.teacher_regression,
}


def _drifting(columns: int, outputs: int, hidden: list[int], speed: float, **options: Any) -> Drifting:
    return Drifting(MLP(columns, outputs, hidden, **options), columns, speed)


@register_workload("drift", description="The inputs turn while the network learns; held-out loss = that of the moment")
def drift(rng: np.random.Generator) -> Workload:
    """A network that must keep learning: a rate of zero at the end of training would leave it behind."""
    examples = choose_source(rng, DRIFTING, None)
    train, heldout = split(rng, examples, log_integer(rng, 300, 2000))
    hidden = [log_integer(rng, 8, 64)] * int(rng.integers(0, 3))
    return Workload(
        name=f"drift/{examples.name}",
        family="drift",
        make_model=partial(
            _drifting,
            train[0].shape[1],
            examples.classes or train[1].shape[1],
            hidden,
            log_uniform(rng, 3e-4, 1e-2),
            **style(rng),
        ),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy if examples.classes else F.mse_loss,
        batch_size=batch_size(rng, len(train[0])),
        accuracy=bool(examples.classes),
    )
