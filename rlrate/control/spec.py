"""The specification of a control: what a policy sees and does, as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

from rlrate.control.action import Action
from rlrate.control.cadence import Cadence
from rlrate.control.signals import LIMIT, Limits, Signals
from rlrate.errors import ConfigError

Part = TypeVar("Part", Cadence, Action)

#: Entries that files need not have, because they came later; None then.
_LATER = {"alarm", "patience", "short"}


@dataclass(frozen=True)
class ControlSpec:
    """What a policy sees and does. Part of every controller file.

    Attributes:
        signals: Names, in order.
        cadence: When it decides.
        action: What an answer does, and the rules around it.
        limits: Signals that are shown within narrower bounds than the usual ones, each with its lowest and highest
            value: beyond what a policy was trained on, its answers are anyone's guess.
    """

    signals: tuple[str, ...] = tuple(Signals().names)
    cadence: Cadence = field(default_factory=Cadence)
    action: Action = field(default_factory=Action)
    limits: Limits = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "limits", tuple(sorted(self.limits)))  # their order means nothing

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` is its inverse."""
        plain = asdict(self)
        plain["signals"] = list(self.signals)
        multipliers = self.action.multipliers
        plain["action"]["multipliers"] = None if multipliers is None else list(multipliers)
        plain["limits"] = {name: [low, high] for name, low, high in self.limits}
        # Files keep the entries and the identity that they had before there was such an entry.
        if not self.limits:
            del plain["limits"]
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
        if not isinstance(data, dict) or set(data) - {"limits"} != {"signals", "cadence", "action"}:
            raise ConfigError("a control specification has signals, cadence and action, and limits where there are any")
        names = data["signals"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError("signals must be a list of names")
        limits = read_limits(data.get("limits", {}))
        Signals(tuple(names), limits=limits)
        return cls(tuple(names), _read(Cadence, data["cadence"]), _read(Action, data["action"]), limits)


def read_limits(data: object) -> Limits:
    """Limits from a dictionary of signals, each with a list of its lowest and highest value.

    Raises:
        ConfigError: for anything else.
    """
    if not isinstance(data, dict) or not all(_is_range(pair) for pair in data.values()):
        raise ConfigError(
            f"limits name signals, each with its lowest and highest value within -{LIMIT:g} .. {LIMIT:g}, got {data!r}"
        )
    return tuple((name, float(low), float(high)) for name, (low, high) in data.items())


def _is_range(pair: object) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(value) in (int, float) for value in pair):
        return False
    return bool(-LIMIT <= pair[0] <= pair[1] <= LIMIT)


def _read(kind: type[Part], data: object) -> Part:
    names = {f.name for f in fields(kind)}
    if not isinstance(data, dict) or set(data) | (_LATER & names) != names:
        raise ConfigError(f"{kind.__name__.lower()} must have exactly the entries {sorted(names)}")
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__.lower()}: an entry has the wrong type ({error})") from None
