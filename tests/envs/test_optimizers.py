from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec, make_optimizer
from rlrate.errors import ConfigError


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_default_settings_are_those_of_torch(name: str) -> None:
    built = make_optimizer(name).build([torch.zeros(2)], 0.5)
    given = {"momentum": {"momentum": 0.9}, "nesterov": {"momentum": 0.9, "nesterov": True}}
    make: Any = type(built)
    expected = make([torch.zeros(2)], lr=0.5, **given.get(name, {}))
    assert built.defaults == expected.defaults


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_randomised_settings_vary_with_the_seed_and_build(name: str) -> None:
    draws = [make_optimizer(name, np.random.default_rng(seed)) for seed in range(20)]
    assert draws[3] == make_optimizer(name, np.random.default_rng(3))
    assert len({tuple(sorted(draw.kwargs.items())) for draw in draws}) > 5
    for draw in draws:
        built = draw.build([torch.zeros(2)], 0.1)
        assert isinstance(built, OPTIMIZERS[name].torch_class)
        assert built.param_groups[0]["lr"] == 0.1
        if "momentum" in draw.kwargs and name != "rmsprop":
            assert 0.8 <= draw.kwargs["momentum"] <= 0.99


def test_a_specification_is_returned_as_it_is() -> None:
    spec = OptimizerSpec("adam", {"betas": (0.5, 0.9)})
    assert make_optimizer(spec, np.random.default_rng(0)) is spec


def test_settings_override_what_the_name_implies() -> None:
    built = OptimizerSpec("momentum", {"momentum": 0.5}).build([torch.zeros(2)], 1.0)
    assert built.defaults["momentum"] == 0.5


@pytest.mark.parametrize("make", [make_optimizer, OptimizerSpec])
def test_unknown_optimizer(make: type[OptimizerSpec]) -> None:
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adamm': did you mean 'adam'"):
        make("adamm")


@pytest.mark.parametrize("setting", ["lr", "maximize"])
def test_settings_that_a_population_decides(setting: str) -> None:
    with pytest.raises(ConfigError, match=setting):
        OptimizerSpec("sgd", {setting: 1})
