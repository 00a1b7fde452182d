"""What a controller still leaves undone that its signals could tell.

``python -m rlrate.experiments.detours FOLDER [--last 10]`` reads the detours that a training with refinement remembers
(:mod:`rlrate.agents.refinement`) and prints what they were worth, how much of it the observations at their beginnings
tell, and where the policy is too timid or too bold. Nothing is run: it looks into a training at any time.

What observations tell is measured out of sample: the policy is refined by some rollouts, and where it moved is compared
with what the detours of the others were worth. No two rollouts share a draw, and standard errors are those between
rollouts.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from rlrate.agents.checkpoint import read_checkpoint
from rlrate.agents.recipe import Recipe
from rlrate.agents.refinement import Detours, Refinement, RefiningPPO, refine
from rlrate.agents.train import restore
from rlrate.errors import ConfigError

Array = NDArray[np.float64]

#: Parts of the rollouts, each of which is left out once.
PARTS = 5

#: Signals that are zero unless they are given; where they are, optimizers are told apart by them.
TRAITS = ("optimizer_adaptive", "optimizer_momentum")


@dataclass(frozen=True)
class Told:
    """How much of what detours are worth their beginnings tell.

    Attributes:
        correlation: Between where refined policies moved and what detours were worth that they had not seen.
        gain: Mean of their product in nats: by first order, what a detour gains when it goes as far as they moved,
            taken as a share of the longest.
        error: Standard error of ``gain``.
        moved: Root mean square of where they moved, in actions.
    """

    correlation: float
    gain: float
    error: float
    moved: float


def remembered(folder: Path, last: int = 0) -> tuple[ActorCriticPolicy, list[Detours], Recipe]:
    """Policy, detours of each of the ``last`` rollouts (0: all that are remembered), and recipe of a training.

    Raises:
        ConfigError: when the folder holds no training, or one without refinement.
    """
    model, recipe, _ = restore(folder)
    if not isinstance(model, RefiningPPO):
        raise ConfigError(f"the training in {folder} remembers no detours; its recipe has no entry refinement")
    model.load_pool_state(read_checkpoint(folder)["pool"])
    pool = [part for part in model.pool if len(part.worth)][-last:]
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy)
    return policy, pool, recipe


def told(policy: ActorCriticPolicy, pool: Sequence[Detours], settings: Refinement) -> Told:
    """Refines a copy of the policy by all rollouts but some, :data:`PARTS` times, and looks at those.

    Raises:
        ConfigError: fewer than two rollouts.
    """
    if len(pool) < 2:
        raise ConfigError(f"what detours tell is seen between rollouts, and takes at least 2, got {len(pool)}")
    parts = min(PARTS, len(pool))
    moved, worth, source = [], [], []
    for part in range(parts):
        fitted = copy.deepcopy(policy)
        kept = Detours.pooled(rollout for index, rollout in enumerate(pool) if index % parts != part)
        left = Detours.pooled(rollout for index, rollout in enumerate(pool) if index % parts == part)
        torch.manual_seed(part)
        refine(fitted, kept, settings)
        moved.append(_answers(fitted, left) - _answers(policy, left))
        worth.append(left.worth.numpy().astype(np.float64))
        source.append(sources(pool)[sources(pool) % parts == part])
    far, value = np.concatenate(moved), np.concatenate(worth)
    product = far * value
    return Told(
        float(np.corrcoef(far, value)[0, 1]),
        float(product.mean()),
        standard_error(product, np.concatenate(source)),
        float(np.sqrt(np.square(far).mean())),
    )


def sources(pool: Sequence[Detours]) -> NDArray[np.int64]:
    """The number of its rollout, for each detour of a pool."""
    return np.repeat(np.arange(len(pool)), [len(part.worth) for part in pool])


def standard_error(values: Array, source: NDArray[np.int64]) -> float:
    """Of the mean of values, those of one source being taken as one; not a number for a single source."""
    far = np.bincount(source, values - values.mean())[np.unique(source)]
    count = len(far)
    return float(np.sqrt(np.square(far).sum() * count / (count - 1)) / len(values)) if count > 1 else float("nan")


def main(arguments: Sequence[str]) -> None:
    """Prints what the detours of a training tell."""
    first = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m rlrate.experiments.detours", description=first)
    parser.add_argument("folder", type=Path, help="of a training with refinement, finished or not")
    parser.add_argument("--last", type=int, default=0, help="rollouts looked at (default: all that are remembered)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        policy, pool, recipe = remembered(given.folder, given.last)
        found = told(policy, pool, Refinement(**recipe.refinement))
    except ConfigError as error:
        sys.exit(f"error: {error}")
    detours = Detours.pooled(pool)
    worth, source = detours.worth.numpy().astype(np.float64), sources(pool)
    print(
        f"{len(worth)} detours of {len(pool)} rollouts; nats for the longest, upwards: {_mean(worth, source)}, ", end=""
    )
    print(f"standard deviation {worth.std():.3f}")
    print(
        f"told by {detours.observations.shape[1]} signals, out of sample: correlation {found.correlation:.3f}, "
        f"{found.gain:.4f} nats ({found.error:.4f}) for moves of {found.moved:.3f}"
    )
    names = recipe.spec.signals
    observations = detours.observations.numpy()
    if all(name in names for name in TRAITS):
        adapts, keeps = (observations[:, names.index(name)] > 0 for name in TRAITS)
        for kind, one in (("plain", ~adapts), ("adaptive", adapts)):
            for also, rows in (("without momentum", one & ~keeps), ("with momentum", one & keeps)):
                if rows.any():
                    print(f"  {kind} optimizers {also}: {_mean(worth[rows], source[rows])}")
    by = [(_correlation(observations[:, index], worth), name) for index, name in enumerate(names)]
    by.sort(key=lambda pair: -abs(pair[0]))
    print(f"correlation with single signals (standard error {1 / np.sqrt(len(worth)):.3f}):")
    print("  " + ", ".join(f"{name} {value:+.3f}" for value, name in by[:8]))


def _answers(policy: ActorCriticPolicy, detours: Detours) -> Array:
    with torch.no_grad():
        features = policy.mlp_extractor.forward_actor(detours.observations)
        return np.asarray(policy.action_net(features)[:, 0].numpy(), np.float64)


def _mean(values: Array, source: NDArray[np.int64]) -> str:
    return f"{values.mean():+.3f} ({standard_error(values, source):.3f}; {len(values)})"


def _correlation(one: NDArray[np.float32], other: Array) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 and other.std() > 0 else 0.0


if __name__ == "__main__":
    main(sys.argv[1:])
