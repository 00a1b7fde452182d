"""Synthetic data: each function draws a task, then examples of it, from one generator."""

from __future__ import annotations

import numpy as np

from rlrate.envs.workloads.data import Array, Examples
from rlrate.envs.workloads.sampling import log_integer, log_uniform

__all__ = [
    "bag_of_words",
    "blobs",
    "fields",
    "fourier_regression",
    "friedman",
    "linear_classification",
    "linear_regression",
    "manifold",
    "parity",
    "prototypes",
    "smooth_fields",
    "sparse_codes",
    "spirals",
    "teacher",
    "teacher_classification",
    "teacher_regression",
    "textures",
]

SIZE = 2500  # examples drawn per synthetic task, before the split


def teacher(rng: np.random.Generator, inputs: Array, outputs: int) -> Array:
    """Outputs of a random network with one or two hidden layers of tanh, of deviation 1."""
    hidden = inputs
    for _ in range(int(rng.integers(1, 3))):
        width, fan_in = log_integer(rng, 4, 32), hidden.shape[1]
        weight = rng.normal(size=(fan_in, width)) * log_uniform(rng, 0.7, 3.0) / np.sqrt(fan_in)
        hidden = np.tanh(hidden @ weight + 0.5 * rng.normal(size=width))
    values = hidden @ rng.normal(size=(hidden.shape[1], outputs))
    values = (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-9)
    return np.asarray(values)


def _gaussian_inputs(rng: np.random.Generator, low: int = 4, high: int = 48) -> Array:
    """Gaussian inputs, their covariance a random rotation of a spectrum of up to two decades."""
    dimension = log_integer(rng, low, high)
    spectrum = 10.0 ** np.linspace(0, -rng.uniform(0, 2), dimension)
    rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    return np.asarray(rng.normal(size=(SIZE, dimension)) * np.sqrt(spectrum) @ rotation)


def _classes(name: str, inputs: Array, labels: Array, classes: int, **kwargs: bool) -> Examples:
    return Examples(name, inputs.astype(np.float32), labels.astype(np.int64), classes, **kwargs)


def _values(name: str, inputs: Array, values: Array, noise: Array | float = 0.0) -> Examples:
    targets = (values + noise).astype(np.float32)
    return Examples(name, inputs.astype(np.float32), targets.reshape(len(inputs), -1))


def _noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Array | float:
    """None in a third of the draws; else Gaussian or heavy-tailed, of a scale from 0.01 to 1."""
    if rng.random() < 1 / 3:
        return 0.0
    scale = log_uniform(rng, 0.01, 1.0)
    heavy = rng.random() < 0.3
    noise = rng.standard_t(2.5, size=shape) if heavy else rng.normal(size=shape)
    return np.asarray(scale * noise)


def teacher_classification(rng: np.random.Generator) -> Examples:
    """The most likely class under a random network, 2 to 10 classes."""
    inputs, classes = _gaussian_inputs(rng), int(rng.integers(2, 11))
    return _classes("teacher", inputs, teacher(rng, inputs, classes).argmax(axis=1), classes)


def blobs(rng: np.random.Generator) -> Examples:
    """Gaussian clusters, up to three per class, that overlap more or less."""
    dimension, classes = log_integer(rng, 2, 32), int(rng.integers(2, 9))
    clusters = classes * int(rng.integers(1, 4))
    centres = rng.normal(size=(clusters, dimension)) * log_uniform(rng, 0.7, 3.0)
    which = rng.integers(clusters, size=SIZE)
    inputs = centres[which] + rng.normal(size=(SIZE, dimension))
    return _classes("blobs", inputs, which % classes, classes)


def spirals(rng: np.random.Generator) -> Examples:
    """Interleaved arms of a spiral in the plane: small inputs, a boundary hard to bend."""
    arms, turns = int(rng.integers(2, 5)), rng.uniform(0.5, 1.5)
    which, radius = rng.integers(arms, size=SIZE), np.sqrt(rng.uniform(0.02, 1, size=SIZE))
    angle = 2 * np.pi * (turns * radius + which / arms) + 0.1 * rng.normal(size=SIZE)
    inputs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return _classes("spirals", inputs, which, arms)


