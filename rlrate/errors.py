"""Every error that rlrate raises on purpose; each message names the cause and the mend."""

__all__ = ["ConfigError", "ControllerError", "RlrateError", "SchedulerError", "WorkloadError"]


class RlrateError(Exception):
    """Base class of the errors below; catch it to catch them all."""


class ControllerError(RlrateError):
    """A controller file cannot be read, written or trusted, or does not fit this version."""


class WorkloadError(RlrateError, ValueError):
    """A workload is unknown, or its factory returned something that cannot be trained."""


class SchedulerError(RlrateError, ValueError):
    """A learning-rate scheduler was built or stepped in a way it cannot follow."""


class ConfigError(RlrateError, ValueError):
    """A setting has a value outside its legal range, or names something unknown."""
