"""What is trained: a network, its data and its loss, in one value.

A `Workload` is a concrete training problem. A *factory*, ``make(rng) -> Workload``, samples one
from a seed; the registry of factories is `rlrate.envs.workloads`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sized
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from rlrate.errors import WorkloadError

__all__ = ["Loss", "Split", "Workload", "check_workload", "gather_examples"]

Split: TypeAlias = tuple[Tensor, Tensor]
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Workload:
    """A network, its data and its loss.

    Attributes:
        name: What a report calls it, such as ``"mlp-classification/digits"``.
        family: The kind of workload it belongs to, such as ``"mlp-classification"``.
        make_model: Returns a fresh module, initialised from torch's global random generator (the
            caller seeds it).
        train: Inputs and targets, the first axis counting examples. Floating point data are
            float32, class targets int64.
        heldout: Like ``train``, from examples that are not in it.
        loss: ``loss(output, target)``, the mean over the batch as a scalar. It must work under
            ``torch.vmap``: plain ``torch.nn.functional``, no control flow that reads the data.
        batch_size: Examples per training step, at most the number of training examples.
        accuracy: True when targets are classes and the module's output is (batch, classes) logits.
        signed: True when the held-out loss may be negative, such as a negative log-likelihood: its
            improvement is then a difference, not a ratio.
        validation: Like ``heldout``, from examples that are in neither: what a controller may be shown as training goes
            on, so that ``heldout`` can judge. None where there is no such part.
    """

    name: str
    family: str
    make_model: Callable[[], nn.Module]
    train: Split
    heldout: Split
    loss: Loss
    batch_size: int
    accuracy: bool = False
    signed: bool = False
    validation: Split | None = None

    @property
    def epoch(self) -> int:
        """Updates in which all training examples are gone through once."""
        return -(-len(self.train[0]) // self.batch_size)

    def with_validation(self, examples: int) -> Workload:
        """The same with the first ``examples`` held-out examples, at most half of them, as validation part.

        A workload that has one, or but one held-out example, stays as it is.
        """
        count = min(examples, len(self.heldout[0]) // 2)
        if self.validation is not None or count == 0:
            return self
        first, rest = (
            (self.heldout[0][part], self.heldout[1][part]) for part in (slice(None, count), slice(count, None))
        )
        return replace(self, validation=first, heldout=rest)

    @classmethod
    def from_dataset(
        cls,
        name: str,
        make_model: Callable[[], nn.Module],
        train_dataset: Any,
        heldout_dataset: Any,
        loss: Loss,
        batch_size: int,
        *,
        family: str = "user",
        accuracy: bool | None = None,
        signed: bool = False,
    ) -> Workload:
        """Make a workload from torch datasets or from pairs of tensors, and check it.

        Args:
            name: What a report calls it.
            make_model: Returns a fresh module; the module's class will do.
            train_dataset: A map-style dataset whose items are (input, target), or a pair of
                tensors (inputs, targets). It is read into memory once. Floating point data become
                float32, integer targets int64.
            heldout_dataset: The same for examples that training does not see.
            loss: ``loss(output, target)``, a scalar: the mean over the batch.
            batch_size: Examples per training step; clipped to the number of training examples.
            family: The kind of workload, for reports.
            accuracy: Whether to report accuracy. By default, if the targets are a vector of
                integers and the module gives (batch, classes).
            signed: Whether the held-out loss may be negative.

        Raises:
            WorkloadError: Data, module or loss do not fit together; the message says how.
        """
        train = gather_examples(train_dataset, f"{name}: train_dataset")
        heldout = gather_examples(heldout_dataset, f"{name}: heldout_dataset")
        if accuracy is None:
            accuracy = _is_classification(name, make_model, train)
        workload = cls(
            name=name,
            family=family,
            make_model=make_model,
            train=train,
            heldout=heldout,
            loss=loss,
            batch_size=_clip_batch_size(name, batch_size, len(train[0])),
            accuracy=accuracy,
            signed=signed,
        )
        check_workload(workload)
        return workload


def check_workload(workload: Workload) -> None:
    """Raise a `WorkloadError` that names the first thing wrong with a workload.

    Runs the module once on a few held-out examples; torch's global random state is left as it was.
    """
    name = workload.name
    if not isinstance(name, str) or not name:
        raise WorkloadError(f"a workload's name must be a non-empty string, not {name!r}.")
    others = ("heldout",) if workload.validation is None else ("heldout", "validation")
    for part in ("train", *others):
        _check_split(getattr(workload, part), f"{name}: {part}")
    for index, what in enumerate(("inputs", "targets")):
        for part in others:
            train, other = workload.train[index], getattr(workload, part)[index]
            if train.shape[1:] != other.shape[1:] or train.dtype != other.dtype:
                raise WorkloadError(
                    f"{name}: train {what} are {_kind(train)} but {part} {what} are {_kind(other)}; "
                    "give both the same shape per example and the same dtype."
                )
    size, examples = workload.batch_size, len(workload.train[0])
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= examples:
        raise WorkloadError(
            f"{name}: batch_size is {size!r}; give an integer from 1 to {examples}, the number of training examples."
        )
    for attribute in ("make_model", "loss"):
        if not callable(getattr(workload, attribute)):
            raise WorkloadError(f"{name}: {attribute} must be callable.")
    _check_forward(workload)


def gather_examples(source: Any, where: str) -> Split:
    """Read a dataset, or a pair of tensors, into (inputs, targets) of the dtypes workloads use.

    Args:
        source: A map-style dataset of (input, target) items or a pair (inputs, targets).
        where: What an error message calls the source.

    Raises:
        WorkloadError: Empty, without a length, or items that are not alike.
    """
    if isinstance(source, (tuple, list)) and len(source) == 2 and torch.is_tensor(source[0]):
        inputs, targets = source
        return _standard_dtype(torch.as_tensor(inputs)), _standard_dtype(torch.as_tensor(targets))
    if not isinstance(source, Sized) or not hasattr(source, "__getitem__"):
        raise WorkloadError(
            f"{where} is a {type(source).__name__}; give a dataset with a length and (input, "
            "target) items, or a pair of tensors."
        )
    if len(source) == 0:
        raise WorkloadError(f"{where} is empty; give at least one example.")
    try:
        items = [source[index] for index in range(len(source))]
        inputs = torch.stack([torch.as_tensor(item[0]) for item in items])
        targets = torch.stack([torch.as_tensor(item[1]) for item in items])
    except (TypeError, IndexError, ValueError, RuntimeError) as error:
        raise WorkloadError(f"{where} must give (input, target) items that are all of one shape: {error}") from error
    return _standard_dtype(inputs), _standard_dtype(targets)


def _standard_dtype(values: Tensor) -> Tensor:
    values = values.detach().cpu()
    return values.float() if values.is_floating_point() else values.long()


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape[1:])}"


def _clip_batch_size(name: str, batch_size: int, examples: int) -> int:
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise WorkloadError(f"{name}: batch_size is {batch_size!r}; give an integer of at least 1.")
    return min(batch_size, max(examples, 1))


def _check_split(split: Any, where: str) -> None:
    if not isinstance(split, tuple) or len(split) != 2 or not all(torch.is_tensor(values) for values in split):
        raise WorkloadError(f"{where} must be a pair of tensors (inputs, targets).")
    inputs, targets = split
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise WorkloadError(
            f"{where} has inputs of shape {tuple(inputs.shape)} and targets of shape "
            f"{tuple(targets.shape)}; their first axes, the examples, must agree."
        )
    if len(inputs) == 0:
        raise WorkloadError(f"{where} is empty; give at least one example.")
    for values, what in ((inputs, "inputs"), (targets, "targets")):
        if values.dtype not in (torch.float32, torch.int64):
            raise WorkloadError(
                f"{where} {what} are {_kind(values)}; use float32 for numbers and int64 for "
                "classes (Workload.from_dataset converts)."
            )
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise WorkloadError(f"{where} {what} hold NaN or infinite values; remove them.")


def _first_batch(workload_name: str, make_model: Any, inputs: Tensor) -> Tensor:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            model = make_model()
        except Exception as error:
            raise WorkloadError(f"{workload_name}: make_model() failed: {error}") from error
        if not isinstance(model, nn.Module):
            raise WorkloadError(
                f"{workload_name}: make_model() returned an object of type {type(model).__name__}; "
                "return a torch.nn.Module."
            )
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise WorkloadError(f"{workload_name}: the module has no parameter to train.")
        try:
            output = model.eval()(inputs)
        except Exception as error:
            raise WorkloadError(
                f"{workload_name}: the module fails on inputs of shape {tuple(inputs.shape)}: {error}"
            ) from error
    if not torch.is_tensor(output):
        raise WorkloadError(
            f"{workload_name}: the module returned an object of type {type(output).__name__}; return one tensor."
        )
    return output


def _is_classification(name: str, make_model: Any, train: Split) -> bool:
    inputs, targets = train
    if targets.ndim != 1 or targets.is_floating_point() or len(inputs) == 0:
        return False
    output = _first_batch(name, make_model, inputs[:2])
    return output.ndim == 2 and output.shape[1] > int(targets.max())


def _check_forward(workload: Workload) -> None:
    name = workload.name
    inputs, targets = (values[:4] for values in workload.heldout)
    output = _first_batch(name, workload.make_model, inputs)
    if workload.accuracy:
        if targets.ndim != 1 or targets.is_floating_point():
            raise WorkloadError(
                f"{name}: accuracy=True needs a vector of int64 classes as targets, not {_kind(targets)} per example."
            )
        highest = max(int(split[1].max()) for split in (workload.train, workload.heldout))
        if output.ndim != 2 or output.shape[1] <= highest:
            raise WorkloadError(
                f"{name}: accuracy=True needs logits of shape (batch, classes) for classes up to "
                f"{highest}, but the module gives {tuple(output.shape)}."
            )
    try:
        with warnings.catch_warnings():
            # (batch, 1) against (batch,) would train on every pairing of the two.
            warnings.filterwarnings("error", message="Using a target size")
            loss = workload.loss(output, targets)
    except Exception as error:
        raise WorkloadError(
            f"{name}: the loss fails on output {tuple(output.shape)} and target {tuple(targets.shape)}: {error}"
        ) from error
    if not torch.is_tensor(loss) or loss.ndim != 0:
        shape = tuple(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
        raise WorkloadError(f"{name}: the loss must be a scalar tensor, not {shape}.")
    if not math.isfinite(float(loss)):
        raise WorkloadError(f"{name}: the loss of the fresh network is {float(loss)}, not finite.")
