"""Fixed workloads on held-out data that the other files lack: by them a controller is judged, never trained."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads.data import Examples, Source, digits, documents, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.tabular import photo_pixels

__all__: list[str] = []


def _fixed(
    name: str,
    kind: str,
    source: Source,
    hidden: Sequence[int],
    description: str,
    *,
    train_size: int = 2500,
    batch: int = 32,
    label_noise: float = 0.0,
    **model: Any,
) -> None:
    """Register a fully connected network that is the same for every seed."""

    def make(_: np.random.Generator) -> Workload:
        rng = np.random.default_rng(0)
        examples = source(rng)
        train, heldout = split(rng, examples, train_size, label_noise=label_noise)
        return Workload(
            name=name,
            family=kind,
            make_model=partial(MLP, train[0].shape[1], examples.classes or train[1].shape[1], hidden, **model),
            train=train,
            heldout=heldout,
            loss=F.cross_entropy if examples.classes else F.mse_loss,
            batch_size=batch,
            accuracy=bool(examples.classes),
        )

    register_workload(name, make, description=description, kind="fixed")


def _digits(_: np.random.Generator) -> Examples:
    return digits()


_fixed(
    "digits-deep-narrow",
    "deep",
    _digits,
    [16] * 12,
    "12 hidden layers of 16 on digits, ReLU, Kaiming weights",
    init="kaiming",
)
_fixed("digits-wide", "wide", _digits, [384], "64-384-10 MLP on digits, ReLU, batches of 64", batch=64)
_fixed(
    "digits-noisy-labels",
    "noisy",
    _digits,
    [96],
    "64-96-10 MLP on digits, 40 % of the training labels drawn at random",
    label_noise=0.4,
)
_fixed("digits-small", "small-data", _digits, [64, 64], "64-64-64-10 MLP on 100 digits", train_size=100, batch=20)
_fixed(
    "digits-mlp-large",
    "large",
    _digits,
    [640, 640],
    "64-640-640-10 MLP on digits, 0.46 million parameters",
)
_fixed(
    "documents-softmax",
    "linear",
    lambda _: documents(),
    [],
    "Linear softmax model on counts of words, 11 classes",
)
_fixed(
    "photo-pixels-mlp",
    "regression",
    photo_pixels,
    [64, 64],
    "2-64-64-1 MLP, tanh: brightness of a photograph's pixel from its place",
    activation="tanh",
)
