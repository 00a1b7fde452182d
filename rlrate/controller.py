"""The artefact: a policy network, what it sees and does, and where it came from, in one file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save as serialise
from torch import Tensor

from rlrate.container import CHECKSUM, checksum, read
from rlrate.control import ControlSpec
from rlrate.errors import ConfigError, ControllerError
from rlrate.storage import write_atomically

FORMAT = "rlrate.controller"
#: Written for controllers that can advise to stop, and for others; the latter can be read by any version of rlrate.
VERSION, PLAIN = 2, 1
MAX_BYTES = 16 * 2**20

Head = Literal["clip", "tanh", "argmax"]
Layers: TypeAlias = tuple[tuple[Tensor, Tensor], ...]

#: The signal that says whether the updates of an epoch are told.
TELLS = "epochs_known"

_ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
_ENTRIES = {"format", "version", "specification", "provenance", "identity", CHECKSUM}
_BUNDLED = Path(__file__).parent / "controllers"


@dataclass(frozen=True, eq=False)
class Controller:
    """A learning-rate policy that needs neither Gymnasium nor Stable-Baselines3.

    Two controllers are equal when their weights and specification are, whatever their provenance.

    Attributes:
        layers: Weight (out, in) and bias (out,) of each linear layer, float32; the activation stands between
            them. The last layer has one output, or one for each discrete choice.
        spec: Signals, cadence and action that the policy was trained with.
        activation: "tanh" or "relu".
        head: What turns the last layer's output into an action: "clip" to [-1, 1] (PPO, A2C), "tanh" (SAC, TD3,
            DDPG), or "argmax" over discrete choices (PPO, A2C, DQN).
        provenance: JSON-ready notes on how it was made (recipe, seed, versions, figures).
        stop: Layers of a second network with the same activation, which sees all signals while the policy may see only
            the first of them; empty for none. Its one output is above zero where training on would do harm.
    """

    layers: Layers
    spec: ControlSpec = field(default_factory=ControlSpec)
    activation: str = "tanh"
    head: Head = "clip"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    stop: Layers = ()

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def constant(cls, action: float = 0.0, spec: ControlSpec | None = None) -> Controller:
        """A controller that always answers ``action`` in [-1, 1]; 0 holds the rate."""
        spec = spec or ControlSpec()
        layer = (torch.zeros(1, len(spec.signals)), torch.tensor([action], dtype=torch.float32))
        return cls((layer,), spec, provenance={"kind": "constant", "action": action})

    def act(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        """The deterministic actions for a batch of observations.

        Args:
            observations: float32, shape (N, number of signals).

        Returns:
            Actions u in [-1, 1], float64, shape (N,).
        """
        output = self._output(self.layers, observations)
        if self.head == "argmax":
            choices = self.spec.action.choices
            assert choices is not None
            return np.asarray(choices[output.argmax(axis=1)], np.float64)
        u = output[:, 0]
        return np.asarray(np.tanh(u) if self.head == "tanh" else np.clip(u, -1.0, 1.0), np.float64)

    def answer(self, observations: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """What :meth:`RateControl.act` is told: the actions, and whether to stop.

        To stop is advised only to those who tell how many updates make an epoch, as nothing was learnt of others.

        Args:
            observations: As for :meth:`act`.

        Returns:
            Two arrays of shape (N,).
        """
        if not self.stop:
            return self.act(observations), np.zeros(len(observations), dtype=bool)
        told = observations[:, self.spec.signals.index(TELLS)] > 0.0
        return self.act(observations), told & (self._output(self.stop, observations)[:, 0] > 0.0)

    def _output(self, layers: Layers, observations: NDArray[np.float32]) -> NDArray[np.float32]:
        seen = observations[:, : layers[0][0].shape[1]]
        with torch.no_grad():
            x = torch.from_numpy(np.ascontiguousarray(seen, dtype=np.float32))
            for index, (weight, bias) in enumerate(layers):
                x = torch.addmm(bias, x, weight.t())
                if index < len(layers) - 1:
                    x = _ACTIVATIONS[self.activation](x)
        return x.numpy()

    @property
    def identity(self) -> str:
        """SHA-256 of weights and specification (not of the provenance), as 64 hexadecimal digits."""
        digest = hashlib.sha256(json.dumps(self._specification(), sort_keys=True).encode())
        for weight, bias in (*self.layers, *self.stop):
            for tensor in (weight, bias):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes one safetensors file; the same controller always gives the same bytes.

        The file is written beside its final name, synced and renamed, so a crash leaves the old one intact.

        Raises:
            ControllerError: when the file cannot be written, or the provenance is not JSON-ready.
        """
        path = Path(path)
        tensors = {}
        for name, layers in (("layer", self.layers), ("stop", self.stop)):
            for index, (weight, bias) in enumerate(layers):
                tensors[f"{name}.{index}.weight"] = weight.contiguous()
                tensors[f"{name}.{index}.bias"] = bias.contiguous()
        header: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION if self.stop else PLAIN,
            "specification": self._specification(),
            "provenance": dict(self.provenance),
            "identity": self.identity,
        }
        try:
            header = json.loads(json.dumps(header))  # as it will be read: names that are numbers become strings
            header[CHECKSUM] = checksum(header, tensors)
            # One entry: the order of several would differ from run to run.
            data = serialise(tensors, {"rlrate": json.dumps(header, sort_keys=True)})
            write_atomically(path, data)
        except (TypeError, ValueError, RecursionError) as error:
            raise ControllerError(f"the provenance of a controller holds only what JSON can hold: {error}") from None
        except OSError as error:
            raise ControllerError(
                f"cannot write {path} ({error.strerror or error}); choose a file in a folder that you may write to"
            ) from None
        return path

    @classmethod
    def load(cls, source: str | os.PathLike[str]) -> Controller:
        """Reads a controller file, or a bundled controller by name ("default").

        Nothing in the file is executed: it is safetensors with JSON metadata, checked against its specification.

        Raises:
            ControllerError: when the file is missing, not a controller, damaged, or of another version.
        """
        path = _resolve(source)
        entry, tensors = read(path, MAX_BYTES)
        return cls._from_parts(path, _header(path, entry), tensors)

    @classmethod
    def _from_parts(cls, path: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Controller:
        networks = {
            name: tuple(
                (tensors[f"{name}.{i}.weight"], tensors[f"{name}.{i}.bias"])
                for i in range(len(tensors))
                if {f"{name}.{i}.weight", f"{name}.{i}.bias"} <= set(tensors)
            )
            for name in ("layer", "stop")
        }
        names = {
            f"{name}.{i}.{kind}"
            for name, layers in networks.items()
            for i in range(len(layers))
            for kind in ("weight", "bias")
        }
        try:
            specification = header["specification"]
            provenance = header["provenance"]
            if set(tensors) != names or not isinstance(specification, dict):
                raise ConfigError("its tensors are not those of a policy network")
            if not isinstance(provenance, dict):
                raise ConfigError("its provenance is not a dictionary")
            controller = cls(
                networks["layer"],
                ControlSpec.from_dict(specification.get("control")),
                activation=specification.get("activation", ""),
                head=specification.get("head", ""),
                stop=networks["stop"],
                provenance=provenance,
            )
            # Files of the first days have no checksum of their own; the identity leaves the provenance out.
            whole = CHECKSUM not in header or header[CHECKSUM] == checksum(header, tensors)
        except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
            raise ControllerError(f"{path.name} is not a valid controller: {error}") from None
        if specification != controller._specification() or controller.identity != header.get("identity"):
            raise ControllerError(
                f"{path.name} is damaged: its weights do not match the checksum in its header; copy it again"
            )
        if not whole:
            raise ControllerError(f"{path.name} is damaged: its header does not match its checksum; copy it again")
        return controller

    def __eq__(self, other: object) -> bool:
        return self.identity == other.identity if isinstance(other, Controller) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.identity)

    def _specification(self) -> dict[str, Any]:
        specification = {
            "control": self.spec.to_dict(),
            "activation": self.activation,
            "head": self.head,
            "sizes": [list(weight.shape) for weight, _ in self.layers],
        }
        if self.stop:
            specification["stop"] = [list(weight.shape) for weight, _ in self.stop]
        return specification

    def __repr__(self) -> str:
        sizes = [self.layers[0][0].shape[1], *(weight.shape[0] for weight, _ in self.layers)]
        return f"Controller({'-'.join(map(str, sizes))}, {self.activation}, {self.head}, {self.identity[:12]})"


