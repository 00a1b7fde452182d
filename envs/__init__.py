"""Gymnasium environments in which an agent sets the learning rate of networks that train.

Importing this module registers ``rlrate/Training-v0``; ``gymnasium.make("rlrate/Training-v0", ...)`` gives a
:class:`TrainingEnv`, ``gymnasium.make_vec(..., vectorization_mode="vector_entry_point")`` a :class:`TrainingVectorEnv`.
"""

from __future__ import annotations

import gymnasium

from rlrate.envs.env import MULTIPLIERS, TrainingEnv, TrainingVectorEnv
from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec, make_optimizer
from rlrate.envs.population import Population
from rlrate.envs.training import TrainingConfig, TrainingRuns
from rlrate.envs.workload import Workload
from rlrate.envs.workloads import get_workload, make_workload, register_workload, workload_names

__all__ = [
    "MULTIPLIERS",
    "OPTIMIZERS",
    "OptimizerSpec",
    "Population",
    "TrainingConfig",
    "TrainingEnv",
    "TrainingRuns",
    "TrainingVectorEnv",
    "Workload",
    "get_workload",
    "make_optimizer",
    "make_workload",
    "register_workload",
    "workload_names",
]

ENVIRONMENT = "rlrate/Training-v0"

if ENVIRONMENT not in gymnasium.registry:
    gymnasium.register(
        ENVIRONMENT,
        entry_point="rlrate.envs.env:TrainingEnv",
        vector_entry_point="rlrate.envs.env:TrainingVectorEnv",
    )
