"""Files in tests/golden, written by this version, go on working; those of a later one are named as such.

What is stored is read back bit for bit. What is computed from it may differ in the last digits from one processor to
another, where sums of floats are made in another order.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from rlrate import Controller, ControllerError, LearnedLR, SchedulerError
from rlrate.agents import Recipe, checkpoint, export, train
from rlrate.errors import ConfigError, ResultsError
from rlrate.experiments.store import load

import comparing
import golden

EXPECTED: dict[str, Any] = json.loads((golden.FOLDER / "expected.json").read_text("utf-8"))


def test_a_controller() -> None:
    found = Controller.load(golden.FOLDER / "controller.safetensors")
    assert found.identity == EXPECTED["identity"] and found == golden.controller()
    assert found.provenance == {"kind": "golden", "share": 0.1}
    actions = found.act(golden.observations(len(found.spec.signals)))
    np.testing.assert_allclose(actions, EXPECTED["actions"], rtol=0, atol=1e-6)


def test_a_controller_without_a_checksum(tmp_path: Path) -> None:
    """As the very first ones were."""
    data = (golden.FOLDER / "controller.safetensors").read_bytes()
    header = json.loads(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["rlrate"])
    del header["checksum"]
    good = golden.controller()
    tensors = {
        f"layer.{index}.{kind}": tensor
        for index, layer in enumerate(good.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    (tmp_path / "old").write_bytes(save(tensors, {"rlrate": json.dumps(header)}))
    assert Controller.load(tmp_path / "old") == good


def test_the_bundled_controllers() -> None:
    from rlrate import controller

    names = sorted(path.stem for path in (Path(controller.__file__).parent / "controllers").glob("*.safetensors"))
    assert "default" in names
    for name in names:
        assert np.isfinite(
            Controller.load(name).act(golden.observations(len(Controller.load(name).spec.signals)))
        ).all()


def test_a_checkpoint(tmp_path: Path) -> None:
    shutil.copytree(golden.FOLDER / "run", tmp_path / "run")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        assert Controller.load(export(tmp_path / "run")).identity == EXPECTED["trained"]
    # A finished training writes the controller again, from the checkpoint alone.
    assert Controller.load(train("demo", tmp_path / "run", resume=True)).identity == EXPECTED["trained"]
    record = json.loads((tmp_path / "run/config.json").read_text("utf-8"))
    assert Recipe.from_dict(record["recipe"]).name == "golden"


def test_a_checkpoint_without_a_checksum(tmp_path: Path) -> None:
    data = (golden.FOLDER / "run/checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(data.partition(b"\n")[2])
    assert checkpoint.read_checkpoint(tmp_path)["num_timesteps"] == 20


def test_the_state_of_a_run() -> None:
    run = golden.Run(Controller.load(golden.FOLDER / "controller.safetensors"))
    run.load(torch.load(golden.FOLDER / "scheduler.pt", weights_only=True), golden.CUT)
    np.testing.assert_allclose(run.train(golden.TOTAL - golden.CUT), EXPECTED["rates"], rtol=1e-6)


def test_results() -> None:
    rows = comparing.rows(golden.FOLDER / "results")
    assert golden.digest(rows) == EXPECTED["rows"]
    assert load(golden.FOLDER / "results").complete


def test_files_of_the_future(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlrate import controller

    monkeypatch.setattr(controller, "PLAIN", 3)
    golden.controller().save(tmp_path / "c")
    monkeypatch.setattr(checkpoint, "VERSION", 2)
    payload = (golden.FOLDER / "run/checkpoint.pt").read_bytes().partition(b"\n")[2]
    (tmp_path / "checkpoint.pt").write_bytes(checkpoint._sealed(payload))
    (tmp_path / "checkpoint.previous.pt").write_bytes((golden.FOLDER / "run/checkpoint.pt").read_bytes())
    monkeypatch.undo()
    with pytest.raises(ControllerError, match="format version 3, this rlrate reads versions up to 2; upgrade rlrate"):
        Controller.load(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"checkpoint.pt has checkpoint format version 2, this rlrate reads"):
        checkpoint.read_checkpoint(tmp_path)  # and does not go back to the one before
    shutil.copytree(golden.FOLDER / "results", tmp_path / "results")
    suite = tmp_path / "results/suite.json"
    suite.write_text(suite.read_text("utf-8").replace('"schema": 1', '"schema": 2'), "utf-8")
    with pytest.raises(ResultsError, match=r"suite.json is not of schema 1: it was written by another version"):
        load(tmp_path / "results")
    state = torch.load(golden.FOLDER / "scheduler.pt", weights_only=True)["scheduler"]
    run = golden.Run(golden.controller())
    assert isinstance(run.scheduler, LearnedLR)
    with pytest.raises(SchedulerError, match="not the state of a LearnedLR of this version"):
        run.scheduler.load_state_dict({**state, "version": state["version"] + 1})
