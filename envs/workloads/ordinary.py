"""Networks as most users build them: torch's own weights, up to tens of thousands of them, and batches of 16 to 64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Examples, Source, choose_source, split
from rlrate.envs.workloads.images import reconstruct
from rlrate.envs.workloads.models import MLP, ConvNet
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import log_integer, pick

__all__ = ["autoencoder", "classifier", "convolutions", "ordinary", "regression"]

PICTURES: dict[str, Source] = {"textures": synthetic.textures, "prototypes": synthetic.prototypes}
CLASSES: dict[str, Source] = {
    **PICTURES,
    "teacher": synthetic.teacher_classification,
    "blobs": synthetic.blobs,
    "words": synthetic.bag_of_words,
}
VALUES: dict[str, Source] = {
    "teacher": synthetic.teacher_regression,
    "friedman": synthetic.friedman,
    "waves": synthetic.fourier_regression,
}
UNLABELLED: dict[str, Source] = {
    "manifold": synthetic.manifold,
    "fields": synthetic.fields,
    "sparse-codes": synthetic.sparse_codes,
}


@register_workload("ordinary", description="MLP, CNN or autoencoder as most users build them")
def ordinary(rng: np.random.Generator) -> Workload:
    """A classifier, a regression or an autoencoder without any of the oddities that the other families draw."""
    make = pick(rng, {classifier: 4, convolutions: 4, regression: 2, autoencoder: 2})
    return make(rng)


def _style(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "activation": pick(rng, {"relu": 6, "gelu": 2, "silu": 1, "tanh": 2}),
        "norm": pick(rng, {"none": 5, "layer": 1}),
    }


def _widths(rng: np.random.Generator) -> list[int]:
    return [pick(rng, {48: 1, 64: 3, 96: 2, 128: 2, 192: 1})] * pick(rng, {1: 2, 2: 3, 3: 1})


def _labelled(rng: np.random.Generator, sources: Mapping[str, Source]) -> tuple[Examples, dict[str, Any]]:
    examples = choose_source(rng, sources, None)
    wrong = rng.uniform(0.1, 0.45) if rng.random() < 0.3 else 0.0
    train, heldout = split(rng, examples, log_integer(rng, 400, 2200), label_noise=wrong)
    return examples, {"train": train, "heldout": heldout, "loss": F.cross_entropy, "accuracy": True}


def _workload(rng: np.random.Generator, data: str, make_model: Callable[[], Any], **kwargs: Any) -> Workload:
    batch = pick(rng, {16: 1, 32: 3, 64: 2})
    return Workload(name=f"ordinary/{data}", family="ordinary", make_model=make_model, batch_size=batch, **kwargs)


def classifier(rng: np.random.Generator, sources: Mapping[str, Source] = CLASSES) -> Workload:
    """An MLP, in some draws deep and narrow."""
    examples, data = _labelled(rng, sources)
    inputs = int(np.prod(examples.inputs.shape[1:]))
    hidden, style = _widths(rng), _style(rng)
    if rng.random() < 0.15:  # deep and narrow, with the weights that keep the signal's size
        hidden, style = [log_integer(rng, 12, 32)] * log_integer(rng, 6, 12), {"activation": "relu", "init": "kaiming"}
    return _workload(rng, examples.name, partial(MLP, inputs, examples.classes, hidden, **style), **data)


def convolutions(rng: np.random.Generator, sources: Mapping[str, Source] = PICTURES) -> Workload:
    """A convolutional classifier."""
    examples, data = _labelled(rng, sources)
    width = pick(rng, {8: 2, 12: 1, 16: 2})
    style = _style(rng)
    style["norm"] = "none" if style["norm"] == "none" else "group"
    head = pick(rng, {"flatten": 2, "mean": 1})
    channels = [width, 2 * width] if rng.random() < 0.7 else [width, width, width]
    pool = pick(rng, {"stride": 3, "average": 1})
    shape = tuple(examples.inputs.shape[1:])
    make = partial(ConvNet, shape, examples.classes, channels, pool=pool, head=head, **style)
    return _workload(rng, examples.name, make, **data)


def regression(rng: np.random.Generator, sources: Mapping[str, Source] = VALUES) -> Workload:
    """An MLP with a squared loss."""
    examples = choose_source(rng, sources, None)
    train, heldout = split(rng, examples, log_integer(rng, 400, 2200))
    make = partial(MLP, train[0].shape[1], train[1].shape[1], _widths(rng), **_style(rng))
    return _workload(rng, f"{examples.name}-values", make, train=train, heldout=heldout, loss=F.mse_loss)


def autoencoder(rng: np.random.Generator, sources: Mapping[str, Source] = UNLABELLED) -> Workload:
    """An MLP with one narrow layer."""
    examples = choose_source(rng, sources, None)
    examples = replace(examples, inputs=examples.inputs.reshape(len(examples), -1))
    size, outer = examples.inputs.shape[1], pick(rng, {32: 1, 48: 1, 64: 1, 96: 1})
    make = partial(MLP, size, size, [outer, log_integer(rng, 6, 24), outer], **_style(rng))
    return _workload(rng, examples.name, make, loss=F.mse_loss, **reconstruct(rng, examples, 2000))
