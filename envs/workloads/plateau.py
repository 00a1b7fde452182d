"""Tasks whose loss stays flat before it falls: parities, products, deep linear networks, small initial weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Array, Examples, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick

__all__ = ["plateau"]

SIZE = synthetic.SIZE


def products(rng: np.random.Generator) -> Examples:
    """The product of two or three among 6 to 14 inputs: no single input tells anything about it."""
    x = rng.normal(size=(SIZE, int(rng.integers(6, 15)))).astype(np.float32)
    values = x[:, : int(rng.integers(2, 4))].clip(-2, 2).prod(axis=1, keepdims=True)
    return Examples("products", x, values.astype(np.float32))


def _teacher(rng: np.random.Generator, x: Array) -> Array:
    weight = rng.normal(size=(x.shape[1], int(rng.integers(2, 6)))) / np.sqrt(x.shape[1])
    hidden = np.maximum(x @ weight, 0) if rng.random() < 0.5 else np.tanh(2 * x @ weight)
    return np.asarray(hidden @ rng.normal(size=(hidden.shape[1], 1)))


def student(rng: np.random.Generator) -> Examples:
    """Values of a small network with one hidden layer, without noise."""
    x = rng.normal(size=(SIZE, log_integer(rng, 6, 24)))
    return Examples("student", x.astype(np.float32), _teacher(rng, x).astype(np.float32))


def linear_map(rng: np.random.Generator) -> Examples:
    """A linear map whose singular values span up to two decades; each is learnt after a plateau of its own."""
    inputs, outputs = log_integer(rng, 6, 24), log_integer(rng, 2, 8)
    left, right = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (inputs, outputs))
    values = 10.0 ** np.linspace(0, -rng.uniform(0, 2), outputs)
    rank = min(inputs, outputs)
    x = rng.normal(size=(SIZE, inputs))
    y = x @ left[:, :rank] @ (values[:rank, None] * right[:rank])
    return Examples("linear-map", x.astype(np.float32), y.astype(np.float32))


def _shallow(rng: np.random.Generator) -> dict[str, Any]:
    gain = log_uniform(rng, 0.05, 0.6)
    return {
        "hidden": [log_integer(rng, 8, 64)] * pick(rng, {1: 2, 2: 1}),
        "activation": pick(rng, {"relu": 3, "tanh": 2, "gelu": 1}),
        "init": "xavier",
        "gain": gain,
    }


def _bits(rng: np.random.Generator) -> dict[str, Any]:
    # Parity is plateau enough: from weights as small as the others' it would not begin within any budget.
    return {**_shallow(rng), "gain": log_uniform(rng, 0.5, 1.5), "hidden": [log_integer(rng, 32, 96)]}


def _deep_linear(rng: np.random.Generator) -> dict[str, Any]:
    depth = int(rng.integers(2, 6))
    return {
        "hidden": [log_integer(rng, 8, 24)] * depth,
        "activation": "identity",
        "init": pick(rng, {"xavier": 1, "orthogonal": 1}),
        "gain": log_uniform(rng, 0.03, 0.5) ** (1 / depth),
    }


Pair = tuple[Callable[[np.random.Generator], Examples], Callable[[np.random.Generator], dict[str, Any]]]
#: Data, and how the network that learns them is drawn.
TASKS: dict[str, Pair] = {
    "parity": (synthetic.parity, _bits),
    "products": (products, _bits),
    "student": (student, _shallow),
    "linear-map": (linear_map, _deep_linear),
}


@register_workload("plateau", description="Loss flat before it falls: parity, products, deep linear, small weights")
def plateau(rng: np.random.Generator) -> Workload:
    """A network that must leave a plateau or a saddle before it learns."""
    source, draw = TASKS[list(TASKS)[int(rng.integers(len(TASKS)))]]
    examples = source(rng)
    train, heldout = split(rng, examples, log_integer(rng, 600, 2000))
    model = draw(rng)
    return Workload(
        name=f"plateau/{examples.name}",
        family="plateau",
        make_model=partial(MLP, train[0].shape[1], examples.classes or train[1].shape[1], **model),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy if examples.classes else F.mse_loss,
        batch_size=batch_size(rng, len(train[0])),
        accuracy=bool(examples.classes),
    )
