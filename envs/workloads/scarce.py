"""Few examples of what cannot be foretold: all targets are drawn from what the inputs only suggest."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Workload
from rlrate.envs.workloads.data import Array, Examples, Source, choose_source, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick
from rlrate.envs.workloads.synthetic import SIZE, teacher

__all__ = ["scarce"]


def _inputs(rng: np.random.Generator) -> Array:
    """Numbers, or which of many marks an example bears, frequent and rare ones; shape (examples, 4-300)."""
    if rng.random() < 0.5:
        return rng.normal(size=(SIZE, log_integer(rng, 4, 64)))
    marks = log_integer(rng, 30, 300)
    frequency = np.arange(1, marks + 1) ** -rng.uniform(0.5, 1.1)
    return (rng.random((SIZE, marks)) < frequency * log_uniform(rng, 0.2, 0.9)).astype(np.float64)


def _suggested(rng: np.random.Generator, inputs: Array, outputs: int) -> Array:
    """What inputs suggest, of deviation 1: linear in them, by a random network, or half and half."""
    linear = inputs @ rng.normal(size=(inputs.shape[1], outputs))
    linear = (linear - linear.mean(axis=0)) / (linear.std(axis=0) + 1e-9)
    share = pick(rng, {0.0: 1, 0.5: 1, 1.0: 1})
    return np.asarray(np.sqrt(1.0 - share) * linear + np.sqrt(share) * teacher(rng, inputs, outputs))


def drawn_classes(rng: np.random.Generator) -> Examples:
    """Classes drawn by the probabilities that the inputs suggest."""
    inputs, classes = _inputs(rng), int(rng.integers(2, 9))
    logits = log_uniform(rng, 0.7, 5.0) * _suggested(rng, inputs, classes)
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return Examples("classes", inputs.astype(np.float32), labels.astype(np.int64), classes, unit_scale=True)


def noisy_values(rng: np.random.Generator) -> Examples:
    """One to four values, in noise of 0.3 to 2 times their deviation."""
    inputs = _inputs(rng)
    values = _suggested(rng, inputs, int(rng.integers(1, 5)))
    noise = rng.standard_t(3.0, size=values.shape) if rng.random() < 0.3 else rng.normal(size=values.shape)
    values = values + log_uniform(rng, 0.3, 2.0) * noise
    return Examples("values", inputs.astype(np.float32), values.astype(np.float32), unit_scale=True)


SOURCES: dict[str, Source] = {"classes": drawn_classes, "values": noisy_values}


@register_workload("scarce", description="MLP or linear model on 80-1200 examples whose targets are partly luck")
def scarce(rng: np.random.Generator) -> Workload:
    """A linear model or an MLP that can learn its examples by heart, which says nothing of those held out."""
    examples = choose_source(rng, SOURCES, None)
    train, heldout = split(rng, examples, log_integer(rng, 80, 1200), heldout_size=512)
    hidden = [log_integer(rng, 16, 192)] * pick(rng, {0: 1, 1: 2, 2: 2})
    style: dict[str, Any] = {
        "activation": pick(rng, {"relu": 5, "gelu": 1, "silu": 1, "tanh": 2}),
        "norm": pick(rng, {"none": 6, "layer": 1}),
        "gain": log_uniform(rng, 0.3, 1.5) if rng.random() < 0.3 else 1.0,
    }
    loss: Loss = F.cross_entropy if examples.classes else pick(rng, {F.mse_loss: 3, F.smooth_l1_loss: 1})
    return Workload(
        name=f"scarce/{examples.name}",
        family="scarce",
        make_model=partial(MLP, train[0].shape[1], examples.classes or train[1].shape[1], hidden, **style),
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0]), 64),
        accuracy=bool(examples.classes),
    )
