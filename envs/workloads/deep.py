"""Deep and narrow networks, whose training breaks down at rates that shallow ones bear."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Source, choose_source, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import ACTIVATIONS, INITS, batch_size, log_integer, log_uniform, pick

__all__ = ["deep_mlp"]

DATA: dict[str, Source] = {
    "teacher": synthetic.teacher_classification,
    "blobs": synthetic.blobs,
    "spirals": synthetic.spirals,
    "teacher-regression": synthetic.teacher_regression,
    "friedman": synthetic.friedman,
    "waves": synthetic.fourier_regression,
}


@register_workload("deep-mlp", description="6-20 narrow layers, with and without LayerNorm and residual paths")
def deep_mlp(rng: np.random.Generator, only: Sequence[str] | None = None) -> Workload:
    """A deep MLP; ``only`` restricts the data to names of `DATA`.

    The product of the layers' gains, not the gain of one layer, is drawn: from a signal that all but vanishes to one
    that is thirty times too large.
    """
    examples = choose_source(rng, DATA, only)
    train, heldout = split(rng, examples, log_integer(rng, 200, 2000))
    depth, width = log_integer(rng, 6, 20), log_integer(rng, 6, 24)
    norm = pick(rng, {"none": 5, "layer": 3, "rms": 1})
    residual = bool(rng.random() < 0.5)
    gain = float(np.exp(rng.uniform(-3.0, 3.4)) ** (1 / depth)) if rng.random() < 0.5 else 1.0
    if residual and norm == "none":
        gain *= depth**-0.5  # else the sum of the branches grows with every layer
    return Workload(
        name=f"deep-mlp/{examples.name}",
        family="deep-mlp",
        make_model=partial(
            MLP,
            train[0].shape[1],
            examples.classes or train[1].shape[1],
            [width] * depth,
            activation=pick(rng, ACTIVATIONS),
            norm=norm,
            residual=residual,
            init=pick(rng, {**INITS, "kaiming": 4, "orthogonal": 3}),
            gain=gain,
        ),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy if examples.classes else partial(F.huber_loss, delta=log_uniform(rng, 0.3, 3.0)),
        batch_size=batch_size(rng, len(train[0])),
        accuracy=bool(examples.classes),
    )