def _check(controller: Controller) -> None:
    """Refuses a network that does not fit its own specification."""
    if controller.activation not in _ACTIVATIONS:
        raise ConfigError(f"unknown activation {controller.activation!r}; known: tanh, relu")
    if controller.head not in ("clip", "tanh", "argmax"):
        raise ConfigError(f"unknown head {controller.head!r}; known: clip, tanh, argmax")
    if not controller.layers:
        raise ConfigError("a controller needs at least one layer")
    signals = controller.spec.signals
    width = len(signals)
    if controller.stop:
        if TELLS not in signals or controller.spec.action.patience is None:
            raise ConfigError(f"a controller that can advise to stop needs the signal {TELLS} and action.patience")
        _check_layers(controller.stop, width, 1)
        width = min(width, controller.layers[0][0].shape[-1])  # the policy need not see the last of them
    choices = controller.spec.action.choices
    if (controller.head == "argmax") != (choices is not None):
        raise ConfigError("the argmax head goes with discrete multipliers, and only with them")
    _check_layers(controller.layers, width, 1 if choices is None else len(choices))


def _check_layers(layers: Layers, width: int, outputs: int) -> None:
    for index, (weight, bias) in enumerate(layers):
        _check_layer(index, weight, bias, width, outputs if index == len(layers) - 1 else None)
        width = weight.shape[0]


