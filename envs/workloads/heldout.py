"""Fixed workloads on held-out data that the other files lack: by them a controller is judged, never trained."""

from __future__ import annotations

from functools import partial

from rlrate.envs.workloads.data import digits, documents
from rlrate.envs.workloads.fixed import drawn, fixed
from rlrate.envs.workloads.models import MLP
from rlrate.envs.workloads.tabular import photo_pixels

__all__: list[str] = []

DIGITS = drawn(lambda _: digits(), 2500)

fixed(
    "digits-deep-narrow",
    "12 hidden layers of 16 on digits, ReLU, Kaiming weights",
    DIGITS,
    partial(MLP, 64, 10, [16] * 12, init="kaiming"),
    family="deep",
)
fixed(
    "digits-wide",
    "64-384-10 MLP on digits, ReLU, batches of 64",
    DIGITS,
    partial(MLP, 64, 10, [384]),
    family="wide",
    batch_size=64,
)
fixed(
    "digits-noisy-labels",
    "64-96-10 MLP on digits, 40 % of the training labels drawn at random",
    drawn(lambda _: digits(), 2500, label_noise=0.4),
    partial(MLP, 64, 10, [96]),
    family="noisy",
)
fixed(
    "digits-small",
    "64-64-64-10 MLP on 100 digits",
    drawn(lambda _: digits(), 100),
    partial(MLP, 64, 10, [64, 64]),
    family="small-data",
    batch_size=20,
)
fixed(
    "digits-mlp-large",
    "64-640-640-10 MLP on digits, 0.46 million parameters",
    DIGITS,
    partial(MLP, 64, 10, [640, 640]),
    family="large",
)
fixed(
    "documents-softmax",
    "Linear softmax model on counts of words, 11 classes",
    drawn(lambda _: documents(), 2500),
    partial(MLP, 300, 11),
    family="linear",
)
fixed(
    "photo-pixels-mlp",
    "2-64-64-1 MLP, tanh: brightness of a photograph's pixel from its place",
    drawn(photo_pixels, 2500),
    partial(MLP, 2, 1, [64, 64], activation="tanh"),
    family="regression",
)