def parity(rng: np.random.Generator) -> Examples:
    """Parity of two or three among 12 to 20 bits: the loss stays on a plateau before it falls."""
    bits, relevant = int(rng.integers(12, 21)), int(rng.integers(2, 4))
    rows = rng.choice(2**bits, size=SIZE, replace=False)
    inputs = (rows[:, None] >> np.arange(bits)) & 1
    columns = rng.choice(bits, size=relevant, replace=False)
    labels = inputs[:, columns].sum(axis=1) % 2
    return _classes("parity", inputs, labels, 2, unit_scale=True)


def linear_classification(rng: np.random.Generator) -> Examples:
    """Classes drawn from a linear-logistic model on correlated inputs."""
    inputs, classes = _gaussian_inputs(rng, 8, 128), int(rng.integers(2, 7))
    weight = rng.normal(size=(inputs.shape[1], classes))
    logits = inputs @ weight
    logits *= log_uniform(rng, 0.5, 8.0) / logits.std()
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return _classes("linear", inputs, labels, classes)


def bag_of_words(rng: np.random.Generator) -> Examples:
    """Counts of words in short documents: sparse, frequencies by Zipf's law, class = topic."""
    words, classes = log_integer(rng, 50, 300), int(rng.integers(2, 9))
    frequency = 1.0 / np.arange(1, words + 1) ** rng.uniform(0.7, 1.2)
    tilt = np.exp(rng.uniform(0.3, 1.2) * rng.normal(size=(classes, words)))
    topics = frequency * tilt
    topics /= topics.sum(axis=1, keepdims=True)
    labels = rng.integers(classes, size=SIZE)
    counts = rng.poisson(topics[labels] * log_uniform(rng, 10, 60))
    return _classes("words", counts, labels, classes, unit_scale=True)


def teacher_regression(rng: np.random.Generator) -> Examples:
    """Outputs of a random network, one to four of them, with or without noise."""
    inputs = _gaussian_inputs(rng)
    values = teacher(rng, inputs, int(rng.integers(1, 5)))
    return _values("teacher", inputs, values, _noise(rng, values.shape))


def linear_regression(rng: np.random.Generator) -> Examples:
    """A linear function of correlated inputs: without noise the loss falls by many decades."""
    inputs = _gaussian_inputs(rng)
    values = inputs @ rng.normal(size=(inputs.shape[1], 1))
    values /= values.std()
    return _values("linear", inputs, values, _noise(rng, values.shape))


def friedman(rng: np.random.Generator) -> Examples:
    """Friedman's first function of 5 among 5 to 12 inputs (Friedman 1991, Annals of Statistics)."""
    x = rng.uniform(size=(SIZE, int(rng.integers(5, 13))))
    values = (10 * np.sin(np.pi * x[:, 0] * x[:, 1]) + 20 * (x[:, 2] - 0.5) ** 2 + 10 * x[:, 3] + 5 * x[:, 4]) / 5
    return _values("friedman", x, values, _noise(rng, values.shape))


def fourier_regression(rng: np.random.Generator) -> Examples:
    """A sum of random waves in one to three dimensions, slow to fit where frequencies are high."""
    dimension, waves = int(rng.integers(1, 4)), int(rng.integers(2, 9))
    x = rng.uniform(-1, 1, size=(SIZE, dimension))
    frequency = rng.normal(size=(dimension, waves)) * log_uniform(rng, 1.0, 8.0)
    phase, amplitude = rng.uniform(0, 2 * np.pi, waves), rng.normal(size=waves)
    values = np.sin(x @ frequency + phase) @ amplitude
    return _values("waves", x, values / (values.std() + 1e-9), _noise(rng, values.shape))


