"""Learning from many rollouts at once: what detours were worth, told from what was seen when they began."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.kernel_ridge import KernelRidge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn.functional import mse_loss

from rlrate.agents.rollout import DETOUR
from rlrate.errors import ConfigError

__all__ = ["Detours", "Refinement", "RefiningPPO", "refine"]

#: Nats that a detour counts for at most, either way: where a loss can fall to nothing, one would drown all others.
MOST = 1.0

#: The regression: how far apart, in standard deviations summed over signals, two situations tell e times less of each
#: other, and how much of what was seen is taken for luck. Out of sample the worth that it tells is then neither
#: exaggerated nor belittled, and half or twice the length is nearly as good (experiments/LOG.md, entry 58).
LENGTH, LUCK = 10.0, 6.0

#: What the policy is taught the regression by: the beginnings of detours, and so many others around each, at so many
#: standard deviations, where it would otherwise make something up.
AROUND, FAR = 5, 0.5

#: Situations in one step of that, and the size of its steps (Adam's, falling to zero).
BATCH, RATE = 256, 3e-3


@dataclass(frozen=True)
class Refinement:
    """How the policy goes on once PPO has brought it near.

    PPO takes a few small steps on each rollout and forgets it; what tells the better detour is then too faint to be
    seen. From ``after`` on the policy stays as it is for ``every`` rollouts, and then moves at once, to what the
    detours of the last ``pool`` rollouts say. A kernel ridge regression finds how far the best answer lies from the
    policy's: the answer that was given where a detour began, plus ``step`` times its worth. The policy then learns to
    answer so, in so many ``epochs``. (Policy iteration; 1 / step is the curvature that a return is taken to have, so
    what an earlier policy did still tells where the best answer lies.)

    Attributes:
        after: Rollouts of PPO before.
        every: Rollouts from one refinement to the next.
        pool: Rollouts whose detours are remembered.
        step: Action per nat.
        epochs: How often each situation is gone through when the policy learns what the regression says.

    Raises:
        ConfigError: for a number that is not positive (``after`` may be 0).
    """

    after: int
    every: int
    pool: int
    step: float = 2.5
    epochs: int = 60

    def __post_init__(self) -> None:
        for name, least in (("after", 0), ("every", 1), ("pool", 1), ("epochs", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"refinement.{name} must be an integer, at least {least}, got {value!r}")
        if not isinstance(self.step, int | float) or isinstance(self.step, bool) or not 0 < self.step < np.inf:
            raise ConfigError(f"refinement.step must be a positive number, got {self.step!r}")


@dataclass(frozen=True)
class Detours:
    """Where groups of siblings parted, and what that was worth.

    Attributes:
        observations: What the group saw at the decision at which it parted, float32, shape (M, signals).
        answers: What the policy answered there, float32, shape (M,).
        worth: Nats that a run gains by the longest detour upwards, by the slope of the siblings' returns over their
            detours, within [-1, 1]; float32, shape (M,).
    """

    observations: Tensor
    answers: Tensor
    worth: Tensor

    @classmethod
    def of(cls, buffer: RolloutBuffer, siblings: int) -> Detours:
        """Those of a rollout under a :class:`~rlrate.agents.rollout.BranchingPolicy`, whose marks stand for values."""
        steps, runs = buffer.rewards.shape
        apart = buffer.values.reshape(steps, -1, siblings) != 0.0
        begin = apart.any(axis=2).argmax(axis=0)
        groups = np.arange(runs // siblings)
        actions = buffer.actions.reshape(steps, -1, siblings)[begin, groups]
        answers = actions.mean(axis=1, keepdims=True)  # around which detours are spread evenly
        detours = (actions - answers) * apart.sum(axis=0) / DETOUR
        returns = buffer.rewards.sum(axis=0, dtype=np.float64).reshape(-1, siblings)
        returns = returns - returns.mean(axis=1, keepdims=True)
        squares = np.square(detours).sum(axis=1)
        used = apart.any(axis=(0, 2)) & (squares > 0.0)
        slopes = np.clip((detours * returns).sum(axis=1)[used] / squares[used], -MOST, MOST)
        seen = buffer.observations.reshape(steps, -1, siblings, buffer.observations.shape[-1])[begin, groups, 0][used]
        return cls(_tensor(seen), _tensor(answers[used, 0]), _tensor(slopes))

    @classmethod
    def pooled(cls, parts: Iterable[Detours]) -> Detours:
        """All of several."""
        columns = zip(*(part.tensors() for part in parts), strict=True)
        return cls(*(torch.cat(column) for column in columns))

    def tensors(self) -> list[Tensor]:
        """The fields, in their order."""
        return [self.observations, self.answers, self.worth]


def refine(policy: ActorCriticPolicy, detours: Detours, settings: Refinement) -> float:
    """Moves a policy's answers towards the better side of detours; draws on no global generator.

    A network that is fitted to the detours themselves finds less of what can be told (experiments/LOG.md, entry 58):
    their luck is several times what they tell. So a regression that knows how much is luck comes first, and the network
    then imitates what has no luck in it any more.

    Returns:
        Root mean square of how far the answers at the detours' beginnings moved.
    """
    seen = detours.observations
    with torch.no_grad():
        before = _answers(policy, seen)
    # Where nothing is known it says zero, and the policy stays.
    ridge = KernelRidge(alpha=LUCK, kernel="laplacian", gamma=1.0 / LENGTH)
    regression = make_pipeline(StandardScaler(), ridge)
    # OpenBLAS 0.3.30 fails, with the process, where several threads factorise as many rows as a long training has.
    with threadpool_limits(1, user_api="blas"):
        regression.fit(_double(seen), _double(detours.answers - before + settings.step * detours.worth))
    generator = torch.Generator().manual_seed(0)
    spread = FAR * seen.std(dim=0)
    around = [seen + spread * torch.randn(seen.shape, generator=generator) for _ in range(AROUND)]
    situations = torch.cat([seen, *around])
    with torch.no_grad():
        target = _answers(policy, situations) + _tensor(
            np.concatenate([regression.predict(_double(part)) for part in (seen, *around)])
        )
    parameters = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    batches = -(-len(situations) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, settings.epochs * batches)
    for _ in range(settings.epochs):
        for rows in torch.split(torch.randperm(len(situations), generator=generator), BATCH):
            loss = mse_loss(_answers(policy, situations[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((_answers(policy, seen) - before).square().mean().sqrt())


class RefiningPPO(PPO):
    """PPO at first, refinements then.

    Args:
        refinement: When and how.
        siblings: Successive runs that part together.
    """

    def __init__(self, *args: Any, refinement: Refinement, siblings: int, **kwargs: Any) -> None:
        self.refinement = refinement
        self.siblings = siblings
        #: Detours of the last rollouts, one entry for each.
        self.pool: deque[Detours] = deque(maxlen=refinement.pool)
        super().__init__(*args, **kwargs)

    def train(self) -> None:
        """Learns from the rollout in the buffer, or keeps it for the next refinement."""
        self.pool.append(Detours.of(self.rollout_buffer, self.siblings))
        fixed = self.num_timesteps // (self.n_steps * self.n_envs) - self.refinement.after
        if fixed <= 0:
            super().train()
        elif fixed % self.refinement.every == 0:
            self.policy.set_training_mode(True)
            moved = refine(self.policy, Detours.pooled(self.pool), self.refinement)
            self.logger.record("rlrate/moved", moved)

    def pool_state(self) -> list[list[Tensor]]:
        """The pool as tensors."""
        return [part.tensors() for part in self.pool]

    def load_pool_state(self, state: Iterable[Sequence[Tensor]]) -> None:
        """Continues with what :meth:`pool_state` returned."""
        self.pool.clear()
        self.pool.extend(Detours(*tensors) for tensors in state)


def _answers(policy: ActorCriticPolicy, observations: Tensor) -> Tensor:
    answers: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(observations))
    return answers[:, 0]


def _double(values: Tensor) -> NDArray[np.float64]:
    return np.asarray(values.numpy(), np.float64)


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
