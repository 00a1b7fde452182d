"""What the detours that a training remembers were worth, and how much of it could be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlrate.agents import Recipe, train
from rlrate.agents.refinement import Detours, Refinement
from rlrate.agents.rollout import BranchingPolicy
from rlrate.experiments.detours import main, sources, standard_error, told

SETTINGS = Refinement(after=0, every=1, pool=9, step=2.0, epochs=5)

#: Standard deviation of it, twice what is to be told.
LUCK = 0.2


def policy() -> BranchingPolicy:
    torch.manual_seed(0)
    return BranchingPolicy(
        spaces.Box(-4.0, 4.0, (3,)), spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3, net_arch=[32, 32], siblings=2, span=8
    )


def pool(of: BranchingPolicy, worth_of: Any) -> list[Detours]:
    """Six rollouts of 350 detours from a policy, whose worth is a function of what was seen, and luck."""
    generator = torch.Generator().manual_seed(1)
    rollouts = []
    for _ in range(6):
        seen = torch.randn(350, 3, generator=generator)
        with torch.no_grad():
            answers = of.forward(seen, deterministic=True)[0][:, 0]
        rollouts.append(Detours(seen, answers, worth_of(seen) + LUCK * torch.randn(350, generator=generator)))
    return rollouts


def test_what_a_signal_tells_is_found_out_of_sample() -> None:
    of = policy()
    found = told(of, pool(of, lambda seen: 0.1 * seen[:, 1]), SETTINGS)
    assert found.correlation == pytest.approx(0.1 / np.hypot(0.1, LUCK), abs=0.08)
    assert found.gain == pytest.approx(2.0 * 0.1**2, rel=0.4)
    assert found.moved == pytest.approx(2.0 * 0.1, rel=0.4)
    assert found.gain > 5 * found.error


def test_luck_alone_tells_nothing_though_a_fit_finds_some_in_its_own_detours() -> None:
    of = policy()
    found = told(of, pool(of, lambda seen: torch.zeros(len(seen))), SETTINGS)
    assert abs(found.correlation) < 3 / np.sqrt(2100) and abs(found.gain) < 3 * found.error + 1e-4
    assert found.moved > 0.01


def test_errors_are_those_between_rollouts() -> None:
    of = policy()
    rng = np.random.default_rng(0)
    source = sources(pool(of, lambda seen: seen[:, 0]))
    assert np.bincount(source).tolist() == [350] * 6
    common = rng.normal(size=6)
    values = common[source] + 1e-3 * rng.normal(size=2100)
    assert standard_error(values, source) == pytest.approx(common.std(ddof=1) / np.sqrt(6), rel=0.01)
    assert np.isnan(standard_error(values[:350], source[:350]))


def test_the_command_looks_into_a_training(
    tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = {
        **tiny,
        "iterations": 3,
        "environment": {**tiny["environment"], "siblings": 2},
        "siblings": {"branch": True, "hold": 3},
        "signals": ["progress", "loss_fast", "optimizer_adaptive", "optimizer_momentum"],
    }
    train(Recipe.from_dict({**entries, "refinement": {"after": 1, "every": 2, "pool": 3}}), tmp_path / "run")
    main([str(tmp_path / "run")])
    printed = capsys.readouterr().out
    count = Recipe.from_dict(entries).runs // 2 * 3
    assert f"{count} detours of 3 rollouts; nats for the longest, upwards: " in printed
    assert "told by 4 signals, out of sample: correlation " in printed
    assert "optimizers without momentum: " in printed and "progress " in printed
    main([str(tmp_path / "run"), "--last", "2"])
    assert f"{count // 3 * 2} detours of 2 rollouts" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="takes at least 2, got 1"):
        main([str(tmp_path / "run"), "--last", "1"])
    train(Recipe.from_dict(entries), tmp_path / "plain")
    with pytest.raises(SystemExit, match="plain remembers no detours; its recipe has no entry refinement"):
        main([str(tmp_path / "plain")])
    with pytest.raises(SystemExit, match="no checkpoint"):
        main([str(tmp_path / "nothing")])
