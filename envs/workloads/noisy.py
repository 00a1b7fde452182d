"""Wrong labels, rare classes, few examples for large networks, and wide networks."""

from __future__ import annotations

from functools import partial

import numpy as np
from torch.nn import functional as F

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Examples, Source, breast_cancer, choose_source, split
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import batch_size, log_integer, pick, style

__all__ = ["noisy_labels", "overfit", "wide_mlp"]

CLASSES: dict[str, Source] = {
    "teacher": synthetic.teacher_classification,
    "blobs": synthetic.blobs,
    "spirals": synthetic.spirals,
    "words": synthetic.bag_of_words,
    "breast-cancer": lambda _: breast_cancer(),
}
VALUES: dict[str, Source] = {
    "teacher-values": synthetic.teacher_regression,
    "friedman": synthetic.friedman,
    "waves": synthetic.fourier_regression,
}


def _mlp(
    rng: np.random.Generator,
    family: str,
    examples: Examples,
    hidden: list[int],
    train_size: int,
    *,
    label_noise: float = 0.0,
    imbalance: float = 0.0,
    largest_batch: int = 128,
) -> Workload:
    train, heldout = split(rng, examples, train_size, label_noise=label_noise, imbalance=imbalance)
    return Workload(
        name=f"{family}/{examples.name}",
        family=family,
        make_model=partial(MLP, train[0].shape[1], examples.classes or train[1].shape[1], hidden, **style(rng)),
        train=train,
        heldout=heldout,
        loss=F.cross_entropy if examples.classes else F.mse_loss,
        batch_size=batch_size(rng, len(train[0]), largest_batch),
        accuracy=bool(examples.classes),
    )


@register_workload("noisy-labels", description="MLP on wrong labels (up to half of them) and rare classes")
def noisy_labels(rng: np.random.Generator) -> Workload:
    """A classifier large enough to learn wrong labels by heart; the held-out labels are true."""
    examples = choose_source(rng, CLASSES, None)
    hidden = [log_integer(rng, 32, 128)] * pick(rng, {1: 2, 2: 2, 3: 1})
    wrong = rng.uniform(0.15, 0.5) if rng.random() < 0.75 else 0.0
    rare = rng.uniform(0.5, 2.5) / (examples.classes - 1) * 2 if wrong == 0.0 or rng.random() < 0.3 else 0.0
    size = log_integer(rng, 150, 1500)
    return _mlp(rng, "noisy-labels", examples, hidden, size, label_noise=wrong, imbalance=rare)


@register_workload("overfit", description="Large MLP on 30-150 examples: the held-out loss turns round")
def overfit(rng: np.random.Generator) -> Workload:
    """Few examples, many weights: the held-out loss falls, and rises again if training goes on too fast."""
    examples = choose_source(rng, {**CLASSES, **VALUES}, None)
    hidden = [log_integer(rng, 32, 128)] * pick(rng, {1: 2, 2: 2, 3: 1})
    return _mlp(rng, "overfit", examples, hidden, log_integer(rng, 30, 150))


@register_workload("wide-mlp", description="MLP 256-512 wide, batches of 8-256")
def wide_mlp(rng: np.random.Generator) -> Workload:
    """One wide hidden layer, in some draws a narrow one after it."""
    examples = choose_source(rng, {**CLASSES, **VALUES}, None)
    hidden = [log_integer(rng, 256, 512)]
    if rng.random() < 0.3:
        hidden.append(log_integer(rng, 16, 64))
    return _mlp(rng, "wide-mlp", examples, hidden, log_integer(rng, 300, 2000), largest_batch=256)
