"""Trainings that consist of several: one after the other, or each from a seed of its own and the mean of all."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlrate.agents.checkpoint import has_checkpoint, read_checkpoint
from rlrate.agents.metrics import write_csv
from rlrate.agents.recipe import Recipe
from rlrate.controller import Controller, Layers
from rlrate.errors import ConfigError

#: Folder, within that of a training, of what comes first.
FIRST = "first"


def members(recipe: Recipe) -> list[Recipe]:
    """The recipe of each training: the same but for its seed, which counts up from ``recipe.seed``."""
    seeds = range(recipe.seed, recipe.seed + recipe.seeds)
    return [dataclasses.replace(recipe, seed=seed, seeds=1) for seed in seeds]


def folder_of(out: Path, member: Recipe) -> Path:
    """Where a member of the training in ``out`` is trained."""
    return out / f"seed-{member.seed}"


def begun_folders(out: Path, recipe: Recipe) -> list[Path]:
    """The folders of a training's seeds that hold a checkpoint; if none does, the one that would hold the first."""
    folders = [folder_of(out, member) for member in members(recipe)] if recipe.seeds > 1 else [out]
    return [folder for folder in folders if _has_checkpoint(folder)] or folders[:1]


def _has_checkpoint(folder: Path) -> bool:
    """Whether anything of a training is saved, be it of what comes first in it, or of one of the seeds of that."""
    first = folder / FIRST
    parts = [part for part in (first, *first.glob("seed-*")) if part.is_dir()]
    return has_checkpoint(folder) or any(_has_checkpoint(part) for part in parts)


def rollouts_done(out: Path, recipe: Recipe) -> int:
    """How many rollouts of a training are saved, over all its seeds.

    Raises:
        ConfigError: when none is.
    """
    return sum(_rollouts_done(folder, recipe) for folder in begun_folders(out, recipe))


def _rollouts_done(folder: Path, recipe: Recipe) -> int:
    first = recipe.first_recipe
    if first and not has_checkpoint(folder):
        return rollouts_done(folder / FIRST, first)
    return (first.rollouts if first else 0) + len(json.loads(read_checkpoint(folder)["rows"]))


def gather_progress(recipe: Recipe, out: Path) -> None:
    """Writes the rows of all members to the folder's own ``progress.csv``, their seed first."""
    rows: list[dict[str, Any]] = []
    for member in members(recipe):
        path = folder_of(out, member) / "progress.csv"
        if path.exists():
            text = io.StringIO(path.read_text(encoding="utf-8"), newline="")
            rows += [{"seed": member.seed, **row} for row in csv.DictReader(text)]
    if rows:
        write_csv(out / "progress.csv", rows)


def mean_of(controllers: Sequence[Controller], provenance: Mapping[str, Any] | None = None) -> Controller:
    """One controller whose answer is the mean of those of several, taken before the bound of the action.

    Its hidden layers hold theirs side by side: they are as wide as all of them together. Of discrete choices it takes
    the one whose mean score is highest.

    Raises:
        ConfigError: when there is none, or they differ in specification, in kind or in the number of layers.
    """
    if not controllers:
        raise ConfigError("a mean needs at least one controller")
    first = controllers[0]
    kinds = {(c.spec, c.activation, c.head, len(c.layers), len(c.stop)) for c in controllers}
    if len(kinds) > 1:
        raise ConfigError("only controllers of one specification, one kind and as many layers have a mean")
    layers, stop = (_beside(networks) for networks in ([c.layers for c in controllers], [c.stop for c in controllers]))
    return Controller(layers, first.spec, first.activation, first.head, dict(provenance or {}), stop)


def _beside(networks: Sequence[Layers]) -> Layers:
    """One network whose output is the mean of those of several."""
    layers = []
    for index in range(len(networks[0])):
        weights = [network[index][0].double() for network in networks]
        biases = [network[index][1].double() for network in networks]
        if index == len(networks[0]) - 1:
            # All inputs of a lone layer are shared: there the weights themselves have a mean.
            weight = _mean(weights) if index == 0 else torch.cat(weights, dim=1) / len(networks)
            bias = _mean(biases)
        else:
            weight = torch.cat(weights) if index == 0 else torch.block_diag(*weights)  # type: ignore[no-untyped-call]
            bias = torch.cat(biases)
        layers.append((weight.float().contiguous(), bias.float().contiguous()))
    return tuple(layers)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack(tuple(tensors)).mean(dim=0)
