"""Checkpoints of a controller's training: plain tensors and numbers with a checksum, nothing that executes."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rlrate.agents.refinement import RefiningPPO
from rlrate.agents.vecenv import PopulationVecEnv
from rlrate.errors import ConfigError
from rlrate.storage import write_atomically

VERSION = 1
MAX_BYTES = 256 * 2**20

_NAMES = ("checkpoint.pt", "checkpoint.previous.pt")
_MAGIC = b"rlrate.checkpoint"
_ENTRIES = {
    *("policy", "optimizers", "num_timesteps", "n_updates", "episode"),
    *("torch_rng", "numpy_rng", "rows", "digest"),
}


class _OtherVersion(ConfigError):
    """An intact checkpoint of another format version."""


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
    if isinstance(model, RefiningPPO):
        state["pool"] = model.pool_state()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path = out / _NAMES[0]
    write_atomically(path, _sealed(buffer.getvalue()), keep=out / _NAMES[1])


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
            return _read(path)
        except _OtherVersion as error:  # nothing is wrong with it: the one before must not take its place
            raise ConfigError(f"cannot resume or export {out}: {name} {error}") from None
        except ConfigError as error:
            problems.append(f"{name} {error}")
    reason = "; ".join(problems) or "it has no checkpoint"
    raise ConfigError(f"nothing to resume or export in {out}: {reason}. Was it written by `rlrate train --out`?")


def restore_state(model: BaseAlgorithm, env: PopulationVecEnv, state: dict[str, Any]) -> list[dict[str, Any]]:
    """Puts a checkpoint into a fresh model and environment; returns the rows of progress so far."""
    model.policy.load_state_dict(state["policy"])
    for name, optimizer in _optimizers(model).items():
        optimizer.load_state_dict(state["optimizers"][name])
    model.num_timesteps = int(state["num_timesteps"])
    model._n_updates = int(state["n_updates"])
    if isinstance(model, RefiningPPO):
        model.load_pool_state(state["pool"])
    env.set_options({"episode": int(state["episode"])})
    # Beginning the runs draws on no global generator, but restore these last all the same.
    model._last_obs = env.reset()
    model._last_episode_starts = np.ones(env.num_envs, dtype=bool)
    torch.set_rng_state(state["torch_rng"])
    kind, keys, *rest = state["numpy_rng"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    rows: list[dict[str, Any]] = json.loads(state["rows"])
    return rows


def _sealed(payload: bytes) -> bytes:
    """A line with format, version and checksum, then the payload: torch's own archive notices no flipped bit."""
    version = b"%d" % VERSION
    return b" ".join([_MAGIC, version, _digest(version, payload)]) + b"\n" + payload


def _digest(version: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(b"%s\n%s" % (version, payload)).hexdigest().encode()


def _read(path: Path) -> dict[str, Any]:
    """One checkpoint; the message of the ConfigError goes on after the file's name."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror or error})") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES:,} bytes, which no checkpoint is")
    payload = data if data[:2] == b"PK" else _unsealed(data)  # those of the first days have no checksum
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # the many ways in which torch tells that it cannot read a file
        raise ConfigError(f"is damaged ({type(error).__name__})") from None
    if not isinstance(state, dict) or not set(state) >= _ENTRIES:
        raise ConfigError("is not a checkpoint of a controller's training")
    return state


def _unsealed(data: bytes) -> bytes:
    line, _, payload = data[:200].partition(b"\n")
    magic, *rest = line.split(b" ")
    if magic != _MAGIC or len(rest) != 2:
        raise ConfigError("is damaged, or not a checkpoint of a controller's training")
    payload = data[len(line) + 1 :]
    version, digest = rest
    if _digest(version, payload) != digest:
        raise ConfigError("is damaged (its checksum does not match)")
    if version != b"%d" % VERSION:
        raise _OtherVersion(
            f"has checkpoint format version {version.decode('ascii', 'replace')}, this rlrate reads version {VERSION}; "
            "continue with the version of rlrate that wrote it"
        )
    return payload


def _optimizers(model: BaseAlgorithm) -> dict[str, torch.optim.Optimizer]:
    return {name: value for name, value in vars(model.policy).items() if isinstance(value, torch.optim.Optimizer)}


def _numpy_state() -> list[Any]:
    # SB3 shuffles its minibatches with NumPy's global generator.
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return [str(kind), [int(key) for key in keys], int(position), int(has_gauss), float(cached)]
