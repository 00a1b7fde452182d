"""The Stable-Baselines3 model that a recipe describes."""

from __future__ import annotations

from typing import Any

from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from rlrate.agents.export import begin_with
from rlrate.agents.recipe import ON_POLICY, Recipe
from rlrate.agents.refinement import Refinement, RefiningPPO
from rlrate.agents.rollout import BranchingPolicy, BranchRolloutBuffer, HeldNoisePolicy, SiblingRolloutBuffer
from rlrate.agents.vecenv import PopulationVecEnv
from rlrate.controller import Controller
from rlrate.errors import ConfigError

ALGORITHM_CLASSES: dict[str, type[BaseAlgorithm]] = {
    "ppo": PPO,
    "a2c": A2C,
    "sac": SAC,
    "td3": TD3,
    "ddpg": DDPG,
    "dqn": DQN,
}
_ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def make_model(recipe: Recipe, env: PopulationVecEnv, initial: Controller | None = None) -> BaseAlgorithm:
    """The SB3 model of a recipe, with fresh weights or those of a controller, ``initial`` or what the recipe names."""
    settings = dict(recipe.algorithm)
    policy = recipe.policy | recipe.network
    if recipe.initial:
        initial = Controller.load(recipe.initial)
    activation = policy.pop("activation")
    if activation not in _ACTIVATIONS:
        raise ConfigError(f"unknown activation {activation!r}; known: tanh, relu")
    policy_kwargs: dict[str, Any] = {
        "net_arch": list(policy.pop("net")),
        "activation_fn": _ACTIVATIONS[activation],
        **policy,
    }
    if recipe.algo in ON_POLICY:
        settings.setdefault("n_steps", recipe.episode_length)
        settings.setdefault("gamma", 1.0)
    policy_class: Any = "MlpPolicy"
    if recipe.siblings:
        comparison = {"hold": 1, "siblings": recipe.environment["siblings"], **recipe.siblings}
        branch = comparison.pop("branch", False)
        policy_kwargs["hold"] = comparison["hold"]
        if branch:
            policy_kwargs |= {"siblings": comparison["siblings"], "span": recipe.episode_length}
        policy_class = BranchingPolicy if branch else HeldNoisePolicy
        settings |= {
            "rollout_buffer_class": BranchRolloutBuffer if branch else SiblingRolloutBuffer,
            "rollout_buffer_kwargs": {"draws": recipe.draws, **comparison},
            "vf_coef": 0.0,  # nothing asks for the value function
        }
    algorithm = ALGORITHM_CLASSES[recipe.algo]
    if recipe.refinement:
        algorithm = RefiningPPO
        settings |= {"refinement": Refinement(**recipe.refinement), "siblings": recipe.environment["siblings"]}
    rate = float(settings.pop("learning_rate", 3e-4))
    settings["learning_rate"] = LinearToZero(rate) if recipe.anneal_learning_rate else rate
    try:
        model = algorithm(
            policy_class,
            env,
            policy_kwargs=policy_kwargs,
            seed=recipe.seed,
            device="cpu",
            verbose=0,
            **settings,
        )
    except TypeError as error:
        raise ConfigError(f"recipe {recipe.name!r}: {recipe.algo} refuses it: {error}") from None
    if initial is not None:
        begin_with(model, initial, freeze=not recipe.refinement)
    return model


class LinearToZero:
    """The policy's own learning rate as a function of the share of the training that remains."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, progress_remaining: float) -> float:
        """The rate; never quite zero, so that the last rollout still counts."""
        return self.rate * max(0.02, progress_remaining)
