"""Losses over many decades, and losses that fall below zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Examples, scale_columns, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick, style

__all__ = ["gaussian_likelihood", "ill_conditioned", "laplace_likelihood", "likelihood", "poisson_likelihood"]

SIZE = synthetic.SIZE


def least_squares(rng: np.random.Generator) -> Examples:
    """A linear function without noise of inputs whose covariance has a condition number of 10 to 10^4."""
    dimension = log_integer(rng, 6, 64)
    spectrum = 10.0 ** (-rng.uniform(1, 4) * np.linspace(0, 1, dimension))
    rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    x = rng.normal(size=(SIZE, dimension)) * np.sqrt(spectrum) @ rotation
    # Along each axis about the same share of the values' variance, else the small ones would not matter.
    weight = rotation.T @ (rng.normal(size=(dimension, 1)) / np.sqrt(spectrum)[:, None] ** rng.uniform(0, 1))
    return Examples("least-squares", x.astype(np.float32), (x @ weight).astype(np.float32))


def smooth_function(rng: np.random.Generator) -> Examples:
    """A smooth function of one to three inputs, without noise: a network fits it ever closer."""
    x = rng.uniform(-1, 1, size=(SIZE, int(rng.integers(1, 4))))
    phase = x @ rng.normal(size=(x.shape[1], 2)) * log_uniform(rng, 0.7, 2.5) + rng.normal(size=2)
    values = np.sin(phase[:, :1]) + 0.5 * np.tanh(2 * phase[:, 1:])
    return Examples("smooth-function", x.astype(np.float32), values.astype(np.float32))


@register_workload("ill-conditioned", description="Least squares and smooth fits over many decades of loss")
def ill_conditioned(rng: np.random.Generator) -> Workload:
    """A linear model or a small network without noise to stop at; its loss may fall by six decades and more."""
    linear = bool(rng.random() < 0.6)
    examples = (least_squares if linear else smooth_function)(rng)
    train, heldout = split(rng, examples, log_integer(rng, 200, 2000))
    if linear and rng.random() < 0.5:
        train, heldout = scale_columns(rng, [train, heldout], rng.uniform(0, 2))
    loss: Loss = F.mse_loss
    if rng.random() < 0.3:
        loss = partial(F.huber_loss, delta=log_uniform(rng, 0.01, 1.0))
    hidden = [] if linear else [log_integer(rng, 8, 48)] * int(rng.integers(1, 3))
    options = {"init": "xavier", "gain": log_uniform(rng, 0.1, 2.0)} if linear else style(rng, {"none": 1})
    return Workload(
        name=f"ill-conditioned/{examples.name}",
        family="ill-conditioned",
        make_model=partial(MLP, train[0].shape[1], 1, hidden, **options),
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0]), 256),
    )


def gaussian_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of a normal distribution; negative where the fit is close.

    Args:
        output: (batch, 2) mean and logarithm of the variance.
        target: (batch, 1).
    """
    mean, log_variance = output[:, :1], output[:, 1:]
    deviation = (target - mean).square() * torch.exp(-log_variance)
    return 0.5 * (math.log(2 * math.pi) + log_variance + deviation).mean()


def laplace_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of a Laplace distribution; arguments as above, with the logarithm of its scale."""
    mean, log_scale = output[:, :1], output[:, 1:]
    return (math.log(2) + log_scale + (target - mean).abs() * torch.exp(-log_scale)).mean()


def poisson_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-likelihood of a Poisson distribution, without the term that depends on the target alone.

    Args:
        output: (batch, 1) logarithm of the mean.
        target: (batch, 1) counts.
    """
    return (torch.exp(output) - target * output).mean()


def _signal(rng: np.random.Generator) -> Examples:
    sources = (synthetic.teacher_regression, synthetic.friedman, synthetic.fourier_regression)
    return sources[int(rng.integers(len(sources)))](rng)


def _uneven_noise(rng: np.random.Generator) -> Examples:
    """A function whose noise depends on the input, from 0.02 of its deviation upwards."""
    examples = _signal(rng)
    values = examples.targets[:, :1] / (examples.targets[:, :1].std() + 1e-6)
    tilt = examples.inputs @ rng.normal(size=(examples.inputs.shape[1], 1))
    scale = log_uniform(rng, 0.02, 0.3) * np.exp(rng.uniform(0, 1.2) * tilt / (tilt.std() + 1e-6))
    return Examples(
        "uneven-noise", examples.inputs, (values + scale * rng.normal(size=values.shape)).astype(np.float32)
    )


def _counts(rng: np.random.Generator) -> Examples:
    examples = _signal(rng)
    values = examples.targets[:, :1] / (examples.targets[:, :1].std() + 1e-6)
    mean = np.exp(rng.uniform(0, 1.5) + rng.uniform(0.3, 0.8) * values.clip(-3, 3))
    # The class 0 of no classes: `split` must not standardise counts.
    return Examples("counts", examples.inputs, rng.poisson(mean).astype(np.int64), classes=1)


LIKELIHOODS: dict[str, tuple[Callable[[np.random.Generator], Examples], Loss, int]] = {
    "gaussian": (_uneven_noise, gaussian_likelihood, 2),
    "laplace": (_uneven_noise, laplace_likelihood, 2),
    "poisson": (_counts, poisson_likelihood, 1),
}


@register_workload("likelihood", description="Likelihoods with learnt variance, and counts; may be negative")
def likelihood(rng: np.random.Generator) -> Workload:
    """A network that predicts a distribution; its loss has no lower bound at zero."""
    name = pick(rng, {"gaussian": 3, "laplace": 1, "poisson": 1})
    source, loss, outputs = LIKELIHOODS[name]
    train, heldout = split(rng, source(rng), log_integer(rng, 300, 2000))
    train, heldout = ((inputs, targets.float()) for inputs, targets in (train, heldout))
    hidden = [log_integer(rng, 8, 64)] * int(rng.integers(1, 4))
    options = {**style(rng, {"none": 3, "layer": 1}), "gain": log_uniform(rng, 0.5, 1.2)}
    return Workload(
        name=f"likelihood/{name}",
        family="likelihood",
        make_model=partial(MLP, train[0].shape[1], outputs, hidden, **options),
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0])),
        signed=True,
    )
