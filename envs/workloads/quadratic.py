"""The noisy quadratic: the workload whose best schedule can be computed.

For a point ``x``, an optimum ``x*`` and noise ``xi`` of covariance ``diag(sigma^2)``, the loss is
``mean over xi of 0.5 * sum_i h_i (x_i - x*_i - xi_i)^2`` (Schaul et al. 2013; Wu et al. 2018;
Zhang et al. 2019). Under SGD with rate ``a`` and batches of ``b`` independent examples, the mean
and the variance of ``e = x - x*`` follow, for each dimension,

    mean <- (1 - a h) mean,    variance <- (1 - a h)^2 variance + (a h sigma)^2 / b

and the expected excess loss is ``0.5 * sum_i h_i (mean_i^2 + variance_i)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rlrate.envs.workload import Workload
from rlrate.envs.workloads.models import Quadratic
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import log_integer, log_uniform

__all__ = ["QuadraticWorkload", "half_squared_length", "noisy_quadratic"]


@dataclass(frozen=True, kw_only=True)
class QuadraticWorkload(Workload):
    """A noisy quadratic and all that is needed to compute with it.

    The training examples are the noise; the one held-out example is no noise at all, so that the
    held-out loss is the true excess loss.

    Attributes:
        curvature: (dimensions,) eigenvalues ``h`` of the Hessian.
        sigma: (dimensions,) standard deviation of one example's noise. The training noise has
            exactly this deviation and mean zero.
        optimum: (dimensions,) the point ``x*`` of zero excess loss. The start is drawn from a
            standard normal distribution around the origin.
    """

    curvature: Tensor
    sigma: Tensor
    optimum: Tensor


def half_squared_length(output: Tensor, target: Tensor) -> Tensor:
    """Half the squared distance of each row of ``output`` from ``target``, mean over the batch."""
    return 0.5 * (output - target).square().sum(dim=-1).mean()


def make_quadratic(
    rng: np.random.Generator,
    name: str,
    curvature: np.ndarray[tuple[int], np.dtype[np.float64]],
    sigma: np.ndarray[tuple[int], np.dtype[np.float64]],
    examples: int,
    batch: int,
) -> QuadraticWorkload:
    """A noisy quadratic; ``rng`` draws its optimum and its noise."""
    optimum = rng.normal(size=len(curvature))
    noise = rng.normal(size=(examples, len(curvature)))
    # Exact moments, so that the mean of the training data is the optimum and theory applies.
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0) * sigma
    h, s, x, xi = (torch.tensor(v, dtype=torch.float32) for v in (curvature, sigma, optimum, noise))
    return QuadraticWorkload(
        name=name,
        family="noisy-quadratic",
        make_model=partial(Quadratic, h, x),
        train=(xi, torch.zeros(examples, 1)),
        heldout=(torch.zeros(1, len(h)), torch.zeros(1, 1)),
        loss=half_squared_length,
        batch_size=batch,
        curvature=h,
        sigma=s,
        optimum=x,
    )


@register_workload("noisy-quadratic", description="Quadratic bowl seen through noise")
def noisy_quadratic(rng: np.random.Generator) -> QuadraticWorkload:
    """Dimension, condition number (up to 10^4.5), scale and noise are sampled."""
    dimension = log_integer(rng, 5, 200)
    scale, condition = log_uniform(rng, 0.01, 100.0), log_uniform(rng, 10.0, 10**4.5)
    curvature = scale * condition ** -rng.uniform(size=dimension)
    curvature[0], curvature[-1] = scale, scale / condition
    sigma = np.full(dimension, log_uniform(rng, 0.001, 3.0))
    if rng.random() < 0.5:
        # Gradient noise like the curvature, as near the minimum of a likelihood (Wu et al. 2018).
        sigma *= np.sqrt(curvature.max() / curvature).clip(max=30.0)
    batch = log_integer(rng, 8, 128)
    return make_quadratic(rng, "noisy-quadratic", curvature, sigma, 4096, batch)


def _quadratic_20(_: np.random.Generator) -> QuadraticWorkload:
    return make_quadratic(
        np.random.default_rng(0),
        "quadratic-20",
        np.logspace(0, -3, 20),
        np.full(20, 0.5),
        examples=4096,
        batch=8,
    )


register_workload(
    "quadratic-20",
    _quadratic_20,
    description="Noisy quadratic of 20 dimensions, condition number 1000",
    kind="fixed",
)
