"""TOML files that say only in what they differ from another one."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlrate.errors import ConfigError

__all__ = ["read_extending"]


def read_extending(path: Path, find: Callable[[str], Path], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The entries of a file, with those of the file that its entry ``extends`` names.

    What the file does not say is as there; of a table, the entries that it does not name. A name of its own is not
    taken over.

    Args:
        path: The file.
        find: Gives the file of a bundled name; what ends in .toml is a path, seen from the file that names it.
        above: Files that led to this one.

    Raises:
        OSError: when a file cannot be read.
        ConfigError: when it is no TOML, or extends itself.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    if "extends" not in data:
        return data
    name = data.pop("extends")
    if not isinstance(name, str):
        raise ConfigError(f"{path}: extends takes one name or path, got {name!r}")
    above = (*above, path.resolve())
    other = path.parent / name if name.endswith(".toml") else find(name)
    if other.resolve() in above:
        raise ConfigError(f"{path}: extends = {name!r} leads back to the file itself")
    base = read_extending(other, find, above)
    base.pop("name", None)
    for key, value in data.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = base[key] | value if both else value
    return base
