"""Training controllers with Stable-Baselines3: recipes, training, evaluation and export."""

from rlrate.agents.ensemble import mean_of
from rlrate.agents.evaluate import Outcome, by_family, evaluate, run_controller
from rlrate.agents.export import controller_from, export
from rlrate.agents.recipe import ALGORITHMS, Recipe, recipe_names
from rlrate.agents.train import train
from rlrate.agents.vecenv import PopulationVecEnv

__all__ = [
    "ALGORITHMS",
    "Outcome",
    "PopulationVecEnv",
    "Recipe",
    "by_family",
    "controller_from",
    "evaluate",
    "export",
    "mean_of",
    "recipe_names",
    "run_controller",
    "train",
]
