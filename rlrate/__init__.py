"""Learned learning rates for torch: a scheduler driven by a controller trained with PPO."""

from rlrate.errors import ConfigError, ControllerError, RlrateError, SchedulerError, WorkloadError

__version__ = "0.1.0"

__all__ = ["ConfigError", "ControllerError", "RlrateError", "SchedulerError", "WorkloadError"]
