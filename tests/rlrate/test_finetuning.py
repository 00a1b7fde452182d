"""Good weights are not wrecked by the start."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlrate import LearnedLR

datasets = pytest.importorskip("sklearn.datasets")
Data = tuple[Tensor, Tensor]


def digits() -> tuple[Data, Data]:
    loaded: Any = datasets.load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(loaded.data / 16, dtype=torch.float32)[order]
    targets = torch.tensor(loaded.target)[order]
    return (inputs[:1300], targets[:1300]), (inputs[1300:], targets[1300:])


def train(model: nn.Module, data: Data, steps: int, make: Any, seed: int) -> None:
    optimizer = make(model.parameters())
    scheduler = LearnedLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        chosen = torch.randint(len(data[0]), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(data[0][chosen]), data[1][chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step(loss)


def accuracy(model: nn.Module, data: Data) -> float:
    return float((model(data[0]).argmax(1) == data[1]).float().mean())


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, momentum=0.9), torch.optim.Adam], ids=["sgd", "adam"])
def test_a_trained_network_keeps_its_accuracy_when_it_is_trained_on(make: Any) -> None:
    training, heldout = digits()
    noise = [
        0.3 * torch.randn(part[0].shape, generator=torch.Generator().manual_seed(1)) for part in (training, heldout)
    ]
    renamed = torch.tensor([1, 0, 2, 3, 4, 5, 6, 7, 8, 9])
    gains = []
    for seed in range(2):
        torch.manual_seed(seed)
        trained = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        train(trained, training, 800, make, seed)
        assert accuracy(trained, heldout) > 0.95
        for before, after in (
            (training, heldout),
            ((training[0] + noise[0], training[1]), (heldout[0] + noise[1], heldout[1])),
            ((training[0], renamed[training[1]]), (heldout[0], renamed[heldout[1]])),
        ):
            model = copy.deepcopy(trained)
            train(model, before, 400, make, seed)
            gains.append(accuracy(model, after) - accuracy(trained, after))
    same, noisy, labels = np.array(gains).reshape(2, 3).mean(axis=0)
    # 497 examples are held out: 0.006 is three of them.
    assert same > -0.006 and noisy > -0.006 and labels > 0.1
