"""Every error that rlrate raises on purpose; each message names the cause and the mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ConfigError",
    "ControllerError",
    "ResultsError",
    "RlrateError",
    "SchedulerError",
    "WorkloadError",
    "unknown_name",
]


class RlrateError(Exception):
    """Base class of the errors below; catch it to catch them all."""


class ControllerError(RlrateError):
    """A controller file cannot be read, written or trusted, or does not fit this version."""


class WorkloadError(RlrateError, ValueError):
    """A workload is unknown, or its factory returned something that cannot be trained."""


class ResultsError(RlrateError):
    """The results of a comparison are missing, damaged, or of another version."""


class SchedulerError(RlrateError, ValueError):
    """A learning-rate scheduler was built or stepped in a way it cannot follow."""


class ConfigError(RlrateError, ValueError):
    """A setting has a value outside its legal range, or names something unknown."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Returns the message for a name that is not registered.

    Args:
        kind: What the name should have been, such as ``"schedule"``.
        name: The name that was given.
        known: The registered names, in the order in which to list them.

    Returns:
        One sentence with the close matches, if there are any, and all registered names.
    """
    names = list(known)
    close = get_close_matches(str(name), names)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"unknown {kind} {name!r}: {hint}choose one of {', '.join(names)}"
