"""Files built to do harm: refused, with nothing executed and no memory spent."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from rlrate import Controller, ControllerError, LearnedLR
from rlrate.agents import Recipe, export
from rlrate.agents.checkpoint import read_checkpoint
from rlrate.agents.recipe import digest_of
from rlrate.agents.unpickling import load_zip
from rlrate.control import SIGNALS
from rlrate.errors import ConfigError

Make = Callable[..., Controller]
SIZE = len(SIGNALS)


class Bomb:
    """Leaves a canary behind when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


def raw(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[int], begin: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}


def torch_file(what: object, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(what, buffer, **settings)
    return buffer.getvalue()


def archive(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, content)
    return buffer.getvalue()


def sb3(canary: Path) -> bytes:
    payload = base64.b64encode(pickle.dumps(Bomb(canary))).decode()
    data = json.dumps({"policy_class": {":type:": "<class 'abc.ABCMeta'>", ":serialized:": payload}})
    return archive({"data": data.encode(), "policy.pth": torch_file({}), "_stable_baselines3_version": b"2.7.0"})


def parts(controller: Controller) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and header of a good file."""
    tensors = {
        f"layer.{index}.{kind}": tensor
        for index, layer in enumerate(controller.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    return tensors, {
        "format": "rlrate.controller",
        "version": 1,
        "specification": controller._specification(),
        "provenance": {},
        "identity": controller.identity,
    }


def edited(controller: Controller, **changes: Any) -> bytes:
    """A good file with entries of its header, or (with underscores) inside its specification, replaced."""
    tensors, header = parts(controller)
    for path, value in changes.items():
        *way, last = path.split("__")
        target = header
        for name in way:
            target = target[name]
        target[last] = value
    return save(tensors, {"rlrate": json.dumps(header)})


def poisoned(controller: Controller, value: float) -> bytes:
    tensors, header = parts(controller)
    tensors["layer.0.weight"] = torch.full_like(tensors["layer.0.weight"], value)
    return save(tensors, {"rlrate": json.dumps(header)})


TOUCH = "__import__('pathlib').Path({!r}).touch()"
ONE = {"layer.0.weight": entry([1, SIZE], 0, 4 * SIZE), "layer.0.bias": entry([1], 4 * SIZE, 4 * SIZE + 4)}
CONTROLLERS: dict[str, Callable[[Path, Controller], bytes]] = {
    **{f"pickle-{p}": lambda canary, _, p=p: pickle.dumps(Bomb(canary), p) for p in range(6)},  # type: ignore[misc]
    "torch-zip": lambda canary, _: torch_file({"a": Bomb(canary)}),
    "torch-legacy": lambda canary, _: torch_file({"a": Bomb(canary)}, _use_new_zipfile_serialization=False),
    "sb3-zip": lambda canary, _: sb3(canary),
    "zip-bomb": lambda *_: archive({"data": bytes(2**26)}),
    "header-overflow": lambda *_: raw(b"{}", length=2**64 - 1),
    "header-of-an-exabyte": lambda *_: raw(b"{}", length=2**60),
    "header-longer-than-the-file": lambda *_: raw(ONE, bytes(4 * SIZE + 4), length=4096),
    "overlapping-tensors": lambda *_: raw({"a": entry([22], 0, 88), "b": entry([22], 44, 132)}, bytes(132)),
    "hole": lambda *_: raw({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "shape-overflow": lambda *_: raw({"a": entry([2**62, 16], 0, 4)}, bytes(4)),
    "shape-of-an-exabyte": lambda *_: raw({"a": entry([2**58], 0, 2**60)}, bytes(4)),
    "negative-shape": lambda *_: raw({"a": entry([-1], 0, 4)}, bytes(4)),
    "offsets-backwards": lambda *_: raw({"a": entry([1], 4, 0)}, bytes(4)),
    "trailing-zip": lambda canary, good: edited(good) + sb3(canary),
    "deep-json": lambda *_: raw(b"[" * 200_000),
    "deep-header": lambda *_: save({"a": torch.zeros(1)}, {"rlrate": "[" * 200_000}),
    "deep-provenance": lambda _, good: save(
        parts(good)[0],
        {"rlrate": json.dumps(parts(good)[1]).replace('"provenance": {}', '"provenance": ' + "[" * 900 + "]" * 900)},
    ),
    "nan-weights": lambda _, good: poisoned(good, float("nan")),
    "infinite-weights": lambda _, good: poisoned(good, float("inf")),
    "too-few-signals": lambda _, good: edited(good, specification__control__signals=["progress"]),
    "doubled-signals": lambda _, good: edited(good, specification__control__signals=["progress"] * SIZE),
    "unknown-signals": lambda _, good: edited(good, specification__control__signals=["__class__"] * SIZE),
    "wrong-sizes": lambda _, good: edited(good, specification__sizes=[[1, 1]]),
    "future-version": lambda _, good: edited(good, version=3),
    "unknown-entry": lambda _, good: edited(good, hook="os.system"),
    "eval-activation": lambda canary, good: edited(good, specification__activation=TOUCH.format(str(canary))),
    "eval-head": lambda canary, good: edited(good, specification__head=TOUCH.format(str(canary))),
    "eval-number": lambda canary, good: edited(good, specification__control__action__factor=TOUCH.format(str(canary))),
    "huge-number": lambda _, good: edited(good, specification__control__cadence__decisions=10**400),
    "infinite-number": lambda _, good: edited(good, specification__control__action__cap=float("inf")),
    "wrong-checksum": lambda _, good: edited(good, checksum="0" * 64),
    "a-terabyte": lambda *_: b"",  # made in the test, without its bytes
}


def test_controllers(
    tmp_path: Path, canary: Path, make_controller: Make, record_property: Callable[[str, object], None]
) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    good = make_controller()
    (tmp_path / "good").write_bytes(edited(good))
    assert Controller.load(tmp_path / "good") == good, "the corpus is bad for one reason each"
    for name, make in CONTROLLERS.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(make(canary, good))
        if name == "a-terabyte":
            with path.open("wb") as file:
                file.truncate(2**40)
        with pytest.raises(ControllerError) as caught:
            Controller.load(path)
        assert name in str(caught.value) and "\n" not in str(caught.value), name
        with pytest.raises(ControllerError):
            LearnedLR(optimizer, 10, path)
        assert not canary.exists(), name
    record_property("cases", len(CONTROLLERS))


ZIPS: dict[str, Callable[[Path], bytes]] = {
    "no-zip": lambda canary: pickle.dumps(Bomb(canary)),
    "traversal": lambda _: archive({"data": b"{}", "../canary.pth": b"x"}),
    "absolute": lambda canary: archive({"data": b"{}", f"{canary}.pth": b"x"}),
    "link": lambda canary: archive({"data": b"{}", "policy.pth": str(canary).encode()}, link="policy.pth"),
    "bomb": lambda _: archive({"data": b"{}", "policy.pth": bytes(300 * 2**20)}),
    "foreign": lambda _: archive({"data": b"{}", "setup.py": b"x"}),
    "without-data": lambda _: archive({"policy.pth": b"x"}),
}


def test_zip_files(tmp_path: Path, canary: Path, record_property: Callable[[str, object], None]) -> None:
    """Refused without being opened unless they are trusted; and what no SB3 has written, even then."""
    for name, make in {**ZIPS, "sb3": sb3}.items():
        path = tmp_path / f"{name}.zip"
        path.write_bytes(make(canary))
        with pytest.raises(ConfigError, match="runs code when it is opened"):
            export(path)
        if name != "sb3":  # which does what its author wants once it is trusted
            with pytest.raises(ConfigError, match=name):
                load_zip(path, trust=True)
        assert not canary.exists(), name
        assert not (tmp_path / "controller.safetensors").exists()
    record_property("cases", 2 * len(ZIPS) + 1)


def test_an_own_zip_file_passes_the_door(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export the folder of your training instead .*\(--trust\)"):
        export(trained / "ppo.zip", tmp_path / "c")
    assert Controller.load(export(trained / "ppo.zip", tmp_path / "c", trust=True)) == Controller.load(
        trained / "controller.safetensors"
    )


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt"])
@pytest.mark.parametrize("sealed", [False, True])
def test_checkpoints(name: str, sealed: bool, tmp_path: Path, canary: Path) -> None:
    from rlrate.agents.checkpoint import _sealed

    content = torch_file({"policy": {}, "bomb": Bomb(canary)})
    (tmp_path / name).write_bytes(_sealed(content) if sealed else content)
    with pytest.raises(ConfigError, match=f"{name} is damaged .UnpicklingError"):
        read_checkpoint(tmp_path)
    assert not canary.exists()


def test_the_recipe_of_a_folder_is_not_run_by_an_export(tiny: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    canary, evil = tmp_path / "canary", tmp_path / "evil.py"
    evil.write_text(f"open({str(canary)!r}, 'w').close()\ndef make(): pass\n")
    recipe = Recipe.from_dict({**tiny, "environment": {**tiny["environment"], "workload": f"{evil}:make"}}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"recipe": recipe, "digest": digest_of(recipe)}))
    (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    export(tmp_path)
    assert not canary.exists()


def test_links_and_devices(tmp_path: Path, canary: Path, make_controller: Make) -> None:
    """A link is replaced and not written through; what is no file is not read."""
    canary.write_bytes(b"mine")
    link = tmp_path / "link.safetensors"
    link.symlink_to(canary)
    make_controller().save(link)
    assert canary.read_bytes() == b"mine" and not link.is_symlink()
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name in ("pipe.safetensors", "zero.safetensors"):
        with pytest.raises(ControllerError, match="neither a file"):
            Controller.load(tmp_path / name)
