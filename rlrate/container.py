"""Reading safetensors files that strangers wrote: bounded, from one read, and nothing in them is executed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, deserialize
from torch import Tensor

from rlrate.errors import ControllerError

ENTRY = "rlrate"
CHECKSUM = "checksum"


def read(path: Path, limit: int) -> tuple[object, dict[str, Tensor]]:
    """Metadata entry ``rlrate`` (None if there is none, or it is no JSON) and tensors of a safetensors file.

    The file is read once and not mapped into memory, so that whoever shortens or changes it meanwhile does no harm.

    Args:
        path: The file.
        limit: Most bytes that are read; a longer file is refused before its content is looked at.

    Raises:
        ControllerError: when the file cannot be read, is too long, or is not a safetensors file of float32 tensors.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ControllerError(f"cannot read {path} ({error.strerror or error}); check its permissions") from None
    if len(data) > limit:
        raise ControllerError(
            f"{path.name} has {path.stat().st_size:,} bytes; a controller has at most {limit:,}. "
            "Is this the file that `rlrate train` or `rlrate export` wrote?"
        )
    try:
        found = deserialize(data)  # type: ignore[no-untyped-call]
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise ControllerError(_diagnosis(path.name, data[:2], error)) from None
    try:
        entry = json.loads(header.get("__metadata__", {}).get(ENTRY, "null"))
    except (ValueError, RecursionError):
        raise ControllerError(f"{path.name} is damaged: its header is not JSON") from None
    if entry is None:
        return None, {}
    return entry, {name: _tensor(path.name, name, parts) for name, parts in found}


def checksum(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a header (without its entry ``checksum``) and of tensors, as 64 hexadecimal digits."""
    kept = {name: value for name, value in header.items() if name != CHECKSUM}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} ".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _tensor(file: str, name: str, parts: Mapping[str, Any]) -> Tensor:
    if parts["dtype"] != "F32":
        raise ControllerError(f"{file} is not a valid controller: {name!r} is {parts['dtype']}, expected float32")
    values = np.frombuffer(parts["data"], dtype="<f4").reshape(parts["shape"])
    return torch.from_numpy(values.astype(np.float32))


def _diagnosis(name: str, head: bytes, error: Exception) -> str:
    """Says what a file is that is no safetensors file; looked at only then, since nothing was executed by trying."""
    if head == b"PK" or (head[:1] == b"\x80" and head[1:] <= b"\x05"):
        return (
            f"{name} is a pickle or zip archive (a Stable-Baselines3 or torch.save file?), which could run "
            "code when loaded; export it from its training folder with `rlrate export` and load the result"
        )
    return (
        f"{name} is truncated, damaged or not a safetensors file ({error}); "
        "copy it again, or write it anew with `rlrate export`"
    )
