"""Workloads that users bring, and the registry."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rlrate.envs.workload import Workload, check_workload
from rlrate.envs.workloads import (
    make_workload,
    register_workload,
)
from rlrate.errors import WorkloadError

INPUTS, TARGETS = torch.randn(40, 5), torch.randint(3, (40,))


def linear() -> nn.Module:
    return nn.Linear(5, 3)


def own(**changes: Any) -> Workload:
    workload = Workload(
        name="own",
        family="user",
        make_model=linear,
        train=(INPUTS[:30], TARGETS[:30]),
        heldout=(INPUTS[30:], TARGETS[30:]),
        loss=F.cross_entropy,
        batch_size=8,
        accuracy=True,
    )
    return replace(workload, **changes)


def test_own_workload_by_value_and_by_function() -> None:
    workload = own()
    assert make_workload(workload, 0) is workload
    assert make_workload(lambda: workload, 0) is workload
    assert make_workload(lambda rng: own(batch_size=int(rng.integers(1, 9))), 0).name == "own"
    assert make_workload(own(batch_size=1000), 0).batch_size == 30


def test_check_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    check_workload(own())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name must be a non-empty string"),
        ({"train": [INPUTS, TARGETS]}, "train must be a pair of tensors"),
        ({"train": (INPUTS, TARGETS[:10])}, "first axes, the examples, must agree"),
        ({"train": (INPUTS[:0], TARGETS[:0])}, "train is empty"),
        ({"heldout": (INPUTS[:0], TARGETS[:0])}, "heldout is empty"),
        ({"train": (INPUTS.double(), TARGETS)}, "use float32"),
        ({"train": (INPUTS / 0, TARGETS)}, "NaN or infinite"),
        ({"heldout": (INPUTS[:, :4], TARGETS)}, "the same shape per example"),
        ({"batch_size": 0}, "batch_size is 0; give an integer from 1 to 30"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"make_model": nn.Linear(5, 3)}, r"make_model\(\) failed"),
        ({"make_model": lambda: 3}, "returned an object of type int; return a torch.nn.Module"),
        ({"make_model": nn.Identity}, "no parameter to train"),
        ({"make_model": lambda: nn.Linear(6, 3)}, r"fails on inputs of shape \(4, 5\)"),
        ({"make_model": lambda: nn.GRU(5, 3)}, "returned an object of type tuple; return one tensor"),
        ({"make_model": lambda: nn.Linear(5, 2)}, "needs logits of shape"),
        ({"loss": 3}, "loss must be callable"),
        ({"loss": F.mse_loss}, "the loss fails on output"),
        (
            {
                "make_model": lambda: nn.Linear(5, 1),
                "train": (INPUTS, INPUTS[:, 0]),
                "heldout": (INPUTS, INPUTS[:, 0]),
                "loss": F.mse_loss,
                "accuracy": False,
            },
            r"fails on output \(4, 1\) and target \(4,\)",
        ),
        ({"loss": lambda o, t: F.cross_entropy(o, t, reduction="none")}, "must be a scalar"),
        ({"loss": lambda o, t: o.sum() * math.nan}, "not finite"),
        ({"train": (INPUTS, INPUTS), "heldout": (INPUTS, INPUTS)}, "needs a vector of int64"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        make_workload(own(**changes), 0)


def test_from_dataset() -> None:
    dataset = torch.utils.data.TensorDataset(INPUTS.double(), TARGETS.int())
    workload = Workload.from_dataset("own", linear, dataset, dataset, F.cross_entropy, 500)
    assert workload.accuracy
    assert workload.batch_size == 40
    torch.testing.assert_close(workload.train, (INPUTS, TARGETS))
    pair = (INPUTS, INPUTS[:, :3])
    regression = Workload.from_dataset("own", linear, pair, pair, F.mse_loss, 8)
    assert not regression.accuracy


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "train_dataset is empty"),
        (iter([]), "give a dataset with a length"),
        ([(torch.zeros(5), 0), (torch.zeros(4), 0)], "all of one shape"),
        ([1, 2], "all of one shape"),
    ],
)
def test_from_dataset_names_what_is_wrong(source: Any, message: str) -> None:
    pair = (INPUTS, TARGETS)
    with pytest.raises(WorkloadError, match=message):
        Workload.from_dataset("own", linear, source, pair, F.cross_entropy, 8)
    with pytest.raises(WorkloadError, match="at least 1"):
        Workload.from_dataset("own", linear, pair, pair, F.cross_entropy, 0)


# The registry ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlp-clasification", "did you mean 'mlp-classification'"),
        ("zzz", "choose one of .*digits-mlp"),
        ("nowhere/file.py:make", "there is no file 'nowhere/file.py'"),
        ("nowhere/file.py", 'write the one .* after a colon, such as "nowhere/file.py:make"'),
        (3, "not by a int"),
        (lambda: 3, "returned an object of type int; return a rlrate.envs.Workload"),
        (lambda: 1 / 0, "could not be made: ZeroDivisionError"),
        (lambda a, b: None, "must take one argument.*a, b"),
    ],
)
def test_registry_errors(spec: Any, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        make_workload(spec, 0)


def test_registration() -> None:
    with pytest.raises(WorkloadError, match="exists already"):
        register_workload("cnn", lambda _: own(), description="again")
    with pytest.raises(WorkloadError, match="cannot be called"):
        register_workload("a.py:b", lambda _: own(), description="a path")
    with pytest.raises(WorkloadError, match='give "family" or "fixed"'):
        register_workload("odd", lambda _: own(), description="odd", kind="odd")  # type: ignore[call-overload]


def test_a_workload_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("SIZE = 5\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\nfrom beside import SIZE\nfrom rlrate.envs import Workload\n"
        "def make(rng):\n"
        "    x = torch.ones(9, SIZE)\n"
        "    return Workload.from_dataset('mine', lambda: torch.nn.Linear(SIZE, 1), (x, x[:, :1]),"
        " (x, x[:, :1]), torch.nn.functional.mse_loss, int(rng.integers(1, 9)))\n"
        "NUMBER = 3\n"
    )
    path = list(sys.path)
    assert make_workload(f"{file}:make", 0).name == "mine"
    assert sys.path == path
    with pytest.raises(WorkloadError, match="has no function 'mak'; it defines make"):
        make_workload(f"{file}:mak", 0)
    with pytest.raises(WorkloadError, match="is not a function"):
        make_workload(f"{file}:NUMBER", 0)
    file = tmp_path / "broken.py"
    file.write_text("1 / 0\n")
    with pytest.raises(WorkloadError, match="failed: ZeroDivisionError"):
        make_workload(f"{file}:make", 0)
