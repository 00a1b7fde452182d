"""A pass over stacked networks, recorded once and then repeated without the machinery that found its operations.

For small networks what a training step costs is not arithmetic but the way to it: module calls, ``torch.vmap`` and
autograd, some ten microseconds for each operation of a microsecond. Those operations are the same ones in every step.
`Repeated` writes them down while one step is made, compiles the list with TorchScript, and from then on runs that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["ChangedError", "Repeated"]

Outputs: TypeAlias = list[Tensor | None]
Function: TypeAlias = Callable[[Sequence[Tensor]], Outputs]

#: The call of a function, for inputs of the same shapes, that is recorded: those that are made a few times only are
#: not worth it.
RECORDED_CALL = 6
#: In so many calls after it a recording must agree to the last bit with the function, or it is not used.
TRIAL = 4
#: How far a recording may be off later, relative to the largest number.
TOLERANCE = 1e-3


class ChangedError(Exception):
    """A function no longer computes what was recorded of it."""


class Repeated:
    """Calls functions of tensors as they are written at first, and from a recording later.

    A recording is compared with the function itself in its first calls, to the last bit (where they differ, the
    function remains in use), and then whenever the number of calls has doubled, for functions that have changed since.

    Functions that draw random numbers, or in which numbers decide what is computed, are not recorded.

    Attributes:
        possible: Whether recordings are made; False once one of them could not be, or did not agree.
    """

    def __init__(self) -> None:
        self.possible = True
        self._calls: dict[Any, int] = {}
        self._recordings: dict[Any, _Recording] = {}

    def __call__(self, key: Any, function: Function, inputs: Sequence[Tensor]) -> Outputs:
        """What ``function(inputs)`` returns, and does to the inputs.

        Args:
            key: Stands for the function and the shapes of its inputs.
            function: Depends on nothing but the inputs, and changes nothing else.
            inputs: Tensors; the function may change them in place.

        Raises:
            ChangedError: The function has changed since it was recorded.
        """
        if not self.possible:
            return function(inputs)
        calls = self._calls[key] = self._calls.get(key, 0) + 1
        if calls == RECORDED_CALL:
            return self._record(key, function, inputs)
        recording = self._recordings.get(key)
        if recording is None:
            return function(inputs)
        since = calls - RECORDED_CALL
        if since <= TRIAL or since & (since - 1) == 0:  # a power of two
            return self._compare(recording, function, inputs, since)
        return recording(inputs)

    def records(self, key: Any) -> bool:
        """Whether the next call is recorded."""
        return self.possible and self._calls.get(key, 0) + 1 == RECORDED_CALL

    def _record(self, key: Any, function: Function, inputs: Sequence[Tensor]) -> Outputs:
        recorder = _Recorder(inputs)
        with recorder:
            outputs = function(inputs)
        try:
            self._recordings[key] = _Recording(recorder, outputs)
        except (_UnrecordedError, RuntimeError):  # the latter is TorchScript's, of what it cannot express
            self.possible = False
        return outputs

    def _compare(self, recording: _Recording, function: Function, inputs: Sequence[Tensor], since: int) -> Outputs:
        copies = [value.detach().clone() for value in inputs]
        outputs = function(inputs)
        trial = since <= TRIAL
        # On the inputs themselves where they are unchanged: copies lie apart, and their products may be rounded apart.
        given = [value if torch.equal(value, copy) else copy for value, copy in zip(inputs, copies, strict=True)]
        try:
            repeated = recording(given)
        except RuntimeError:  # TorchScript took another operation of that name
            if not trial:
                raise
            self.possible = False
            return outputs
        pairs = zip([*outputs, *inputs], [*repeated, *copies], strict=True)
        if not all(_agree(a, b, 0.0 if trial else TOLERANCE) for a, b in pairs):
            if not trial:
                raise ChangedError("it does not compute what it did some calls ago")
            self.possible = False
        return outputs


class _UnrecordedError(Exception):
    """What is computed cannot be told from the inputs alone, or not be written down."""


class _Slot(int):
    """Number of a tensor in a recording."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations that are computed while it is active, below autograd and ``vmap``."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[str] = []
        self.constants: dict[int, Tensor] = {}
        self.problem = ""
        self.inputs = len(inputs)
        self._slots = {id(value): _Slot(k) for k, value in enumerate(inputs)}
        self._count = len(inputs)
        #: Ids are those of tensors that live.
        self._alive: list[Any] = list(inputs)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.problem:
            return result
        if func is torch.ops.aten.detach.default:
            self._slots[id(result)] = self.slot(args[0])
            self._alive.append(result)
            return result
        if {torch.Tag.nondeterministic_seeded, torch.Tag.data_dependent_output} & set(func.tags):
            self.problem = f"{func} gives other results for the same inputs"
        elif func is torch.ops.aten._to_copy.default and not isinstance(args[0], Tensor):
            self.slot(result)  # a number that vmap made a tensor of: a constant
        else:
            try:
                self._write(func, args, kwargs, result)
            except _UnrecordedError as error:
                self.problem = str(error)
        return result

    def slot(self, value: Tensor) -> _Slot:
        """Number of a tensor; one that no operation made and that is no input is a constant."""
        found = self._slots.get(id(value))
        if found is None:
            found = self._new(value)
            self.constants[found] = value
        return found

    def _new(self, value: Tensor) -> _Slot:
        number = self._slots[id(value)] = _Slot(self._count)
        self._count += 1
        self._alive.append(value)
        return number

    def _write(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        given, named = tree_map(self._number, (tuple(args), dict(kwargs)))
        values = [_literal(value) for value in given] + [f"{k}={_literal(value)}" for k, value in named.items()]
        namespace, name = func._schema.name.split("::")
        call = f"torch.ops.{namespace}.{name}({', '.join(values)})"
        several = isinstance(result, tuple | list)
        made = list(result) if several else [result]
        names = []
        for value in made:
            if isinstance(value, Tensor):
                found = self._slots.get(id(value))
                names.append(f"t{self._new(value) if found is None else found}")
            else:
                names.append("_")
        if several and len(func._schema.returns) == 1:  # a list of tensors
            self.lines += [f"parts = {call}", *(f"{name} = parts[{k}]" for k, name in enumerate(names))]
        else:
            self.lines.append(f"{', '.join(names)} = {call}" if made else call)

    def _number(self, value: Any) -> Any:
        return self.slot(value) if isinstance(value, Tensor) else value


class _Recording:
    """Operations that were recorded, compiled: gives outputs like those of the function for other inputs."""

    def __init__(self, recorder: _Recorder, outputs: Outputs) -> None:
        if recorder.problem:
            raise _UnrecordedError(recorder.problem)
        used = [recorder.slot(value) for value in outputs if value is not None]
        self._constants = list(recorder.constants.values())
        self._present = [value is not None for value in outputs]
        numbers = [*range(recorder.inputs), *recorder.constants]
        head = ", ".join(f"t{k}: Tensor" for k in numbers)
        body = [*recorder.lines, f"return [{', '.join(f't{k}' for k in used)}]"]
        source = f"def run({head}):\n    " + "\n    ".join(body) + "\n"
        self._unit = torch.jit.CompilationUnit(source)
        self._run = self._unit.run

    def __call__(self, inputs: Sequence[Tensor]) -> Outputs:
        # As written: TorchScript would add up four products and more as one, which rounds otherwise.
        with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            results = self._run(*inputs, *self._constants)
        if len(results) == len(self._present):
            return results  # type: ignore[no-any-return]
        remaining = iter(results)
        return [next(remaining) if present else None for present in self._present]


def _literal(value: Any) -> str:
    """An argument of an operation in TorchScript."""
    if isinstance(value, _Slot):
        return f"t{int(value)}"
    if value is None or isinstance(value, bool | int):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else f"float('{value}')"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device('{value}')"
    raise _UnrecordedError(f"an argument is a {type(value).__name__}")


def _agree(a: Tensor | None, b: Tensor | None, tolerance: float) -> bool:
    if a is None or b is None:
        return a is b
    if a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    if not a.is_floating_point():
        return False
    finite = a.isfinite() & b.isfinite()
    scale = a.where(finite, torch.zeros_like(a)).abs().max() if a.numel() else a.sum()
    near = (a - b).abs() <= tolerance * scale
    return bool((near | (a == b) | (a.isnan() & b.isnan())).all())
