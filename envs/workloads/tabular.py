"""Fully connected networks: classification, regression, and linear models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import (
    Examples,
    Source,
    breast_cancer,
    choose_source,
    diabetes,
    digits,
    documents,
    photos,
    scale_columns,
    split,
    wine,
)
from rlrate.envs.workloads.fixed import drawn, fixed
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick, style

__all__ = ["linear", "mlp_classification", "mlp_regression"]


def photo_pixels(rng: np.random.Generator) -> Examples:
    """Brightness of a photograph's pixel from its place, in a random square of 48 x 48 pixels."""
    photo = photos()[int(rng.integers(2))].mean(axis=2)
    side, stride = 48, int(rng.integers(1, 5))
    top, left = (int(rng.integers(length - side * stride)) for length in photo.shape)
    crop = photo[top : top + side * stride : stride, left : left + side * stride : stride]
    places = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    return Examples("photo-pixels", places.reshape(-1, 2).astype(np.float32), crop.reshape(-1, 1))


CLASSIFICATION: dict[str, Source] = {
    "digits": lambda _: digits(),
    "breast-cancer": lambda _: breast_cancer(),
    "wine": lambda _: wine(),
    "teacher": synthetic.teacher_classification,
    "blobs": synthetic.blobs,
    "spirals": synthetic.spirals,
    "parity": synthetic.parity,
}
REGRESSION: dict[str, Source] = {
    "diabetes": lambda _: diabetes(),
    "photo-pixels": photo_pixels,
    "teacher": synthetic.teacher_regression,
    "linear": synthetic.linear_regression,
    "friedman": synthetic.friedman,
    "waves": synthetic.fourier_regression,
}
LINEAR: dict[str, Source] = {
    "digits": lambda _: digits(),
    "breast-cancer": lambda _: breast_cancer(),
    "wine": lambda _: wine(),
    "documents": lambda _: documents(),
    "words": synthetic.bag_of_words,
    "linear": synthetic.linear_classification,
}

DEPTHS = {1: 3, 2: 4, 3: 3, 4: 1, 6: 0.5, 8: 0.5}


def _widths(rng: np.random.Generator) -> list[int]:
    """One to eight hidden layers of one width, at most some 30,000 weights between them."""
    depth = pick(rng, DEPTHS)
    return [log_integer(rng, 8, min(128, int((30_000 / depth) ** 0.5)))] * depth


@register_workload("mlp-classification", description="MLP on tables, digits or synthetic classes")
def mlp_classification(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """An MLP classifier; ``only`` restricts the data to these names of `CLASSIFICATION`."""
    examples = choose_source(rng, CLASSIFICATION, only)
    train, heldout = split(
        rng,
        examples,
        log_integer(rng, 100, 2000),
        label_noise=rng.uniform(0, 0.3) if rng.random() < 0.3 else 0.0,
        imbalance=rng.uniform(0, 1) if rng.random() < 0.25 else 0.0,
    )
    return Workload(
        name=f"mlp-classification/{examples.name}",
        family="mlp-classification",
        make_model=partial(MLP, train[0].shape[1], examples.classes, _widths(rng), **style(rng)),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy,
        batch_size=batch_size(rng, len(train[0])),
        accuracy=True,
    )


@register_workload("mlp-regression", description="MLP fitting tables, photo pixels or functions")
def mlp_regression(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """An MLP with a squared or Huber loss; ``only`` restricts the data to names of `REGRESSION`."""
    examples = choose_source(rng, REGRESSION, only)
    train, heldout = split(rng, examples, log_integer(rng, 100, 2000))
    loss: Loss = F.mse_loss
    if rng.random() < 0.3:
        loss = partial(F.huber_loss, delta=log_uniform(rng, 0.1, 2.0))
    return Workload(
        name=f"mlp-regression/{examples.name}",
        family="mlp-regression",
        make_model=partial(MLP, train[0].shape[1], train[1].shape[1], _widths(rng), **style(rng)),
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0])),
    )


@register_workload("logistic-regression", description="Linear softmax model, dense or sparse data")
def linear(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A linear classifier, its inputs on scales up to three decades apart in half of the draws."""
    examples = choose_source(rng, LINEAR, only)
    train, heldout = split(
        rng,
        examples,
        log_integer(rng, 100, 2000),
        label_noise=rng.uniform(0, 0.2) if rng.random() < 0.2 else 0.0,
    )
    if rng.random() < 0.5:
        train, heldout = scale_columns(rng, [train, heldout], rng.uniform(0, 3))
    return Workload(
        name=f"logistic-regression/{examples.name}",
        family="logistic-regression",
        make_model=partial(MLP, train[0].shape[1], examples.classes, gain=log_uniform(rng, 0.1, 2.0)),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy,
        batch_size=batch_size(rng, len(train[0])),
        accuracy=True,
    )


fixed(
    "digits-mlp",
    "64-64-10 MLP, ReLU, on scikit-learn's digits",
    drawn(CLASSIFICATION["digits"], 2500),
    partial(MLP, 64, 10, [64]),
    family="mlp-classification",
)
fixed(
    "wine-mlp",
    "13-16-16-3 MLP, tanh, on wine",
    drawn(CLASSIFICATION["wine"], 2500, 64),
    partial(MLP, 13, 3, [16, 16], activation="tanh"),
    family="mlp-classification",
    batch_size=16,
)
fixed(
    "diabetes-mlp",
    "10-32-32-1 MLP, ReLU, on diabetes, squared loss",
    drawn(REGRESSION["diabetes"], 2500, 128),
    partial(MLP, 10, 1, [32, 32]),
    family="mlp-regression",
)
fixed(
    "breast-cancer-logistic",
    "Logistic regression on breast cancer",
    drawn(LINEAR["breast-cancer"], 2500, 192),
    partial(MLP, 30, 2),
    family="logistic-regression",
)
