"""The specification of a control: what a policy sees and does, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from rlrate.control.action import Action
from rlrate.control.cadence import Cadence
from rlrate.control.signals import Signals
from rlrate.errors import ConfigError

Part = TypeVar("Part", Cadence, Action)

#: Entries that files need not have, because they came later; None then.
_LATER = {"alarm", "patience", "short"}


@dataclass(frozen=True)
class ControlSpec:
    """What a policy sees and does: signals, cadence and action. Part of every controller file."""

    signals: tuple[str, ...] = tuple(Signals().names)
    cadence: Cadence = field(default_factory=Cadence)
    action: Action = field(default_factory=Action)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` is its inverse."""
        plain = asdict(self)
        plain["signals"] = list(self.signals)
        multipliers = self.action.multipliers
        plain["action"]["multipliers"] = None if multipliers is None else list(multipliers)
        # Files keep the entries and the identity that they had before there was such an entry.
        for name in _LATER & set(plain["action"]):
            if plain["action"][name] is None:
                del plain["action"][name]
        return plain

    @classmethod
    def from_dict(cls, data: object) -> ControlSpec:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            ConfigError: for a missing, unknown or illegal entry.
        """
        if not isinstance(data, dict) or set(data) != {"signals", "cadence", "action"}:
            raise ConfigError("a control specification has exactly signals, cadence and action")
        names = data["signals"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError("signals must be a list of names")
        Signals(tuple(names))
        return cls(tuple(names), _read(Cadence, data["cadence"]), _read(Action, data["action"]))


def _read(kind: type[Part], data: object) -> Part:
    names = {f.name for f in fields(kind)}
    if not isinstance(data, dict) or set(data) | (_LATER & names) != names:
        raise ConfigError(f"{kind.__name__.lower()} must have exactly the entries {sorted(names)}")
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__.lower()}: an entry has the wrong type ({error})") from None
