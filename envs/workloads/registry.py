"""Workload factories by name, and how a user's own are found, called and checked."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np

from rlrate.envs.workload import Workload, check_workload
from rlrate.errors import WorkloadError, unknown_name

__all__ = [
    "Factory",
    "Kind",
    "WorkloadEntry",
    "WorkloadSpec",
    "get_workload",
    "make_workload",
    "register_workload",
    "workload_entries",
    "workload_names",
]

Factory: TypeAlias = Callable[[np.random.Generator], Workload]
Kind: TypeAlias = Literal["family", "fixed"]
#: A registered name, "path/to/file.py:function", a workload, or a factory (with or without a
#: generator as its argument).
WorkloadSpec: TypeAlias = str | Workload | Factory | Callable[[], Workload]


@dataclass(frozen=True)
class WorkloadEntry:
    """What is registered under a name.

    Attributes:
        name: The name.
        factory: ``factory(rng)`` gives a workload.
        description: One line for people.
        kind: "family" if the factory samples a different workload for every seed, "fixed" if it
            gives the same one always.
    """

    name: str
    factory: Factory
    description: str
    kind: Kind


_ENTRIES: dict[str, WorkloadEntry] = {}


@overload
def register_workload(name: str, factory: Factory, *, description: str, kind: Kind = "family") -> Factory: ...
@overload
def register_workload(
    name: str, factory: None = None, *, description: str, kind: Kind = "family"
) -> Callable[[Factory], Factory]: ...
def register_workload(
    name: str, factory: Factory | None = None, *, description: str, kind: Kind = "family"
) -> Factory | Callable[[Factory], Factory]:
    """Make a factory known by name; without ``factory``, a decorator.

    Args:
        name: Lower-case words joined by hyphens.
        factory: ``factory(rng)`` returns a `Workload`.
        description: One line for people.
        kind: "family" if seeds differ, "fixed" if the generator is not used.

    Raises:
        WorkloadError: The name is taken or could not be told from a path.
    """
    if not name or ":" in name or name.endswith(".py"):
        raise WorkloadError(f"a workload cannot be called {name!r}; use words joined by hyphens.")
    if kind not in ("family", "fixed"):
        raise WorkloadError(f'kind is {kind!r}; give "family" or "fixed".')

    def register(function: Factory) -> Factory:
        if name in _ENTRIES:
            raise WorkloadError(f"a workload called {name!r} exists already; choose another name.")
        _ENTRIES[name] = WorkloadEntry(name, function, description, kind)
        return function

    return register if factory is None else register(factory)


def workload_entries() -> list[WorkloadEntry]:
    """All registered workloads, in the order of their registration."""
    return list(_ENTRIES.values())


def workload_names(kind: Kind | None = None) -> list[str]:
    """Registered names, families first; only those of one ``kind`` if given."""
    entries = sorted(_ENTRIES.values(), key=lambda entry: entry.kind)
    return [entry.name for entry in entries if kind in (None, entry.kind)]


def get_workload(spec: WorkloadSpec) -> Factory:
    """The factory that a name, path, workload or function stands for.

    Args:
        spec: A registered name; "path/to/file.py:function"; a `Workload`, which the factory returns
            as it is; or a function that returns one and takes a NumPy generator or nothing.

    Raises:
        WorkloadError: Nothing is called so, or the file or function cannot be loaded.
    """
    if isinstance(spec, Workload):
        return lambda _: spec
    if isinstance(spec, str):
        if spec in _ENTRIES:
            return _ENTRIES[spec].factory
        path, colon, function = spec.rpartition(":")
        if colon and path.endswith(".py"):
            return _adapt(_load_function(path, function), spec)
        if spec.endswith(".py"):
            raise WorkloadError(
                f"{spec!r} names no function; write the one that makes the workload after a "
                f'colon, such as "{spec}:make".'
            )
        raise WorkloadError(
            f'{unknown_name("workload", spec, workload_names())}; your own is given as "path/to/file.py:function".'
        )
    if callable(spec):
        return _adapt(spec, _label(spec))
    raise WorkloadError(
        f"a workload is given by a name, a path, a Workload or a function, not by a {type(spec).__name__}."
    )


def make_workload(spec: WorkloadSpec, rng: np.random.Generator | int) -> Workload:
    """Sample a workload and check it.

    Args:
        spec: See `get_workload`.
        rng: NumPy generator, or a seed for one. The same seed gives the same workload.

    Returns:
        A workload that has passed `check_workload`; a batch size above the number of training
        examples has been reduced to it.

    Raises:
        WorkloadError: The factory is unknown, failed, returned something else, or returned a
            workload whose parts do not fit together.
    """
    label = spec.name if isinstance(spec, Workload) else _label(spec)
    factory = get_workload(spec)
    try:
        workload = factory(np.random.default_rng(rng))
    except WorkloadError:
        raise
    except Exception as error:
        raise WorkloadError(f"the workload {label} could not be made: {type(error).__name__}: {error}") from error
    if not isinstance(workload, Workload):
        raise WorkloadError(
            f"{label} returned an object of type {type(workload).__name__}; return a rlrate.envs.Workload, for "
            "instance by Workload.from_dataset."
        )
    try:
        too_large = workload.batch_size > len(workload.train[0]) > 0
    except (TypeError, IndexError):
        too_large = False  # check_workload says what is wrong
    if too_large:
        workload = replace(workload, batch_size=len(workload.train[0]))
    check_workload(workload)
    return workload


def _label(spec: Any) -> str:
    return spec if isinstance(spec, str) else getattr(spec, "__qualname__", type(spec).__name__)


def _adapt(function: Callable[..., Any], label: str) -> Factory:
    """Let a function without arguments pass as a factory."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return cast(Factory, function)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    required += [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    takes_rng = any(p.kind is p.VAR_POSITIONAL for p in parameters) or any(
        p.name == "rng" or p.default is p.empty for p in positional[:1]
    )
    if len(required) > 1 or (required and required[0].kind is required[0].KEYWORD_ONLY):
        raise WorkloadError(
            f"{label} must take one argument, a NumPy generator, or none; it takes "
            f"{', '.join(p.name for p in required)}."
        )
    return cast(Factory, function) if takes_rng else lambda _: function()


def _load_function(path: str, function: str) -> Callable[..., Any]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise WorkloadError(f"there is no file {path!r} to load a workload from.")
    module = _load_module(file.resolve(), file.stat().st_mtime_ns)
    found = getattr(module, function, None)
    if found is None:
        defined = [
            name
            for name, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise WorkloadError(f"{path!r} has no function {function!r}; it defines {', '.join(defined) or 'none'}.")
    if not callable(found):
        raise WorkloadError(f"{function!r} in {path!r} is not a function.")
    return cast(Callable[..., Any], found)


@lru_cache(maxsize=64)
def _load_module(file: Path, modified: int) -> ModuleType:
    """Run a file once per version of it."""
    name = f"rlrate_user_workload_{abs(hash((file, modified))):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise WorkloadError(f"{str(file)!r} cannot be loaded as a Python file.")
    module = importlib.util.module_from_spec(spec)
    # As when Python runs a file: modules beside it can be imported, and classes can be pickled.
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise WorkloadError(f"{str(file)!r} failed: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(file.parent))
    return module
