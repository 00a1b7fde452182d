"""Exploration and credit when runs have siblings: what differs between them is what their actions did."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy

__all__ = ["HeldNoisePolicy", "SiblingRolloutBuffer"]


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
        if self.decisions % self.hold == 0:
            self._noise = torch.randn_like(actions)
        self.decisions += 1
        distribution = self.get_distribution(obs)
        assert isinstance(distribution, DiagGaussianDistribution)
        actions = actions + self.log_std.exp() * self._noise
        return actions, values, distribution.log_prob(actions)


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
        returns = np.cumsum(self.rewards[::-1], axis=0, dtype=np.float64)[::-1]
        returns = returns[np.arange(len(returns)) // self._hold * self._hold]
        groups = returns.reshape(len(returns), -1, self._siblings)
        relative = (groups - groups.mean(axis=2, keepdims=True)).reshape(len(returns), self._draws, -1)
        spread = np.sqrt(np.square(relative).mean(axis=2, keepdims=True))
        advantages = (relative / (spread + self._floor)).reshape(self.rewards.shape)
        self.advantages = advantages.astype(np.float32)
        self.returns = self.advantages + self.values
