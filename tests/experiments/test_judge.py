"""Judging controllers by many small draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlrate import Controller
from rlrate.agents import Outcome
from rlrate.envs.optimizers import OPTIMIZERS
from rlrate.errors import ConfigError
from rlrate.experiments.judge import RUNS, judge, main, outcomes


def drawn(improvements: list[float], families: list[str]) -> list[Outcome]:
    """Three equal runs of each draw."""
    return [
        Outcome(family, f"{family}/x", "adam", 300, 0.1, value, value, diverged=False)
        for family, value in zip(families, improvements, strict=True)
        for _ in range(RUNS)
    ]


def test_differences_are_averaged_over_draws_and_bounded() -> None:
    families = ["a", "a", "b", "b"]
    one, other = drawn([1.0, 2.0, 3.0, 12.0], families), drawn([0.5, 2.2, 3.0, 2.0], families)
    found = judge(one, other)
    values = [0.5, -0.2, 0.0, 1.0]  # ten nats count as one
    assert found.mean == pytest.approx(np.mean(values))
    assert found.error == pytest.approx(np.std(values, ddof=1) / 2)
    assert (found.better, found.worse) == (0.5, 0.25)
    assert {name: (round(mean, 9), n) for name, (mean, n) in found.families.items()} == {"a": (0.15, 2), "b": (0.5, 2)}
    assert set(found.optimizers) == {"adam"}
    assert found.optimizers["adam"] == pytest.approx((0.325, 4))


def test_what_ran_on_other_draws_cannot_be_compared() -> None:
    one = drawn([1.0, 2.0], ["a", "b"])
    with pytest.raises(ConfigError, match="the same draws"):
        judge(one, [replace(outcome, steps=301) for outcome in one])
    with pytest.raises(ConfigError, match="at least 2 draws, got 1"):
        outcomes(Controller.constant(), draws=1)


def test_the_command_compares_with_the_one_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    main(["0.2", "0", "--against", "0", "--draws", "2", "--workers", "1", "--steps", "40", "60"])
    first, better, families, optimizers, same, *_ = capsys.readouterr().out.splitlines()
    assert first == "0: 0 of 6 runs broke"
    assert better.startswith("0.2: +") and "better on" in better and families.startswith("  ")
    assert {part.split()[0] for part in optimizers.split(", ")} <= set(OPTIMIZERS)
    assert same.startswith("0: +0.000 nats (standard error 0.000), better on 0% and worse on 0% of 2 draws")


def test_draws_can_be_those_of_a_recipe(tmp_path: Path) -> None:
    (path := tmp_path / "mine.toml").write_text(
        'runs = 4\ndraws = 2\n[environment]\nsteps = [200, 210]\noptimizer = "adam"\n'
        "[environment.workload]\ndeep-mlp = 1\nwine-mlp = 1\n"
    )
    found = outcomes(Controller.constant(), draws=5, recipe=str(path))
    assert {outcome.optimizer for outcome in found} == {"adam"}
    assert all(200 <= outcome.steps <= 210 for outcome in found)
    assert len({outcome.family for outcome in found}) == 2


def test_the_lowest_loss_can_be_judged_instead_of_the_last() -> None:
    one, other = drawn([1.0, 2.0], ["a", "b"]), drawn([1.0, 2.0], ["a", "b"])
    one = [replace(outcome, best=outcome.best + 0.4) for outcome in one]
    found = {share: judge(one, other, share).mean for share in (0.0, 0.5, 1.0)}
    assert found == {0.0: 0.0, 0.5: pytest.approx(0.2), 1.0: pytest.approx(0.4)}
    with pytest.raises(ConfigError, match="best must lie in"):
        judge(one, other, 2.0)


def test_the_lowest_loss_of_a_run_is_not_above_its_last_one() -> None:
    found = outcomes(Controller.constant(), draws=8, steps=(40, 60))
    assert all(outcome.best >= outcome.improvement for outcome in found)
    assert any(outcome.best > outcome.improvement for outcome in found)
