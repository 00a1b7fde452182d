"""Refinement: what detours were worth over many rollouts moves the policy at once."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sklearn.kernel_ridge import KernelRidge
from stable_baselines3.common.buffers import RolloutBuffer
from threadpoolctl import threadpool_info, threadpool_limits

from rlrate import Controller
from rlrate.agents import Recipe, refinement, train
from rlrate.agents.checkpoint import read_checkpoint
from rlrate.agents.refinement import Detours, Refinement, refine
from rlrate.agents.rollout import DETOUR, BranchingPolicy
from rlrate.errors import ConfigError

BRANCH = {"siblings": {"branch": True, "hold": 3}, "iterations": 5}


def entries(tiny: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**tiny, "environment": {**tiny["environment"], "siblings": 2}, **BRANCH, **more}


def parted(begin: list[int], length: list[int], noise: list[float], worth: list[float]) -> RolloutBuffer:
    """A rollout of 8 decisions by pairs, of which each parts as told; a run gains by its detour what is told."""
    runs = 2 * len(begin)
    box = spaces.Box(-4.0, 4.0, (3,)), spaces.Box(-1.0, 1.0, (1,))
    buffer = RolloutBuffer(8, *box, device="cpu", n_envs=runs)
    rng = np.random.default_rng(0)
    for group, (first, span, size, slope) in enumerate(zip(begin, length, noise, worth, strict=True)):
        pair = slice(2 * group, 2 * group + 2)
        buffer.observations[:, pair] = rng.normal(size=(8, 1, 3))
        buffer.actions[:, pair] = rng.normal(size=(8, 1, 1))
        buffer.actions[first : first + span, pair, 0] += [-size, size]
        buffer.values[first : first + span, pair] = size != 0.0
        buffer.rewards[:, pair] = rng.normal(size=(8, 1))
        far = size * len(buffer.values[first : first + span]) / DETOUR
        buffer.rewards[7, pair] += np.array([-slope, slope]) * far
    return buffer


def test_the_worth_of_a_detour_is_the_slope_of_returns_over_how_far_it_went() -> None:
    buffer = parted([0, 5, 2], [2, 3, 6], [0.9, 0.3, 0.1], [0.5, -0.25, 0.05])
    found = Detours.of(buffer, 2)
    np.testing.assert_allclose(found.worth, [0.5, -0.25, 0.05], atol=1e-5)
    np.testing.assert_array_equal(found.observations, buffer.observations[[0, 5, 2], [0, 2, 4]])
    ends = buffer.actions[[0, 5, 2], [0, 2, 4], 0], buffer.actions[[0, 5, 2], [1, 3, 5], 0]
    np.testing.assert_allclose(found.answers, (ends[0] + ends[1]) / 2, atol=1e-6)


def test_more_than_two_siblings_are_fitted_a_line() -> None:
    buffer = RolloutBuffer(4, spaces.Box(-4.0, 4.0, (2,)), spaces.Box(-1.0, 1.0, (1,)), device="cpu", n_envs=4)
    noise = np.array([0.2, -0.6, 0.6, -0.2])
    buffer.actions[1:3, :, 0] = 0.1 + noise
    buffer.values[1:3] = 1.0
    # Half a nat for the longest detour, and something that no line explains.
    buffer.rewards[3] = 0.5 * noise * 2 / DETOUR + 0.01 * np.array([3.0, 1.0, -1.0, -3.0])
    assert float(Detours.of(buffer, 4).worth[0]) == pytest.approx(0.5, abs=1e-5)


def test_one_detour_counts_for_a_nat_at_most_and_none_for_nothing() -> None:
    found = Detours.of(parted([1, 1, 1], [2, 2, 2], [0.5, 0.5, 0.0], [9.0, -9.0, 1.0]), 2)
    assert found.worth.tolist() == [1.0, -1.0]
    assert Detours.pooled([found, found]).observations.shape == (4, 3)


def policy() -> BranchingPolicy:
    torch.manual_seed(0)
    return BranchingPolicy(
        spaces.Box(-4.0, 4.0, (3,)), spaces.Box(-1.0, 1.0, (1,)), lambda _: 1e-3, net_arch=[32, 32], siblings=2, span=8
    )


def answers(of: BranchingPolicy, seen: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return of.forward(seen, deterministic=True)[0][:, 0]


def test_answers_move_to_the_better_side_though_luck_is_ten_times_larger() -> None:
    generator = torch.Generator().manual_seed(1)
    seen = torch.randn(3_000, 3, generator=generator)
    truth = 0.05 * torch.sign(seen[:, 1])
    luck = 0.5 * torch.randn(len(seen), generator=generator)
    of, fresh = policy(), torch.randn(2_000, 3, generator=generator)
    before = answers(of, fresh)
    settings = Refinement(after=0, every=1, pool=1, step=2.0, epochs=10)
    moved = refine(of, Detours(seen, answers(of, seen), truth + luck), settings)
    difference = answers(of, fresh) - before
    assert moved == pytest.approx(float(difference.square().mean().sqrt()), rel=0.2)
    clear = fresh[:, 1].abs() > 0.5
    assert torch.corrcoef(torch.stack([difference, fresh[:, 1].sign()]))[0, 1] > 0.8
    np.testing.assert_allclose((difference * fresh[:, 1].sign())[clear].mean(), 2.0 * 0.05, atol=0.03)


def test_the_regression_is_solved_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several, OpenBLAS ends the process at as many detours as the recipe `default` has: no size for a test."""
    threads: list[int] = []

    class Watched(KernelRidge):  # type: ignore[misc]
        def fit(self, *data: Any) -> KernelRidge:
            threads.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
            return super().fit(*data)

    monkeypatch.setattr(refinement, "KernelRidge", Watched)
    seen = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    with threadpool_limits(2, user_api="blas"):
        refine(policy(), Detours(seen, torch.zeros(50), torch.zeros(50)), Refinement(0, 1, 1, epochs=1))
        outside = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    assert set(threads) == {1} and set(outside) == {2}


