"""From a Stable-Baselines3 policy to a Controller that needs no Stable-Baselines3."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from rlrate.agents.checkpoint import has_checkpoint
from rlrate.agents.ensemble import FIRST, begun_folders, mean_of
from rlrate.agents.recipe import Recipe
from rlrate.agents.stopping import keep_stop
from rlrate.control import ControlSpec
from rlrate.controller import Controller, Head, linear_layers
from rlrate.errors import ConfigError

#: File, within the folder of a training, of a controller that knows when to stop.
STOPPING = "stopping.safetensors"

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def controller_from(model: BaseAlgorithm, spec: ControlSpec, provenance: Mapping[str, Any] | None = None) -> Controller:
    """The deterministic policy of an SB3 model as a :class:`rlrate.Controller`.

    Args:
        model: A trained PPO, A2C, SAC, TD3, DDPG or DQN with an MLP policy.
        spec: Signals, cadence and action that it was trained with.
        provenance: JSON-ready notes that the file will carry.

    Raises:
        ConfigError: for another algorithm or another kind of policy network.
    """
    modules, head = _policy_modules(model)
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    kinds = {type(m) for m in modules[:-1] if not isinstance(m, nn.Linear | nn.Flatten)}
    if len(kinds) > 1 or not kinds <= set(_ACTIVATIONS):
        raise ConfigError(
            f"cannot export a policy with layers {sorted(k.__name__ for k in kinds)}; "
            "use an MLP policy with tanh or ReLU activations"
        )
    activation = _ACTIVATIONS[kinds.pop()] if kinds else "tanh"
    layers = linear_layers([(layer.weight, layer.bias) for layer in linear])
    return Controller(layers, spec, activation, head, dict(provenance or {}))


def begin_with(model: BaseAlgorithm, controller: Controller, *, freeze: bool = True) -> None:
    """Gives the policy of an SB3 model the weights of a controller; the inverse of :func:`controller_from`.

    A policy that sees further signals does not heed them at first. Unless ``freeze`` is off, what it makes of them is
    then all that is learned: where they are zero, the controller stays what it was.

    Raises:
        ConfigError: when the controller is of another kind than the model's policy.
    """
    modules, head = _policy_modules(model)
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    shapes = [tuple(layer.weight.shape) for layer in linear]
    own = controller.layers[0][0].shape[1]
    further = shapes[0][1] - own
    wanted = [tuple(weight.shape) for weight, _ in controller.layers]
    wanted[0] = (wanted[0][0], own + max(further, 0))
    if head != controller.head or shapes != wanted:
        raise ConfigError(
            f"the training cannot begin with this controller: its head is {controller.head!r} with layers "
            f"{[tuple(w.shape) for w, _ in controller.layers]}, the policy's {head!r} with {shapes}"
        )
    with torch.no_grad():
        for layer, (weight, bias) in zip(linear, controller.layers, strict=True):
            layer.weight.zero_()
            layer.weight[:, : weight.shape[1]].copy_(weight)
            layer.bias.copy_(bias)
        value_net = getattr(model.policy, "value_net", None)
        if isinstance(value_net, nn.Linear):
            # What an untrained value function says is noise, which would pull a good policy apart.
            value_net.weight.zero_()
            value_net.bias.zero_()
    if further and freeze:
        for layer in linear:
            layer.requires_grad_(False)
        linear[0].weight.requires_grad_(True)
        learned = torch.arange(own + further) >= own
        linear[0].weight.register_hook(lambda gradient: gradient * learned)  # type: ignore[no-untyped-call]


def export(run: str | Path, path: str | Path | None = None, *, trust: bool = False) -> Path:
    """Writes the controller of a training folder, finished or not, or of a zip file that SB3 saved.

    A training folder is read from its checkpoint, which holds no code; of one with several seeds, the mean of those
    begun so far is written. A zip file runs code when it is opened, and is refused unless you trust it; its policy must
    have been trained with the specification of the training folder that it lies in, or with the default one.

    Args:
        run: The folder that ``rlrate train --out`` wrote, or the zip file of a model.
        path: Where to write; default ``controller.safetensors`` in the folder, or beside the zip file.
        trust: Open a zip file. Only for files that you saved yourself.

    Returns:
        The path written.

    Raises:
        ConfigError: when the folder holds no training, or the zip file is not trusted or not a model.
    """
    run = Path(run)
    if run.suffix == ".zip" or run.is_file():
        controller = _from_zip(run, trust)
        return controller.save(path or run.parent / "controller.safetensors")
    return _from_folder(run).save(path or run / "controller.safetensors")


def _from_folder(run: Path) -> Controller:
    from rlrate.agents.record import provenance, recorded_recipe
    from rlrate.agents.train import restore

    recorded = recorded_recipe(run)
    if recorded.seeds > 1:
        return mean_of([_from_folder(folder) for folder in begun_folders(run, recorded)], provenance(recorded))
    if recorded.first and not has_checkpoint(run):  # what comes first is all there is so far
        return _from_folder(run / FIRST)
    model, recipe, notes = restore(run)
    return stopping(recipe, run, controller_from(model, recipe.spec, notes))


def stopping(recipe: Recipe, run: Path, controller: Controller) -> Controller:
    """The policy of a training with what the folder, or else the controller that it began with, knows of stopping."""
    if (run / STOPPING).exists():
        return keep_stop(controller, Controller.load(run / STOPPING))
    if recipe.initial and not recipe.stopping:
        return keep_stop(controller, Controller.load(recipe.initial))
    return controller


def _from_zip(path: Path, trust: bool) -> Controller:
    from rlrate.agents.record import recorded_recipe
    from rlrate.agents.unpickling import load_zip

    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    recipe = recorded_recipe(path.parent) if (path.parent / "config.json").exists() else None
    model = load_zip(path, recipe.algo if recipe else "ppo", trust=trust)
    notes = {"kind": "stable-baselines3", "file": path.name}
    return controller_from(model, recipe.spec if recipe else ControlSpec(), notes)


def _policy_modules(model: BaseAlgorithm) -> tuple[list[nn.Module], Head]:
    policy: Any = model.policy
    if isinstance(model, OnPolicyAlgorithm):
        discrete = hasattr(model.action_space, "n")
        modules = [*_flat(policy.mlp_extractor.policy_net), policy.action_net]
        return modules, "argmax" if discrete else "clip"
    if isinstance(model, SAC):
        return [*_flat(policy.actor.latent_pi), policy.actor.mu], "tanh"
    if isinstance(model, TD3):  # and DDPG, its subclass
        return [m for m in _flat(policy.actor.mu)][:-1], "tanh"
    if isinstance(model, DQN):
        return _flat(policy.q_net.q_net), "argmax"
    raise ConfigError(f"cannot export a {type(model).__name__}")


def _flat(module: Iterable[nn.Module]) -> list[nn.Module]:
    return list(module)
