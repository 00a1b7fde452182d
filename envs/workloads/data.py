"""Real data that comes with scikit-learn, and how examples become the tensors of a workload.

Nothing is downloaded. scikit-learn is imported when data are first asked for, and what was loaded
is kept for the life of the process.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlrate.envs.workload import Split
from rlrate.errors import WorkloadError

__all__ = [
    "ALPHABET",
    "Array",
    "Examples",
    "Source",
    "breast_cancer",
    "choose_source",
    "diabetes",
    "digits",
    "documents",
    "encode_text",
    "iris",
    "photo_patches",
    "photos",
    "split",
    "standardise",
    "text",
    "wine",
]

T = TypeVar("T")
Array: TypeAlias = npt.NDArray[Any]

#: Files of scikit-learn that describe data sets in words; the text of the character workloads.
DESCRIBED = (
    "breast_cancer",
    "california_housing",
    "covtype",
    "diabetes",
    "digits",
    "iris",
    "kddcup99",
    "lfw",
    "rcv1",
    "twenty_newsgroups",
    "wine_data",
)

#: Characters of the text workloads. Letters are lower case, digits are "0", all else is "*".
ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0.,-*"


@dataclass(frozen=True)
class Examples:
    """Examples before they are split.

    Attributes:
        name: What a workload's name says about its data.
        inputs: float32, first axis = examples.
        targets: int64 classes of shape (examples,), or float32 values.
        classes: The number of classes; 0 if the targets are not classes.
        unit_scale: True if every input is on one scale (pixels, counts, bits), so that a single
            mean and deviation standardise all of them.
    """

    name: str
    inputs: Array
    targets: Array
    classes: int = 0
    unit_scale: bool = False

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.inputs)


Source: TypeAlias = Callable[[np.random.Generator], Examples]


def _sklearn_datasets() -> Any:
    try:
        return importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise WorkloadError(
            "this workload's data come with scikit-learn, which is not installed; "
            'install it with: pip install "rlrate[train]".'
        ) from error


def _table(name: str, classes: int, unit_scale: bool = False) -> Examples:
    bunch = getattr(_sklearn_datasets(), f"load_{name}")()
    targets = bunch.target.astype(np.int64 if classes else np.float32)
    return Examples(
        name=name.replace("_", "-"),
        inputs=bunch.data.astype(np.float32),
        targets=targets if classes else targets[:, None],
        classes=classes,
        unit_scale=unit_scale,
    )


@lru_cache(maxsize=1)
def digits() -> Examples:
    """Handwritten digits: 1797 pictures of 8 x 8 pixels, 10 classes; inputs (1797, 64)."""
    return _table("digits", 10, unit_scale=True)


@lru_cache(maxsize=1)
def breast_cancer() -> Examples:
    """Breast cancer, Wisconsin: 569 tumours, 30 measurements, 2 classes."""
    return _table("breast_cancer", 2)


@lru_cache(maxsize=1)
def wine() -> Examples:
    """Wine: 178 wines, 13 measurements, 3 classes."""
    return _table("wine", 3)


@lru_cache(maxsize=1)
def iris() -> Examples:
    """Iris: 150 flowers, 4 measurements, 3 classes."""
    return _table("iris", 3)


@lru_cache(maxsize=1)
def diabetes() -> Examples:
    """Diabetes: 442 patients, 10 measurements, progression after a year; targets (442, 1)."""
    return _table("diabetes", 0)


@lru_cache(maxsize=1)
def photos() -> tuple[Array, ...]:
    """The photographs china.jpg and flower.jpg as (427, 640, 3) float32 arrays in [0, 1]."""
    datasets = _sklearn_datasets()
    try:
        pictures = [datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    except ImportError as error:
        raise WorkloadError(
            "reading scikit-learn's photographs needs Pillow; install it with: pip install pillow."
        ) from error
    return tuple(picture.astype(np.float32) / 255.0 for picture in pictures)


@lru_cache(maxsize=1)
def photo_patches() -> Examples:
    """Patches of the two photographs that do not overlap: (8480, 3, 8, 8), class = photograph."""
    patches, side = [], 8
    for photo in photos():
        rows, columns = photo.shape[0] // side, photo.shape[1] // side
        grid = photo[: rows * side, : columns * side].reshape(rows, side, columns, side, 3)
        patches.append(grid.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side))
    labels = np.repeat(np.arange(len(patches)), [len(group) for group in patches])
    return Examples("photos", np.concatenate(patches), labels, len(patches), unit_scale=True)


@lru_cache(maxsize=1)
def text() -> str:
    """The descriptions of scikit-learn's data sets, in the characters of `ALPHABET`."""
    return "\n".join(_descriptions())


def encode_text(characters: str) -> Array:
    """The place of every character in `ALPHABET`, as int64."""
    return np.array([ALPHABET.index(character) for character in characters], dtype=np.int64)


@lru_cache(maxsize=1)
def documents() -> Examples:
    """Which description does a passage come from? 15 words a passage, counts of 300 words."""
    passages: list[list[str]] = []
    labels: list[int] = []
    for label, description in enumerate(_descriptions()):
        words = re.findall("[a-z]+", description)
        chunks = [words[start : start + 15] for start in range(0, len(words) - 14, 15)]
        passages += chunks
        labels += [label] * len(chunks)
    frequent: dict[str, int] = {}
    for word in (word for passage in passages for word in passage):
        frequent[word] = frequent.get(word, 0) + 1
    ranked = sorted(frequent, key=lambda word: (-frequent[word], word))[:300]
    column = {word: index for index, word in enumerate(ranked)}
    counts = np.zeros((len(passages), len(column)), dtype=np.float32)
    for row, passage in enumerate(passages):
        for word in passage:
            if word in column:
                counts[row, column[word]] += 1
    return Examples("documents", counts, np.array(labels, dtype=np.int64), len(DESCRIBED), unit_scale=True)


