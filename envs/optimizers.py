"""The optimizers that training runs use, by name, with default or randomised settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlrate.control import OptimizerTraits
from rlrate.errors import ConfigError, unknown_name

__all__ = ["OPTIMIZERS", "OptimizerSpec", "make_optimizer"]


@dataclass(frozen=True)
class OptimizerSpec:
    """A torch optimizer and its settings, without a learning rate.

    Attributes:
        name: A key of `OPTIMIZERS`.
        kwargs: Arguments of the torch class besides ``params`` and ``lr``; those not given keep the
            defaults that ``name`` stands for.

    Raises:
        ConfigError: Unknown name, a learning rate among the settings, or ``maximize``.
    """

    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(unknown_name("optimizer", self.name, OPTIMIZERS))
        for setting in ("lr", "maximize"):
            if setting in self.kwargs:
                raise ConfigError(
                    f"{setting} is not a setting of an OptimizerSpec, which minimises at the "
                    "learning rate of each run; leave it out."
                )

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments of the torch class that differ from torch's own defaults."""
        return {**OPTIMIZERS[self.name].defaults, **self.kwargs}

    @property
    def traits(self) -> OptimizerTraits:
        """What a controller is told of the optimizer."""
        return OptimizerTraits.of(self.build([torch.zeros(1, requires_grad=True)], lr=1.0).param_groups[0])

    def build(self, params: Iterable[Tensor], lr: float | Tensor, **overrides: Any) -> torch.optim.Optimizer:
        """Return the torch optimizer for ``params``; ``overrides`` replace single settings."""
        make = cast(Callable[..., torch.optim.Optimizer], OPTIMIZERS[self.name].torch_class)
        return make(params, lr=lr, **{**self.settings, **overrides})


@dataclass(frozen=True)
class OptimizerFamily:
    """What a name in `OPTIMIZERS` stands for.

    Attributes:
        torch_class: The class in ``torch.optim``.
        defaults: Settings that the name implies.
        randomise: Draws settings from a generator.
        fused: Whether the class has a fused implementation.
        decoupled: Whether weight decay shrinks the weights directly instead of entering the
            gradient.
    """

    torch_class: type[torch.optim.Optimizer]
    defaults: Mapping[str, Any]
    randomise: Callable[[np.random.Generator], dict[str, Any]]
    fused: bool = True
    decoupled: bool = False


def make_optimizer(spec: str | OptimizerSpec, rng: np.random.Generator | None = None) -> OptimizerSpec:
    """Return the optimizer called ``spec``.

    Args:
        spec: A key of `OPTIMIZERS`, or an `OptimizerSpec`, which is returned as it is.
        rng: Draws settings (momentum, betas, weight decay and so on) from ranges used in practice;
            without it the settings are torch's defaults, and momentum 0.9 where the name has it.

    Raises:
        ConfigError: Unknown name; the message lists close matches.
    """
    if isinstance(spec, OptimizerSpec):
        return spec
    if not isinstance(spec, str) or spec not in OPTIMIZERS:
        raise ConfigError(unknown_name("optimizer", spec, OPTIMIZERS))
    return OptimizerSpec(spec, {} if rng is None else OPTIMIZERS[spec].randomise(rng))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _memory(rng: np.random.Generator, low: float, high: float) -> float:
    """A decay factor whose memory 1 / (1 - factor) is log-uniform, as factors near 1 differ most."""
    return 1.0 - _log_uniform(rng, 1.0 - high, 1.0 - low)


def _weight_decay(rng: np.random.Generator, low: float, high: float, share: float) -> float:
    used, value = rng.random() < share, _log_uniform(rng, low, high)
    return value if used else 0.0


def _sgd(rng: np.random.Generator) -> dict[str, Any]:
    return {"weight_decay": _weight_decay(rng, 1e-5, 5e-3, 0.5)}


def _momentum(rng: np.random.Generator) -> dict[str, Any]:
    return {"momentum": _memory(rng, 0.8, 0.99), **_sgd(rng)}


def _adagrad(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "initial_accumulator_value": float(rng.choice([0.0, 0.01, 0.1])),
        "eps": _log_uniform(rng, 1e-10, 1e-7),
        "weight_decay": _weight_decay(rng, 1e-5, 1e-3, 0.25),
    }


def _rmsprop(rng: np.random.Generator) -> dict[str, Any]:
    heavy_ball, momentum = rng.random() < 0.3, _memory(rng, 0.8, 0.95)
    return {
        "alpha": _memory(rng, 0.9, 0.997),
        "eps": _log_uniform(rng, 1e-8, 1e-6),
        "momentum": momentum if heavy_ball else 0.0,
        "centered": bool(rng.random() < 0.2),
        "weight_decay": _weight_decay(rng, 1e-5, 1e-3, 0.25),
    }


def _adam(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "betas": (_memory(rng, 0.8, 0.95), _memory(rng, 0.95, 0.9995)),
        "eps": _log_uniform(rng, 1e-8, 1e-6),
        "weight_decay": _weight_decay(rng, 1e-5, 1e-3, 0.25),
    }


def _adamw(rng: np.random.Generator) -> dict[str, Any]:
    return {**_adam(rng), "weight_decay": _log_uniform(rng, 1e-3, 0.3)}


#: Every optimizer by name.
OPTIMIZERS: dict[str, OptimizerFamily] = {
    "sgd": OptimizerFamily(torch.optim.SGD, {}, _sgd),
    "momentum": OptimizerFamily(torch.optim.SGD, {"momentum": 0.9}, _momentum),
    "nesterov": OptimizerFamily(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, _momentum),
    "adagrad": OptimizerFamily(torch.optim.Adagrad, {}, _adagrad),
    "rmsprop": OptimizerFamily(torch.optim.RMSprop, {}, _rmsprop, fused=False),
    "adam": OptimizerFamily(torch.optim.Adam, {}, _adam),
    "adamw": OptimizerFamily(torch.optim.AdamW, {}, _adamw, decoupled=True),
}