def test_where_nothing_is_worth_anything_the_policy_stays() -> None:
    seen = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    of = policy()
    before = answers(of, seen)
    assert refine(of, Detours(seen, before, torch.zeros(500)), Refinement(0, 1, 1)) < 1e-6
    np.testing.assert_allclose(answers(of, seen), before, atol=1e-6)


def test_what_an_earlier_policy_answered_still_tells_where_the_best_answer_lies() -> None:
    """Returns that fall as the square of the distance from 0.3, learned from a policy that had answered 0."""
    seen = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    earlier = torch.zeros(500)
    of = policy()
    for _ in range(3):  # again and again the same detours: it must not go further each time
        refine(of, Detours(seen, earlier, (0.3 - earlier) / 2.0), Refinement(0, 1, 1, step=2.0))
    np.testing.assert_allclose(answers(of, seen), 0.3, atol=0.1)


def test_ppo_comes_first_and_the_policy_then_moves_at_refinements_only(tiny: dict[str, Any], tmp_path: Path) -> None:
    policies: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name, more in (("plain", {}), ("refined", {"refinement": {"after": 1, "every": 2, "pool": 2}})):
        kept = policies.setdefault(name, [])
        out = tmp_path / name

        def keep(done: int, *_: Any, out: Path = out, kept: list[dict[str, torch.Tensor]] = kept) -> None:
            if done > 1:  # the checkpoint is of the rollout before
                kept.append(read_checkpoint(out)["policy"])

        train(Recipe.from_dict(entries(tiny, **more)), out, progress=keep)
        kept.append(read_checkpoint(out)["policy"])

    def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
        return all((one[key] == other[key]).all() for key in one if "policy_net" in key or "action_net" in key)

    plain, refined = policies["plain"], policies["refined"]
    assert same(plain[0], refined[0]) and not same(plain[1], refined[1])
    assert [same(a, b) for a, b in itertools.pairwise(refined)] == [True, False, True, False]


def test_a_resumed_training_keeps_its_detours(tiny: dict[str, Any], tmp_path: Path) -> None:
    recipe = Recipe.from_dict(entries(tiny, refinement={"after": 1, "every": 4, "pool": 4}))
    whole = Controller.load(train(recipe, tmp_path / "whole"))

    def stop(done: int, *_: Any) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", progress=stop)
    assert len(read_checkpoint(tmp_path / "stopped")["pool"]) == 3
    assert Controller.load(train(out=tmp_path / "stopped", resume=True)) == whole


def refining(**more: Any) -> dict[str, Any]:
    return {"refinement": {"after": 1, "every": 2, "pool": 2, **more}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (refining(every=3), "every = 3 rollouts at a time, .* the 4 that are left after 1 of 5"),
        (refining(after=5, every=1), "the 0 that are left after 5 of 5"),
        ({"refinement": {"after": 1, "every": 2}}, "refinement: .*pool"),
        (refining(after=-1), "refinement.after must be an integer, at least 0, got -1"),
        (refining(every=2.0), "refinement.every must be an integer, at least 1, got 2.0"),
        (refining(pool=0), "refinement.pool must be an integer, at least 1, got 0"),
        (refining(step=0), "refinement.step must be a positive number, got 0"),
        (refining(steps=1), "refinement: .*steps"),
        ({**refining(), "siblings": {"hold": 3}}, "set siblings.branch = true"),
    ],
)
def test_what_is_refused(tiny: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(entries(tiny, **more))
