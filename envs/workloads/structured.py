"""Networks as most users build them, on pictures of strokes and on signals that vary most in one direction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlrate.envs.workload import Workload
from rlrate.envs.workloads import synthetic
from rlrate.envs.workloads.data import Array, Examples, Source
from rlrate.envs.workloads.ordinary import autoencoder, classifier, convolutions, regression
from rlrate.envs.workloads.registry import register_workload
from rlrate.envs.workloads.sampling import log_integer, log_uniform, pick

__all__ = ["strokes", "structured", "switches", "walks"]

SIZE = synthetic.SIZE


def strokes(rng: np.random.Generator) -> Examples:
    """Pictures (1, 8, 8) of a few straight lines per class, each end of which trembles, in noise."""
    classes, lines = int(rng.integers(3, 11)), int(rng.integers(2, 5))
    ends = rng.uniform(0.1, 0.9, size=(classes, lines, 2, 2))
    labels = rng.integers(classes, size=SIZE)
    ends = ends[labels] + log_uniform(rng, 0.02, 0.12) * rng.normal(size=(SIZE, lines, 2, 2))
    begin, along = ends[:, :, 0], ends[:, :, 1] - ends[:, :, 0]
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 8), np.linspace(0, 1, 8), indexing="ij"), axis=-1)
    apart = grid[None, None] - begin[:, :, None, None]
    share = (apart * along[:, :, None, None]).sum(axis=-1) / (np.square(along).sum(axis=-1)[..., None, None] + 1e-9)
    nearest = apart - np.clip(share, 0.0, 1.0)[..., None] * along[:, :, None, None]
    ink = np.exp(-np.square(nearest).sum(axis=-1) / rng.uniform(0.07, 0.14) ** 2).max(axis=1)
    pictures = ink[:, None] + log_uniform(rng, 0.01, 0.5) * rng.normal(size=(SIZE, 1, 8, 8))
    return Examples("strokes", pictures.astype(np.float32), labels.astype(np.int64), classes, unit_scale=True)


def walks(rng: np.random.Generator) -> Examples:
    """Random walks of 24 to 80 steps that are drawn back to zero more or less; the targets are unused."""
    steps, kept = log_integer(rng, 24, 80), 1.0 - log_uniform(rng, 0.003, 0.3)
    series = np.zeros((SIZE, steps))
    shocks = rng.normal(size=(SIZE, steps))
    series[:, 0] = shocks[:, 0]
    for step in range(1, steps):
        series[:, step] = kept * series[:, step - 1] + shocks[:, step]
    return _series(rng, "walks", series)


def switches(rng: np.random.Generator) -> Examples:
    """Signals of 24 to 80 samples that jump one to five times, and stay; the targets are unused."""
    steps = log_integer(rng, 24, 80)
    time, series = np.linspace(0, 1, steps), np.zeros((SIZE, steps))
    for _ in range(int(rng.integers(1, 6))):
        series += rng.normal(size=(SIZE, 1)) * (time > rng.uniform(size=(SIZE, 1)))
    return _series(rng, "switches", series)


def _series(rng: np.random.Generator, name: str, series: Array) -> Examples:
    series = series / series.std() + log_uniform(rng, 0.003, 0.3) * rng.normal(size=series.shape)
    return Examples(name, series.astype(np.float32), np.zeros((SIZE, 1), np.float32), unit_scale=True)


SIGNALS: dict[str, Source] = {"walks": walks, "switches": switches}
PICTURES: dict[str, Source] = {"strokes": strokes}


def _classes(source: Source) -> Source:
    """Which output of a random network is the largest at each signal."""

    def make(rng: np.random.Generator) -> Examples:
        signals, classes = source(rng), int(rng.integers(2, 11))
        labels = synthetic.teacher(rng, signals.inputs, classes).argmax(axis=1)
        return replace(signals, targets=labels.astype(np.int64), classes=classes)

    return make


def _values(source: Source) -> Source:
    """The output of a random network at each signal."""

    def make(rng: np.random.Generator) -> Examples:
        signals = source(rng)
        values = synthetic.teacher(rng, signals.inputs, int(rng.integers(1, 5)))
        return replace(signals, targets=values.astype(np.float32))

    return make


@register_workload("structured", description="MLP, CNN or autoencoder of strokes, walks and switches")
def structured(rng: np.random.Generator) -> Workload:
    """The tasks and networks of `ordinary`, on pictures of strokes and on signals with memory."""
    task = pick(rng, {"classifier": 2, "convolutions": 4, "signals": 1, "regression": 1, "autoencoder": 4})
    if task == "convolutions":
        workload = convolutions(rng, PICTURES)
    elif task == "classifier":
        workload = classifier(rng, PICTURES)
    elif task == "signals":
        workload = classifier(rng, {name: _classes(source) for name, source in SIGNALS.items()})
    elif task == "regression":
        workload = regression(rng, {name: _values(source) for name, source in SIGNALS.items()})
    else:
        workload = autoencoder(rng, {**SIGNALS, **PICTURES})
    return replace(workload, name=f"structured/{workload.name.partition('/')[2]}-{task}", family="structured")
