"""Few examples of what can be told: all labels are true, and more examples would only tell it better."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.nn import functional as F

from rlrate.envs.workload import Loss, Workload
from rlrate.envs.workloads.data import Source, choose_source, split
from rlrate.envs.workloads.models import MLP, ConvNet
from rlrate.envs.workloads.ordinary import CLASSES, PICTURES, VALUES
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, log_uniform, pick
from rlrate.envs.workloads.structured import strokes

__all__ = ["few"]

SOURCES: dict[str, dict[str, Source]] = {
    "classes": {**CLASSES, "strokes": strokes},
    "pictures": {**PICTURES, "strokes": strokes},
    "values": VALUES,
}


@register_workload("few", description="MLP or CNN on 40-400 examples with true labels")
def few(rng: np.random.Generator) -> Workload:
    """A network that soon knows its examples by heart, which does the others little harm."""
    task = pick(rng, {"classes": 4, "pictures": 1, "values": 2})
    examples = choose_source(rng, SOURCES[task], None)
    train, heldout = split(rng, examples, log_integer(rng, 40, 400), heldout_size=512)
    style: dict[str, Any] = {
        "activation": pick(rng, {"relu": 5, "gelu": 1, "silu": 1, "tanh": 2}),
        "norm": pick(rng, {"none": 6, "layer" if task != "pictures" else "group": 1}),
        "gain": log_uniform(rng, 0.5, 1.5) if rng.random() < 0.3 else 1.0,
    }
    outputs = examples.classes or train[1].shape[1]
    make: Callable[[], nn.Module]
    if task == "pictures":
        channels = [log_integer(rng, 6, 16)] * pick(rng, {1: 1, 2: 2})
        deep, high, wide = train[0].shape[1:]
        make = partial(ConvNet, (deep, high, wide), outputs, channels, **style)
    else:
        hidden = [log_integer(rng, 16, 192)] * pick(rng, {1: 2, 2: 2, 3: 1})
        make = partial(MLP, int(np.prod(train[0].shape[1:])), outputs, hidden, **style)
    loss: Loss = F.cross_entropy if examples.classes else pick(rng, {F.mse_loss: 3, F.smooth_l1_loss: 1})
    return Workload(
        name=f"few/{examples.name}-{task}",
        family="few",
        make_model=make,
        train=train,
        heldout=heldout,
        loss=loss,
        batch_size=batch_size(rng, len(train[0]), 64),
        accuracy=bool(examples.classes),
    )
