"""Checkpoints of a controller's training: plain tensors and numbers, nothing that executes."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rlrate.agents.vecenv import PopulationVecEnv
from rlrate.errors import ConfigError
from rlrate.storage import write_atomically

_NAMES = ("checkpoint.pt", "checkpoint.previous.pt")


def write_checkpoint(
    out: Path, model: BaseAlgorithm, env: PopulationVecEnv, rows: list[dict[str, Any]], digest: str
) -> None:
    """Writes ``checkpoint.pt``; the one before is kept as ``checkpoint.previous.pt``.

    Must be called between rollouts, when every run has just begun: the runs themselves are then determined by the
    number of their episode.
    """
    state = {
        "policy": model.policy.state_dict(),
        "optimizers": {name: o.state_dict() for name, o in _optimizers(model).items()},
        "num_timesteps": model.num_timesteps,
        "n_updates": getattr(model, "_n_updates", 0),
        "episode": env.episode,
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": _numpy_state(),
        "rows": json.dumps(rows),
        "digest": digest,
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = out / _NAMES[0]
    if path.exists():
        path.replace(out / _NAMES[1])
    write_atomically(path, buffer.getvalue())


def has_checkpoint(out: Path) -> bool:
    """Whether a training folder holds a checkpoint, readable or not."""
    return any((out / name).exists() for name in _NAMES)


def read_checkpoint(out: Path) -> dict[str, Any]:
    """The newest readable checkpoint of a training folder.

    Raises:
        ConfigError: when there is none.
    """
    problems = []
    for name in _NAMES:
        path = out / name
        if not path.exists():
            continue
        try:
            state = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            problems.append(f"{name} is damaged ({type(error).__name__})")
            continue
        if isinstance(state, dict) and "policy" in state:
            return state
        problems.append(f"{name} is not a checkpoint of a controller's training")
    reason = "; ".join(problems) or "it has no checkpoint"
    raise ConfigError(f"nothing to resume or export in {out}: {reason}. Was it written by `rlrate train --out`?")


def restore_state(model: BaseAlgorithm, env: PopulationVecEnv, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Puts a checkpoint into a fresh model and environment; returns the rows of progress so far."""
    model.policy.load_state_dict(state["policy"])
    for name, optimizer in _optimizers(model).items():
        optimizer.load_state_dict(state["optimizers"][name])
    model.num_timesteps = int(state["num_timesteps"])
    model._n_updates = int(state["n_updates"])
    env.set_options({"episode": int(state["episode"])})
    # Beginning the runs draws on no global generator, but restore these last all the same.
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    torch.set_rng_state(state["torch_rng"])
    kind, keys, *rest = state["numpy_rng"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    rows: list[dict[str, Any]] = json.loads(state["rows"])
    return rows


def _optimizers(model: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    return {name: value for name, value in vars(model.policy).items() if isinstance(value, torch.optim.Optimizer)}


def _numpy_state() -> list[Any]:
    # SB3 shuffles its minibatches with NumPy's global generator.
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)]
