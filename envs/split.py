"""Which workloads train a controller, which choose among controllers, and which judge them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from rlrate.errors import ConfigError, unknown_name

__all__ = ["PARTS", "Part", "load_part"]

_FOLDER = Path(__file__).parent / "splits"

#: The parts, each a file of that name.
PARTS = ("training", "selection", "held-out")


@dataclass(frozen=True)
class Part:
    """One part of the split.

    Attributes:
        title: What a report calls it.
        families: Registered names of sampled families.
        workloads: Registered names of fixed workloads.
        data: Real data sets that may be reached: "breast-cancer", "descriptions", "diabetes", "digits", "iris",
            "photos", "wine". Synthetic data are not listed.
    """

    title: str
    families: tuple[str, ...]
    workloads: tuple[str, ...]
    data: tuple[str, ...]


def load_part(name: str) -> Part:
    """Read a part of the split.

    Args:
        name: One of `PARTS`.

    Raises:
        ConfigError: There is no such part.
    """
    if name not in PARTS:
        raise ConfigError(unknown_name("part of the split", name, PARTS))
    values = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    return Part(values["title"], *(tuple(values[key]) for key in ("families", "workloads", "data")))
