"""SB3's policy, the exported controller and the network written out agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rlrate import Controller
from rlrate.agents import PopulationVecEnv, Recipe, controller_from
from rlrate.agents.model import make_model
from rlrate.envs.env import to_unit

RANDOM, ROLLED_OUT = 10_000, 1_000
POLICIES: dict[str, dict[str, Any]] = {
    "ppo": {"policy": {"net": [64, 64]}},
    "ppo-discrete": {"action": "discrete", "policy": {"net": [48, 32], "activation": "relu"}},
    "sac": {"algo": "sac", "policy": {"net": [32, 32], "activation": "relu"}, "algorithm": {"buffer_size": 100}},
}


def written_out(controller: Controller, x: np.ndarray) -> np.ndarray:
    """The controller file's page, in NumPy."""
    x = x.astype(np.float64)
    for index, (weight, bias) in enumerate(controller.layers):
        x = x @ weight.numpy().astype(np.float64).T + bias.numpy().astype(np.float64)
        if index < len(controller.layers) - 1:
            x = np.tanh(x) if controller.activation == "tanh" else np.maximum(x, 0)
    if controller.head == "argmax":
        action = controller.spec.action
        return np.asarray(np.log(action.multipliers or ())[x.argmax(axis=1)] / np.log(action.factor))
    return np.asarray(np.tanh(x[:, 0]) if controller.head == "tanh" else np.clip(x[:, 0], -1, 1))


@pytest.mark.parametrize("policy", POLICIES)
def test_three_ways_to_act_are_one(
    policy: str, tiny: dict[str, Any], record_property: Callable[[str, object], None]
) -> None:
    recipe = Recipe.from_dict({**tiny, "algorithm": {}, "runs": 64, **POLICIES[policy]})
    env = PopulationVecEnv(recipe.make_env(), recipe.seed)
    model = make_model(recipe, env)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # the weights of a fresh policy are too small to tell one network from another
        for parameter in model.policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(parameter.shape[-1], 1) ** 0.5)
    controller = controller_from(model, recipe.spec)
    rng = np.random.default_rng(0)
    seen = [rng.uniform(-4, 4, (RANDOM, len(controller.spec.signals))).astype(np.float32)]
    observations = np.asarray(env.reset())
    while sum(map(len, seen)) < RANDOM + ROLLED_OUT:
        seen.append(observations)
        observations = np.asarray(env.step(model.predict(observations)[0])[0])
    env.close()
    every = np.concatenate(seen)[: RANDOM + ROLLED_OUT]
    predicted = to_unit(model.predict(every, deterministic=True)[0], controller.spec.action, len(every))
    acted = controller.act(every)
    difference = max(np.abs(acted - predicted).max(), np.abs(acted - written_out(controller, every)).max())
    assert np.ptp(acted) > 1
    assert difference <= 1e-6
    record_property("cases", len(every))
    record_property("largest difference", float(difference))
