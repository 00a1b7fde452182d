"""The older families without the data that are held out: what a controller may be trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Source, choose_source
from rlrate.envs.workloads.images import sample_autoencoder, sample_cnn
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.tabular import CLASSIFICATION, LINEAR, REGRESSION, linear, mlp_classification, mlp_regression

__all__ = [
    "training_autoencoder",
    "training_cnn",
    "training_logistic_regression",
    "training_mlp_classification",
    "training_mlp_regression",
]

HELD_OUT = {"digits", "diabetes", "photo-pixels", "documents"}
PICTURES: dict[str, Source] = {"textures": synthetic.textures, "prototypes": synthetic.prototypes}
RECONSTRUCTION: dict[str, Source] = {
    "manifold": synthetic.manifold,
    "fields": synthetic.fields,
    "sparse-codes": synthetic.sparse_codes,
}


def _allowed(factory: Callable[..., Workload], rng: np.random.Generator, sources: Iterable[str]) -> Workload:
    return factory(rng, [name for name in sources if name not in HELD_OUT])


def _renamed(workload: Workload, family: str) -> Workload:
    return replace(workload, family=family, name=f"{family}/{workload.name.partition('/')[2]}")


@register_workload("training-mlp-classification", description="mlp-classification without the digits")
def training_mlp_classification(rng: np.random.Generator) -> Workload:
    """`mlp_classification` on breast cancer, wine and synthetic classes."""
    return _renamed(_allowed(mlp_classification, rng, CLASSIFICATION), "training-mlp-classification")


@register_workload("training-mlp-regression", description="mlp-regression on synthetic data only")
def training_mlp_regression(rng: np.random.Generator) -> Workload:
    """`mlp_regression` on synthetic functions."""
    return _renamed(_allowed(mlp_regression, rng, REGRESSION), "training-mlp-regression")


@register_workload("training-logistic-regression", description="logistic-regression without digits and documents")
def training_logistic_regression(rng: np.random.Generator) -> Workload:
    """`logistic-regression` on breast cancer, wine, synthetic words and linear classes."""
    return _renamed(_allowed(linear, rng, LINEAR), "training-logistic-regression")


@register_workload("training-cnn", description="cnn on synthetic pictures only")
def training_cnn(rng: np.random.Generator) -> Workload:
    """`cnn` on textures and on patterns that move."""
    return sample_cnn(rng, "training-cnn", {"none": 3, "group": 1}, pictures=PICTURES)


@register_workload("training-autoencoder", description="autoencoder of synthetic data only")
def training_autoencoder(rng: np.random.Generator) -> Workload:
    """`autoencoder` of surfaces, smooth pictures and sparse codes."""
    return _renamed(sample_autoencoder(rng, choose_source(rng, RECONSTRUCTION, None)), "training-autoencoder")
