"""The errors share a base class, and unknown names are answered with what was probably meant."""

import pytest

from rlrate import errors
from rlrate.errors import RlrateError, unknown_name


@pytest.mark.parametrize(
    ("name", "bases"),
    [
        ("ControllerError", (RlrateError,)),
        ("WorkloadError", (RlrateError, ValueError)),
        ("SchedulerError", (RlrateError, ValueError)),
        ("ConfigError", (RlrateError, ValueError)),
    ],
)
def test_every_error_is_caught_as_its_bases(name: str, bases: tuple[type[Exception], ...]) -> None:
    for base in bases:
        assert issubclass(getattr(errors, name), base)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("adma", "unknown optimizer 'adma': did you mean 'adam'? choose one of sgd, adam"),
        ("zzz", "unknown optimizer 'zzz': choose one of sgd, adam"),
        (None, "unknown optimizer None: choose one of sgd, adam"),
    ],
)
def test_unknown_name(given: object, message: str) -> None:
    assert unknown_name("optimizer", given, ["sgd", "adam"]) == message


def test_unknown_name_lists_all_close_matches() -> None:
    text = unknown_name("schedule", "cosin", ["cosine", "cosine2", "step"])
    assert "did you mean 'cosine' or 'cosine2'?" in text
