"""The record of a training: what config.json and the provenance of a controller say of it."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch

import rlrate
from rlrate.agents.recipe import Recipe, digest_of
from rlrate.errors import ConfigError


def versions() -> dict[str, str]:
    """Versions of what determines a training."""
    return {
        "rlrate": rlrate.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }


def provenance(recipe: Recipe) -> dict[str, Any]:
    """What a controller's file says of its training."""
    return {"recipe": recipe.to_dict(), "digest": recipe.digest, "versions": versions()}


def config(recipe: Recipe) -> bytes:
    """What config.json holds: the provenance, and the specification that the recipe means in this version."""
    record = {**provenance(recipe), "specification": recipe.spec.to_dict()}
    # In the order of the recipe: which workload a draw has depends on the order of the table that weights them.
    return (json.dumps(record, indent=2) + "\n").encode()


def recorded_recipe(out: Path) -> Recipe:
    """The recipe of a training folder.

    Raises:
        ConfigError: when its config.json is missing or damaged, or when the recipe meant another control specification
            then than it does now, since a default has changed. Folders of the first days do not say what it meant.
    """
    try:
        record = json.loads((out / "config.json").read_text(encoding="utf-8"))
        if digest_of(record["recipe"]) != record["digest"]:
            raise ValueError("its recipe does not match its checksum")
        recipe = Recipe.from_dict(record["recipe"])
        specification, version = record.get("specification"), record.get("versions", {}).get("rlrate")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"nothing to resume or export in {out}: its config.json is missing or damaged ({error}). "
            "Was it written by `rlrate train --out`?"
        ) from None
    if specification is not None:
        _check_specification(out, specification, version, recipe)
    return recipe


def _check_specification(out: Path, specification: Any, version: Any, recipe: Recipe) -> None:
    before = _entries(specification)
    now = _entries(json.loads(json.dumps(recipe.spec.to_dict())))
    for name in sorted(before.keys() | now.keys()):
        then, today = before.get(name, "absent"), now.get(name, "absent")
        if then != today:
            raise ConfigError(
                f"cannot resume or export {out}: its recipe now means another control specification than when the "
                f"training began ({name} was {then!r} and is {today!r}); go on with the version of rlrate that "
                f"began it ({version}), or train anew in another folder"
            )


def _entries(specification: Any, prefix: str = "") -> dict[str, Any]:
    """The entries with dotted names, such as cadence.first."""
    if not isinstance(specification, dict):
        return {prefix: specification}
    entries: dict[str, Any] = {}
    for name, value in specification.items():
        entries |= _entries(value, f"{prefix}.{name}" if prefix else name)
    return entries
