"""The controller file: the same everywhere, and safe to load whatever it holds."""

from __future__ import annotations

import copy
import io
import json
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rlrate import ConfigError, Controller, ControllerError
from rlrate.control import USUAL, Action, ControlSpec
from rlrate.controller import MAX_BYTES, linear_layers

Make = Callable[..., Controller]
SIZE = len(USUAL)
DISCRETE = ControlSpec(action=Action(multipliers=(0.5, 0.7, 1.0, 1.5, 2.0)))


def numpy_forward(controller: Controller, observations: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    x = observations.astype(np.float64)
    for index, (weight, bias) in enumerate(controller.layers):
        x = x @ weight.double().numpy().T + bias.double().numpy()
        if index < len(controller.layers) - 1:
            x = np.tanh(x) if controller.activation == "tanh" else np.maximum(x, 0.0)
    if controller.head == "argmax":
        multipliers = np.array(controller.spec.action.multipliers)
        return np.asarray(np.log(multipliers)[x.argmax(1)] / np.log(controller.spec.action.factor))
    return np.asarray(np.tanh(x[:, 0]) if controller.head == "tanh" else np.clip(x[:, 0], -1, 1))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("head", ["clip", "tanh", "argmax"])
def test_act_is_the_network_written_out(make_controller: Make, head: str, activation: str) -> None:
    spec = DISCRETE if head == "argmax" else ControlSpec()
    controller = make_controller(spec, head=head, activation=activation)
    observations = np.random.default_rng(0).uniform(-4, 4, (64, len(spec.signals))).astype(np.float32)
    actions = controller.act(observations)
    assert actions.shape == (64,) and actions.dtype == np.float64
    assert (np.abs(actions) <= 1).all()
    np.testing.assert_allclose(actions, numpy_forward(controller, observations), atol=1e-5)


def test_a_batch_is_as_good_as_one_by_one(make_controller: Make) -> None:
    controller = make_controller()
    observations = np.random.default_rng(0).normal(size=(5, SIZE)).astype(np.float32)
    single = [controller.act(row[None])[0] for row in observations]
    np.testing.assert_allclose(controller.act(observations), single, atol=1e-6)


def test_constant_answers_always_the_same() -> None:
    observations = np.random.default_rng(0).normal(size=(3, SIZE)).astype(np.float32)
    np.testing.assert_array_equal(Controller.constant(0.25).act(observations), [0.25] * 3)
    np.testing.assert_array_equal(Controller.constant().act(observations), [0.0] * 3)


@pytest.mark.parametrize("spec", [ControlSpec(), DISCRETE])
def test_a_file_round_trip_changes_nothing(make_controller: Make, tmp_path: Path, spec: ControlSpec) -> None:
    controller = make_controller(spec, head="argmax" if spec is DISCRETE else "clip")
    first = controller.save(tmp_path / "new" / "a.safetensors")
    loaded = Controller.load(first)
    assert loaded == controller and hash(loaded) == hash(controller)
    assert (loaded.spec, loaded.head, loaded.activation) == (controller.spec, controller.head, controller.activation)
    assert loaded.provenance == controller.provenance
    observations = np.random.default_rng(0).normal(size=(9, len(spec.signals))).astype(np.float32)
    np.testing.assert_array_equal(loaded.act(observations), controller.act(observations))
    assert loaded.save(tmp_path / "b.safetensors").read_bytes() == first.read_bytes()
    assert Controller.load(str(first)) == controller


def test_identity_and_bytes_are_the_same_in_another_process(make_controller: Make, tmp_path: Path) -> None:
    """Which has another random seed of hashes."""
    path = make_controller().save(tmp_path / "a.safetensors")
    code = (
        "import sys, rlrate; c = rlrate.Controller.load(sys.argv[1]); c.save(sys.argv[1] + '.again'); "
        "print(c.identity, end='')"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True, text=True).stdout
    assert out == make_controller().identity
    assert Path(f"{path}.again").read_bytes() == path.read_bytes()


def test_identity_is_that_of_weights_and_specification_only(make_controller: Make) -> None:
    controller = make_controller()
    other_notes = Controller(controller.layers, controller.spec, provenance={"note": "renamed"})
    assert other_notes == controller
    assert make_controller(seed=1) != controller
    assert make_controller(activation="relu") != controller
    assert Controller(controller.layers, ControlSpec(action=Action(cap=0.01))) != controller
    assert controller != "controller"
    assert pickle.loads(pickle.dumps(controller)) == controller == copy.deepcopy(controller)
    assert repr(controller).startswith(f"Controller({SIZE}-16-1, tanh, clip, ")


def test_saving_replaces_and_leaves_nothing_beside(make_controller: Make, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    make_controller().save(path)
    assert Controller.load(path) == make_controller()
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_what_cannot_be_written_is_a_controller_error(make_controller: Make, tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match=r"cannot write .*choose a file"):
        make_controller().save(tmp_path)  # a folder
    assert list(tmp_path.iterdir()) == []
    notes = Controller(make_controller().layers, make_controller().spec, provenance={"when": object()})
    with pytest.raises(ControllerError, match=r"provenance .* JSON"):
        notes.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


# Files that are not good ----------------------------------------------------------------------------------


@pytest.fixture
def good(make_controller: Make, tmp_path: Path) -> Path:
    return make_controller().save(tmp_path / "good.safetensors")


def refused(path: Path, match: str) -> None:
    with pytest.raises(ControllerError, match=match) as caught:
        Controller.load(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return dict(json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["rlrate"]))


def write(path: Path, tensors: dict[str, torch.Tensor], entries: dict[str, Any] | str) -> Path:
    path.write_bytes(save(tensors, {"rlrate": entries if isinstance(entries, str) else json.dumps(entries)}))
    return path


def parts(controller: Controller) -> dict[str, torch.Tensor]:
    return {
        f"layer.{i}.{kind}": tensor
        for i, layer in enumerate(controller.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated(good: Path, share: float) -> None:
    data = good.read_bytes()
    good.write_bytes(data[: int(len(data) * share)])
    refused(good, "truncated, damaged or not a safetensors file .* copy it again")


def test_longer_than_it_says(good: Path) -> None:
    good.write_bytes(good.read_bytes() + b"more")
    refused(good, "truncated, damaged")


@pytest.fixture(scope="module")
def intact(make_controller: Make, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_controller().save(tmp_path_factory.mktemp("intact") / "c.safetensors").read_bytes()


@settings(max_examples=300)
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_harmless(intact: bytes, make_controller: Make, data: st.DataObject) -> None:
    """Harmless: in the notes on provenance, or another spelling of the same number."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped.safetensors"
        content = bytearray(intact)
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            loaded = Controller.load(path)
        except ControllerError:
            return
        assert loaded == make_controller()


@settings(max_examples=100)
@given(st.binary(max_size=400))
def test_any_bytes_are_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "any.safetensors"
        path.write_bytes(content)
        with pytest.raises(ControllerError):
            Controller.load(path)


@pytest.mark.parametrize(("version", "mend"), [(3, "upgrade rlrate"), (0, "export it again"), ("1", "export it again")])
def test_of_another_version(good: Path, make_controller: Make, version: object, mend: str) -> None:
    write(good, parts(make_controller()), {**header(good), "version": version})
    refused(good, f"format version {version}, this rlrate reads versions up to 2; {mend}")


def test_a_safetensors_file_of_somebody_else(good: Path) -> None:
    for content in (save({"w": torch.zeros(3)}), save({"w": torch.zeros(3)}, {"format": "pt"}), save({})):
        good.write_bytes(content)
        refused(good, "safetensors file but not a controller; `rlrate export`")


@pytest.mark.parametrize("entries", ["{", "[1]", "null", '"text"', "[" * 100_000])
def test_a_header_that_is_no_header(good: Path, entries: str) -> None:
    write(good, {"layer.0.weight": torch.zeros(1, SIZE)}, entries)
    refused(good, "not JSON|not a controller")


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_is_not_executed(tmp_path: Path, protocol: int) -> None:
    path, trace = tmp_path / "bomb.safetensors", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Bomb(trace), protocol))
    refused(path, "pickle or zip archive .* could run code when loaded; export it")
    assert not trace.exists()


def test_neither_is_an_old_pickle(tmp_path: Path) -> None:
    path, trace = tmp_path / "bomb.safetensors", tmp_path / "trace"
    path.write_bytes(pickle.dumps(Bomb(trace), 0))
    refused(path, "not a safetensors file")
    assert not trace.exists()


def test_a_checkpoint_of_torch(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"bomb": Bomb(trace)}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "pickle or zip archive")
    torch.save({"bomb": Bomb(trace)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", "pickle or zip archive")
    assert not trace.exists()


def test_a_model_of_stable_baselines(tmp_path: Path) -> None:
    path, buffer = tmp_path / "ppo.zip", io.BytesIO()
    torch.save({"mlp_extractor.policy_net.0.weight": torch.zeros(2, 2)}, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", json.dumps({"policy_class": {":serialized:": "gASV"}}))
        archive.writestr("policy.pth", buffer.getvalue())
        archive.writestr("_stable_baselines3_version", "2.7.0")
    refused(path, r"\(a Stable-Baselines3 or torch.save file\?\).*`rlrate export`")


def test_any_length_of_header_is_no_pickle(make_controller: Make, tmp_path: Path) -> None:
    """A safetensors file begins with the length of its header, which may look like the start of a pickle or a zip."""
    base, starts = make_controller(), set()
    for length in range(0, 320, 8):
        notes = Controller(base.layers, base.spec, provenance={"note": "x" * length})
        path = notes.save(tmp_path / "a.safetensors")
        assert Controller.load(path) == base
        starts.add(path.read_bytes()[:1])
    assert b"\x80" in starts and b"P" in starts


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    refused(tmp_path, "is a folder; name the controller file in it")
    refused(tmp_path / "missing.safetensors", "neither a file nor a bundled controller")
    with pytest.raises(ControllerError, match="no controller 'defualt'"):
        Controller.load("defualt")


def test_a_file_that_is_far_too_large(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    refused(path, "at most 16,777,216")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite(good: Path, make_controller: Make, bad: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in parts(make_controller()).items()}
    tensors["layer.1.weight"][0, 3] = bad
    write(good, tensors, header(good))
    refused(good, "layer 1 holds weights that are not finite")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layer.0.weight", torch.zeros(16, 21), "layer 0 has weight"),
        ("layer.0.bias", torch.zeros(17), "layer 0 has weight"),
        ("layer.1.weight", torch.zeros(2, 16), "layer 1 has weight"),
        ("layer.1.weight", torch.zeros(16), "layer 1 has weight"),
        ("layer.0.weight", torch.zeros(()), "layer 0 has weight"),
        ("layer.0.weight", torch.zeros(16, SIZE, dtype=torch.float64), "torch.float64, expected torch.float32|float32"),
        ("layer.0.weight", torch.zeros(16, SIZE, dtype=torch.int64), "float32"),
        ("layer.2.weight", torch.zeros(1, 1), "not those of a policy network"),
        ("surprise", torch.zeros(1), "not those of a policy network"),
        ("layer.0.weight", torch.ones(16, SIZE), "do not match the checksum"),
    ],
)
def test_tensors_that_do_not_fit(
    good: Path, make_controller: Make, name: str, tensor: torch.Tensor, message: str
) -> None:
    write(good, {**parts(make_controller()), name: tensor}, header(good))
    refused(good, message)


def test_no_tensors_at_all(good: Path) -> None:
    write(good, {}, header(good))
    refused(good, "at least one layer")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("identity",), "0" * 64, "checksum"),
        (("identity",), None, "checksum"),
        (("specification",), None, "not those of a policy network"),
        (("specification", "activation"), "gelu", "unknown activation 'gelu'"),
        (("specification", "activation"), ["tanh"], "not a valid controller"),
        (("specification", "head"), "softmax", "unknown head 'softmax'"),
        (("specification", "head"), "argmax", "discrete"),
        (("specification", "control"), None, "has signals, cadence and action"),
        (("specification", "control", "limits"), {"mood": [0, 1]}, "unknown signal of limits 'mood'"),
        (("specification", "control", "limits"), {"loss_slope": [1, 0]}, "lowest and highest value"),
        (("specification", "control", "signals"), ["progress"] * 21 + ["mood"], r"unknown signals \['mood'\]"),
        (("specification", "control", "action", "factor"), "2", "not a valid controller"),
        (("specification", "control", "action", "factor"), float("nan"), "factor > 1"),
        (("specification", "control", "cadence", "decisions"), 1.5, "positive integer"),
        (("specification", "control", "cadence", "often"), 1, "exactly the entries"),
    ],
)
def test_entries_that_do_not_fit(
    good: Path, make_controller: Make, path: tuple[str, ...], value: object, message: str
) -> None:
    entries = header(good)
    target = entries
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    write(good, parts(make_controller()), entries)
    refused(good, message)


@pytest.mark.parametrize("key", ["specification", "provenance", "identity"])
def test_entries_that_are_missing(good: Path, make_controller: Make, key: str) -> None:
    entries = header(good)
    del entries[key]
    write(good, parts(make_controller()), entries)
    refused(good, key if key != "identity" else "checksum")


def test_a_network_that_does_not_fit_its_specification_is_refused_at_once() -> None:
    layer = (torch.zeros(1, SIZE), torch.zeros(1))
    with pytest.raises(ConfigError, match="at least one layer"):
        Controller(())
    with pytest.raises(ConfigError, match="discrete multipliers"):
        Controller((layer,), DISCRETE)
    with pytest.raises(ConfigError, match=rf"expected \(1, {SIZE}\)"):
        Controller(((torch.zeros(1, 3), torch.zeros(1)),))


def test_layers_are_copied_from_a_policy() -> None:
    linear = torch.nn.Linear(SIZE, 1).double()
    (weight, bias), *_ = linear_layers([(linear.weight, linear.bias)])
    controller = Controller(((weight, bias),))
    before = controller.identity
    with torch.no_grad():
        linear.weight.zero_()
    assert controller.identity == before
    assert not weight.requires_grad and weight.dtype == torch.float32
