"""What a controller answers to each signal, for controllers whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlrate import Controller
from rlrate.control import ControlSpec
from rlrate.experiments.responses import main, responses, save_responses, visited

SPEC = ControlSpec(signals=("progress", "loss_slow", "cuts"))


def linear(*weights: float) -> Controller:
    return Controller(((torch.tensor([weights]), torch.tensor([0.1])),), SPEC, provenance={"kind": "test"})


def test_a_linear_answer_is_found_signal_by_signal() -> None:
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1.0, 1.0, (20, 12, 3))
    found = responses(linear(0.2, -0.4, 0.0), observations)
    assert [response.signal for response in found] == ["loss_slow", "progress", "cuts"]
    means = observations.reshape(-1, 3).mean(axis=0)
    for response, weight, rest in zip(found, (-0.4, 0.2, 0.0), (0.2 * means[0], -0.4 * means[1], None), strict=True):
        slope = np.diff(response.mean) / np.diff(response.values)
        np.testing.assert_allclose(slope, weight, atol=1e-5)
        assert (response.low <= response.high).all()
        if rest is not None:
            np.testing.assert_allclose(response.mean, 0.1 + weight * response.values + rest, atol=1e-5)
    # two independent uniform numbers of [-1, 1] are 2/3 apart
    assert found[0].importance == pytest.approx(0.4 * 2 / 3, rel=0.2)
    assert found[2].importance == 0.0


def test_what_all_runs_share_at_a_decision_cannot_be_shuffled() -> None:
    observations = np.zeros((5, 4, 3))
    observations[:, :, 0] = np.linspace(0, 1, 5)[:, None]
    (first, *_) = [r for r in responses(linear(0.5, 0.0, 0.0), observations) if r.signal == "progress"]
    assert first.importance == 0.0
    assert first.mean[-1] - first.mean[0] == pytest.approx(0.5)


def test_signals_that_tell_when_to_stop_are_none_of_the_policys() -> None:
    default = Controller.load("default")
    assert default.spec.signals[-1] == "epochs_done"
    observations = np.random.default_rng(0).normal(size=(3, 4, len(default.spec.signals)))
    named = {response.signal for response in responses(default, observations)}
    assert named == {name for name in default.spec.signals if not name.startswith("epoch")}


def test_observations_are_those_of_the_runs() -> None:
    seen = visited(linear(0.0, 0.0, 0.0), draws=2, runs=2, steps=(60, 60))
    assert seen.shape[1:] == (4, 3)
    progress = seen[:, :, 0]
    assert (np.diff(progress, axis=0) > 0).all()
    assert (progress == progress[:, :1]).all()
    np.testing.assert_array_equal(seen, visited(linear(0.0, 0.0, 0.0), draws=2, runs=2, steps=(60, 60)))


def test_the_command_prints_all_signals_and_draws_the_same_picture_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = linear(0.2, -0.4, 0.0).save(tmp_path / "c.safetensors")
    main([str(path), "--out", str(tmp_path / "a" / "one.svg"), "--draws", "1"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in SPEC.signals)
    found = responses(linear(0.2, -0.4, 0.0), np.random.default_rng(0).normal(size=(3, 4, 3)))
    pictures = [save_responses(found, tmp_path / name, "t").read_bytes() for name in ("b.svg", "c.svg")]
    assert pictures[0] == pictures[1]
    assert (tmp_path / "a" / "one.svg").read_bytes().startswith(b"<?xml")
