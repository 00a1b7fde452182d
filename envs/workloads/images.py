"""Pictures of 8 x 8 pixels: convolutional classifiers and autoencoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Split, Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import (
    Examples,
    Source,
    as_images,
    choose_source,
    digits,
    photo_patches,
    split,
)
from rlrate.envs.workloads.fixed import Parts, drawn, fixed
from rlrate.envs.workloads.models import MLP, ConvNet
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick, style

__all__ = ["autoencoder", "cnn", "cnn_batchnorm", "sample_autoencoder", "sample_cnn"]


def digit_pictures(_: np.random.Generator) -> Examples:
    """The digits as pictures: (1797, 1, 8, 8)."""
    return as_images(digits(), (1, 8, 8))


def grey_patches(_: np.random.Generator) -> Examples:
    """Patches of the photographs without colour: (8480, 64)."""
    patches = photo_patches()
    return replace(patches, inputs=patches.inputs.mean(axis=1).reshape(len(patches), -1))


def colour_patches(_: np.random.Generator) -> Examples:
    """Patches of the photographs: (8480, 192)."""
    patches = photo_patches()
    return replace(patches, name="colour-photos", inputs=patches.inputs.reshape(len(patches), -1))


PICTURES: dict[str, Source] = {
    "digits": digit_pictures,
    "photos": lambda _: photo_patches(),
    "textures": synthetic.textures,
}
RECONSTRUCTION: dict[str, Source] = {
    "digits": lambda _: digits(),
    "photos": grey_patches,
    "colour-photos": colour_patches,
    "manifold": synthetic.manifold,
}


def sample_cnn(
    rng: np.random.Generator,
    family: str,
    norms: Mapping[str, float],
    only: Sequence[str] | None = None,
    pictures: Mapping[str, Source] = PICTURES,
) -> Workload:
    """A convolutional classifier of 8 x 8 pixels.

    Args:
        rng: Draws all that is left open.
        family: Name of the family.
        norms: Normalisations and their weights.
        only: Restrict the data to these names.
        pictures: The data to choose from.
    """
    examples = choose_source(rng, pictures, only)
    train, heldout = split(
        rng,
        examples,
        log_integer(rng, 150, 2000),
        label_noise=rng.uniform(0, 0.3) if rng.random() < 0.25 else 0.0,
        imbalance=rng.uniform(0, 1) if rng.random() < 0.2 else 0.0,
    )
    layers, width = int(rng.integers(1, 4)), log_integer(rng, 4, 24)
    channels = [width, *[min(width * int(rng.integers(1, 3)), 32)] * (layers - 1)]
    shape = (train[0].shape[1], 8, 8)
    return Workload(
        name=f"{family}/{examples.name}",
        family=family,
        make_model=partial(
            ConvNet,
            shape,
            examples.classes,
            channels,
            pool=pick(rng, {"stride": 3, "average": 1, "max": 1}),
            head=pick(rng, {"flatten": 1, "mean": 1}),
            **style(rng, norms),
        ),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy,
        batch_size=batch_size(rng, len(train[0]), 64),
        accuracy=True,
    )


@register_workload("cnn", description="Small convolutional network without BatchNorm")
def cnn(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A convolutional classifier; ``only`` restricts the data to names of `PICTURES`."""
    return sample_cnn(rng, "cnn", {"none": 3, "group": 1}, only)


@register_workload("cnn-batchnorm", description="Small convolutional network with BatchNorm")
def cnn_batchnorm(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """Like `cnn`, with BatchNorm after every convolution."""
    return sample_cnn(rng, "cnn-batchnorm", {"batch": 1}, only)


def reconstruct(rng: np.random.Generator, examples: Examples, train_size: int, noise: float = 0.0) -> dict[str, Any]:
    """The data of an autoencoder: targets are the inputs, which ``noise`` then disturbs."""
    unlabelled = replace(examples, classes=0, targets=np.zeros((len(examples), 1), np.float32))
    parts = [inputs for inputs, _ in split(rng, unlabelled, train_size)]
    disturbed = [(clean + noise * clean.new_tensor(rng.normal(size=tuple(clean.shape))), clean) for clean in parts]
    return {"train": disturbed[0], "heldout": disturbed[1]}


@register_workload("autoencoder", description="Autoencoder of digits, photo patches, or a surface")
def autoencoder(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A symmetric autoencoder, denoising in some draws; data from `RECONSTRUCTION`."""
    return sample_autoencoder(rng, choose_source(rng, RECONSTRUCTION, only))


def sample_autoencoder(rng: np.random.Generator, examples: Examples) -> Workload:
    """An autoencoder of these examples, their inputs of shape (examples, features)."""
    size = examples.inputs.shape[1]
    noise = log_uniform(rng, 0.1, 1.0) if rng.random() < 0.3 else 0.0
    outer = [log_integer(rng, 16, min(96, 8192 // size)) for _ in range(int(rng.integers(0, 3)))]
    outer.sort(reverse=True)
    bottleneck = log_integer(rng, 2, 24)
    loss: Loss = F.mse_loss
    if rng.random() < 0.2:
        loss = partial(F.huber_loss, delta=log_uniform(rng, 0.2, 2.0))
    data = reconstruct(rng, examples, log_integer(rng, 150, 2000), noise)
    return Workload(
        name=f"autoencoder/{examples.name}",
        family="autoencoder",
        make_model=partial(
            MLP,
            size,
            size,
            [*outer, bottleneck, *reversed(outer)],
            **style(rng, {"none": 3, "layer": 1}),
        ),
        loss=loss,
        batch_size=batch_size(rng, len(data["train"][0])),
        **data,
    )


def _reconstructed(source: Source) -> Parts:
    def parts(rng: np.random.Generator) -> tuple[Split, Split]:
        data = reconstruct(rng, source(rng), 2000)
        return data["train"], data["heldout"]

    return parts


for _name, _norm, _description in (
    ("digits-cnn", "none", "Two strided convolutions (8, 16 channels) on digits"),
    ("digits-cnn-batchnorm", "batch", "The same with BatchNorm"),
):
    fixed(
        _name,
        _description,
        drawn(digit_pictures, 2000),
        partial(ConvNet, (1, 8, 8), 10, [8, 16], norm=_norm),
        family="cnn-batchnorm" if _norm == "batch" else "cnn",
    )
for _name, _source, _hidden, _description in (
    ("digits-autoencoder", RECONSTRUCTION["digits"], [32, 8, 32], "64-32-8-32-64 on digits, ReLU"),
    ("photo-autoencoder", grey_patches, [48, 16, 48], "64-48-16-48-64 on grey photo patches, ReLU"),
    (
        "photo-autoencoder-large",
        grey_patches,
        [1536, 32, 1536],
        "64-1536-32-1536-64 on the same, 0.3 million parameters",
    ),
):
    fixed(_name, _description, _reconstructed(_source), partial(MLP, 64, 64, _hidden), family="autoencoder")