def _descriptions() -> list[str]:
    _sklearn_datasets()
    folder = resources.files("sklearn.datasets.descr")
    return [_simplify((folder / f"{name}.rst").read_text(encoding="utf-8")) for name in DESCRIBED]


def _simplify(characters: str) -> str:
    characters = re.sub("[0-9]", "0", characters.lower())
    characters = re.sub("[^" + re.escape(ALPHABET) + "]", "*", characters)
    # Rules, indentation and tables would teach a model little but runs of one character.
    return re.sub(r"([*\-\s0])\1+", r"\1", characters)


def choose_source(
    rng: np.random.Generator,
    sources: Mapping[str, Callable[[np.random.Generator], T]],
    only: Sequence[str] | None,
) -> T:
    """The data of one of a family's sources, all equally likely.

    Args:
        rng: Chooses the source and whatever the source leaves open.
        sources: The family's sources by name.
        only: Restrict the choice to these names, so that some data can be held out.

    Raises:
        WorkloadError: ``only`` is empty or has a name that is no source.
    """
    names = list(sources if only is None else only)
    unknown = [name for name in names if name not in sources]
    if unknown or not names:
        raise WorkloadError(f"unknown data {', '.join(unknown) or '(none given)'}; choose from {', '.join(sources)}.")
    return sources[names[int(rng.integers(len(names)))]](rng)


def standardise(train: Array, heldout: Array, *, unit_scale: bool = False) -> tuple[Array, Array]:
    """Shift and scale both parts to mean 0, deviation 1 of the training part.

    Per feature (all axes but the first), or with one mean and deviation if ``unit_scale``. A
    feature that is constant in training is shifted only.
    """
    axis = None if unit_scale else 0
    mean, deviation = train.mean(axis=axis), train.std(axis=axis)
    scale = np.where(deviation > 1e-6 * (np.abs(mean) + 1e-12), deviation, 1.0)
    return (train - mean) / scale, (heldout - mean) / scale


def split(
    rng: np.random.Generator,
    examples: Examples,
    train_size: int,
    heldout_size: int = 256,
    *,
    label_noise: float = 0.0,
    imbalance: float = 0.0,
) -> tuple[Split, Split]:
    """Draw disjoint training and held-out rows, standardise, and make tensors.

    Args:
        rng: Draws the rows and the noise.
        examples: What to draw from. At least a third of it stays for the held-out part, unless that
            is more than ``heldout_size``.
        train_size: Training examples wanted; fewer if there are not as many.
        heldout_size: Held-out examples wanted.
        label_noise: Share of the training labels replaced by a random class. The held-out labels
            stay true.
        imbalance: Class ``k`` is drawn with a weight of ``exp(-imbalance * k)``.

    Returns:
        (inputs, targets) for training and the same held out. Inputs are standardised by training
        statistics, and so are targets that are not classes.
    """
    total = len(examples)
    heldout_size = min(heldout_size, total // 3)
    train_size = min(train_size, total - heldout_size)
    weights = None
    if imbalance and examples.classes:
        weights = np.exp(-imbalance * examples.targets.astype(np.float64))
        weights /= weights.sum()
    rows = rng.choice(total, size=train_size + heldout_size, replace=False, p=weights)
    # Weighted draws without replacement use up the likely rows first: shuffle before splitting.
    rows = rng.permutation(rows)
    first, second = rows[:train_size], rows[train_size:]
    inputs = standardise(examples.inputs[first], examples.inputs[second], unit_scale=examples.unit_scale)
    targets = examples.targets[first], examples.targets[second]
    if not examples.classes:
        targets = standardise(*targets)
    elif label_noise:
        wrong = rng.random(train_size) < label_noise
        random = rng.integers(examples.classes, size=train_size)
        targets = np.where(wrong, random, targets[0]), targets[1]
    train, heldout = (_tensors(*part) for part in zip(inputs, targets, strict=True))
    return train, heldout


def scale_columns(rng: np.random.Generator, part: Sequence[Split], decades: float) -> list[Split]:
    """Multiply the input columns of all parts by one set of factors, spread over ``decades``."""
    columns = part[0][0].shape[1]
    exponents = rng.uniform(-decades / 2, decades / 2, size=columns)
    factors = torch.from_numpy((10.0**exponents).astype(np.float32))
    return [(inputs * factors, targets) for inputs, targets in part]


def as_images(examples: Examples, shape: tuple[int, int, int]) -> Examples:
    """The same examples with inputs of shape (examples, channels, height, width)."""
    return replace(examples, inputs=examples.inputs.reshape(-1, *shape))


def _tensors(inputs: Array, targets: Array) -> Split:
    return _tensor(inputs), _tensor(targets)


def _tensor(values: Array) -> Tensor:
    kind = np.int64 if np.issubdtype(values.dtype, np.integer) else np.float32
    return torch.from_numpy(np.ascontiguousarray(values, dtype=kind))
