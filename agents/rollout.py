"""Exploration and credit when runs have siblings: what differs between them is what their actions did."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

__all__ = ["BranchRolloutBuffer", "BranchingPolicy", "HeldNoisePolicy", "SiblingRolloutBuffer"]

Array = NDArray[np.float64]

#: The largest sum of what a detour adds to actions: the rate changes by up to 2.5 to this power.
DETOUR = 3.0

#: Of it, what the detours of two siblings come to at least.
SHORTEST = 0.25


class HeldNoisePolicy(ActorCriticPolicy):
    """A policy whose exploration keeps to one direction for several decisions.

    Noise that is drawn anew at every decision averages out before a loss can show it: most of a return's spread is then
    luck. Held noise makes a run bolder or more timid than its siblings for a while, and its end tells which was better.
    Its size is not learnt, since noise that lasts does harm and would be unlearnt: it stays for a quarter of
    the training, then falls to a half: what is best under much noise is more timid than what is best without.

    Args:
        hold: Decisions for which noise is held.
    """

    def __init__(self, *args: Any, hold: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.hold = hold
        self.decisions = 0
        self._noise = torch.zeros(0)
        self.log_std.requires_grad_(False)

    def begin_rollout(self, remaining: float) -> None:
        """Draws noise at the next decision, of the size that belongs to the share of the training that remains."""
        self.decisions = 0
        self.log_std.fill_(self.log_std_init + math.log(min(1.0, max(0.5, remaining / 0.75))))

    def forward(
        self, obs: torch.Tensor, deterministic: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Actions (N, 1), values (N, 1) and log likelihoods (N,) at observations of shape (N, signals)."""
        actions, values, log_prob = super().forward(obs, deterministic=True)
        if deterministic:
            return actions, values, log_prob
        distribution = self.get_distribution(obs)
        assert isinstance(distribution, DiagGaussianDistribution)
        noise = self.noise(len(actions))
        actions = self.agreed(actions) + noise
        self.decisions += 1
        return actions, self.marks(values, noise), distribution.log_prob(actions)

    def noise(self, runs: int) -> torch.Tensor:
        """What the runs add to the policy's answers at this decision, (N, 1)."""
        if self.decisions % self.hold == 0:
            self._noise = torch.randn(runs, 1)
        return self.log_std.exp() * self._noise

    def agreed(self, actions: torch.Tensor) -> torch.Tensor:
        """The policy's answers, (N, 1), as the runs follow them."""
        return actions

    def marks(self, values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """What the buffer is told beside actions, in the place of values."""
        del noise
        return values


class SiblingRolloutBuffer(RolloutBuffer):
    """Advantages by comparing siblings, without a value function.

    The advantage of a decision is the return from the decision at which its noise was drawn, less the mean over the
    run's siblings, divided by how much the runs of the draw differ there (group-relative advantages; Shao et al.,
    2024).
    That spread goes from hundredths of a nat to several nats between workloads; undivided, advantages would be those of
    the few workloads where a wrong rate costs most. A rollout holds whole episodes.

    Args:
        draws: Populations; the columns of the buffer are theirs in equal shares, one after the other.
        siblings: Successive columns that are compared.
        hold: Decisions for which noise is held.
        floor: Added to the spread, in nats, so that what is noise stays small.
    """

    def __init__(
        self, *args: Any, draws: int = 1, siblings: int = 2, hold: int = 1, floor: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._draws, self._siblings, self._hold, self._floor = draws, siblings, hold, floor

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray[Any, Any]) -> None:
        """Fills in the advantages; what follows the rollout's end counts for nothing."""
        del last_values, dones
        returns = self.compared()
        groups = returns.reshape(len(returns), -1, self._siblings)
        relative = (groups - groups.mean(axis=2, keepdims=True)).reshape(len(returns), self._draws, -1)
        spread = np.sqrt(np.square(relative).mean(axis=2, keepdims=True))
        advantages = (relative / (spread + self._floor)).reshape(self.rewards.shape)
        self.advantages = advantages.astype(np.float32)
        self.returns = self.advantages + self.values

    def compared(self) -> Array:
        """The return by which each decision is judged, shape (decisions, N)."""
        returns = np.cumsum(self.rewards[::-1], axis=0, dtype=np.float64)[::-1]
        return np.asarray(returns[np.arange(len(returns)) // self._hold * self._hold])


class BranchingPolicy(HeldNoisePolicy):
    """A policy whose siblings part once, and follow it before and afterwards.

    All siblings act alike until a decision that is drawn for them; for some decisions each is then bolder or more timid
    than the policy, by an amount of its own, and follows it again. What their ends differ by is what that detour was
    worth. It goes further than noise that a whole run could bear, so it finds what lies behind a worse stretch.

    Args:
        siblings: Successive runs that part together.
        span: Decisions of a run.
    """

    def __init__(self, *args: Any, siblings: int = 2, span: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.siblings, self.span = siblings, span
        self._begin = self._end = torch.zeros(0)

    def noise(self, runs: int) -> torch.Tensor:
        """Zero but for the decisions of the detour."""
        if self.decisions == 0:
            self._part(runs // self.siblings)
        apart = (self.decisions >= self._begin) & (self.decisions < self._end)
        return torch.where(apart, self._noise, 0.0)

    def agreed(self, actions: torch.Tensor) -> torch.Tensor:
        """Until siblings part, the first one's answer: rows of a product may differ in their last digits."""
        first = actions[:: self.siblings].repeat_interleave(self.siblings, dim=0)
        return torch.where(self.decisions < self._begin, first, actions)

    def marks(self, values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """1 where siblings differ, as nothing else is learnt from."""
        return (noise != 0.0).to(values.dtype)

    def _part(self, groups: int) -> None:
        begin = torch.randint(0, max(1, self.span - 2), (groups,))
        length = torch.exp(torch.empty(groups).uniform_(math.log(2.0), math.log(2.0 * self.hold))).round()
        # Spread evenly, so that no group is without boldness or without restraint.
        shares = torch.linspace(-1.0, 1.0, self.siblings)
        total = torch.stack([shares[torch.randperm(self.siblings)] for _ in range(groups)]) * DETOUR
        if self.siblings == 2:
            # Two have but the ends of that spread, so how far they go is drawn.
            total *= torch.empty(groups, 1).uniform_(SHORTEST, 1.0)
        self._noise = (total / length[:, None]).clamp(-1.0, 1.0).reshape(-1, 1)
        self._begin = begin.repeat_interleave(self.siblings)[:, None]
        self._end = (begin + length).repeat_interleave(self.siblings)[:, None]


class BranchRolloutBuffer(SiblingRolloutBuffer):
    """Compares siblings by their whole return, and learns from the decisions of their detours alone."""

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray[Any, Any]) -> None:
        """Fills in the advantages."""
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages *= self.values
        self.returns = self.advantages.copy()

    def compared(self) -> Array:
        """The whole return: what came before the detour is the same for all siblings."""
        return np.broadcast_to(self.rewards.sum(axis=0, dtype=np.float64), self.rewards.shape)
