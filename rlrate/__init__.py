"""rlrate: learning rates set by a controller that was trained by reinforcement learning.

``rlrate.LearnedLR(optimizer, total_steps=N)`` is the one line to apply the bundled controller. Training
environments are in :mod:`rlrate.envs`, PPO training in :mod:`rlrate.agents`, comparisons in
:mod:`rlrate.experiments`; they need the extras ``train`` and ``compare``.
"""

from rlrate.controller import Controller
from rlrate.errors import (
    ConfigError,
    ControllerError,
    RlrateError,
    SchedulerError,
    WorkloadError,
)
from rlrate.scheduler import LearnedLR

__all__ = [
    "ConfigError",
    "Controller",
    "ControllerError",
    "LearnedLR",
    "RlrateError",
    "SchedulerError",
    "WorkloadError",
]
__version__ = "0.1.0"