def _check_layer(index: int, weight: Tensor, bias: Tensor, inputs: int, outputs: int | None) -> None:
    rows = weight.shape[0] if outputs is None and weight.ndim else outputs
    if weight.shape != (rows, inputs) or bias.shape != (rows,):
        raise ConfigError(
            f"layer {index} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}, "
            f"expected ({rows}, {inputs}) and ({rows},)"
        )
    for tensor in (weight, bias):
        if tensor.dtype != torch.float32:
            raise ConfigError(f"layer {index} is {tensor.dtype}, expected float32")
        if not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"layer {index} holds weights that are not finite")


def _resolve(source: str | os.PathLike[str]) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise ControllerError(f"a controller is a Controller, the path of a file or a name, got {source!r}")
    path = Path(source)
    if path.is_file():
        return path
    names = sorted(file.stem for file in _BUNDLED.glob("*.safetensors"))
    if isinstance(source, str) and source in names:
        return _BUNDLED / f"{source}.safetensors"
    if path.is_dir():
        raise ControllerError(f"{str(source)!r} is a folder; name the controller file in it")
    raise ControllerError(
        f"no controller {str(source)!r}: it is neither a file nor a bundled controller ({', '.join(names) or 'none'})"
    )


def _header(path: Path, header: object) -> dict[str, Any]:
    """The header of a controller file, once format, version and names of its entries are right."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ControllerError(
            f"{path.name} is a safetensors file but not a controller; `rlrate export` writes controllers"
        )
    version = header.get("version")
    if version not in (VERSION, PLAIN):
        newer = isinstance(version, int) and version > VERSION
        raise ControllerError(
            f"{path.name} has controller format version {version}, this rlrate reads versions up to {VERSION}; "
            + ("upgrade rlrate" if newer else "export it again with this version")
        )
    unknown = sorted(set(header) - _ENTRIES)
    if unknown:
        raise ControllerError(f"{path.name} is not a valid controller: unknown entries {unknown} in its header")
    return header


def linear_layers(pairs: Sequence[tuple[Tensor, Tensor]]) -> Layers:
    """Detached float32 copies of (weight, bias) pairs, as a :class:`Controller` holds them."""
    return tuple((w.detach().float().cpu().clone().contiguous(), b.detach().float().cpu().clone()) for w, b in pairs)