def textures(rng: np.random.Generator) -> Examples:
    """Pictures (channels, 8, 8) of one wave per class, at a random place, in noise."""
    classes, channels = int(rng.integers(2, 9)), int(rng.integers(1, 4))
    frequency = rng.uniform(-2.5, 2.5, size=(classes, 2))
    colour = rng.normal(size=(classes, channels))
    labels = rng.integers(classes, size=SIZE)
    rows, columns = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    phase = rng.uniform(0, 2 * np.pi, size=(SIZE, 1, 1))
    fy, fx = frequency[labels].T[:, :, None, None]
    wave = np.sin(fy * rows + fx * columns + phase)
    pictures = colour[labels][:, :, None, None] * wave[:, None]
    pictures = pictures + log_uniform(rng, 0.3, 2.0) * rng.normal(size=pictures.shape)
    return _classes("textures", pictures, labels, classes, unit_scale=True)


def manifold(rng: np.random.Generator) -> Examples:
    """Points near a curved surface of 2 to 6 dimensions in 24 to 80; the targets are unused."""
    latent, ambient = int(rng.integers(2, 7)), log_integer(rng, 24, 80)
    points = teacher(rng, rng.normal(size=(SIZE, latent)), ambient)
    points = points + log_uniform(rng, 0.003, 0.3) * rng.normal(size=points.shape)
    return Examples("manifold", points.astype(np.float32), np.zeros((SIZE, 1), np.float32))


def smooth_fields(rng: np.random.Generator, count: int, decay: float) -> Array:
    """Random pictures (count, 8, 8) whose spectrum falls with the frequency to the power ``-decay``."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(8), np.fft.rfftfreq(8), indexing="ij"))
    noise = np.fft.rfft2(rng.normal(size=(count, 8, 8)))
    fields = np.fft.irfft2(noise / np.maximum(frequency, 1 / 8) ** decay, s=(8, 8))
    return np.asarray(fields / fields.std())


def prototypes(rng: np.random.Generator) -> Examples:
    """Pictures (channels, 8, 8): one or two smooth patterns per class, moved by a pixel or two, in noise."""
    classes, channels, each = int(rng.integers(2, 11)), int(rng.integers(1, 4)), int(rng.integers(1, 3))
    patterns = smooth_fields(rng, classes * each * channels, rng.uniform(0.5, 2.0)).reshape(-1, channels, 8, 8)
    which, reach = rng.integers(len(patterns), size=SIZE), int(rng.integers(0, 3))
    pictures = patterns[which]
    moves = rng.integers(-reach, reach + 1, size=(SIZE, 2))
    rows, columns = ((np.arange(8) + moves[:, k : k + 1]) % 8 for k in (0, 1))
    pictures = pictures[np.arange(SIZE)[:, None, None], :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
    pictures = pictures + log_uniform(rng, 0.1, 1.5) * rng.normal(size=pictures.shape)
    return _classes("prototypes", pictures, which % classes, classes, unit_scale=True)


def fields(rng: np.random.Generator) -> Examples:
    """Smooth random pictures as rows of 64 numbers; the targets are unused."""
    pictures = smooth_fields(rng, SIZE, rng.uniform(0.7, 2.5)).reshape(SIZE, -1)
    return Examples("fields", pictures.astype(np.float32), np.zeros((SIZE, 1), np.float32), unit_scale=True)


def sparse_codes(rng: np.random.Generator) -> Examples:
    """Sums of a few of 10 to 60 random atoms in 24 to 80 dimensions; the targets are unused."""
    atoms, ambient = int(rng.integers(10, 61)), log_integer(rng, 24, 80)
    used = (rng.random((SIZE, atoms)) < rng.uniform(1.5, 4) / atoms) * rng.exponential(size=(SIZE, atoms))
    points = used @ rng.normal(size=(atoms, ambient))
    points = points / (points.std() + 1e-9) + log_uniform(rng, 0.003, 0.3) * rng.normal(size=points.shape)
    return Examples("sparse-codes", points.astype(np.float32), np.zeros((SIZE, 1), np.float32), unit_scale=True)
