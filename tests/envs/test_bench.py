"""What `rlrate bench environment` prints; how fast it is, is for the command to tell."""

from __future__ import annotations

from typing import cast

import pytest

from rlrate.envs import TrainingConfig, bench


def test_the_share_is_measured_for_given_and_for_drawn_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "BUDGETS", (200,))
    monkeypatch.setattr(bench, "DRAWN", 1)
    report = bench.environment_overhead(networks=2, repeats=1)
    assert list(report) == ["200", "default"]
    low, high = cast("tuple[int, int]", TrainingConfig().steps)
    assert report["default"]["budgets"] == [round((low * high) ** 0.5)]
    for figures in report.values():
        assert 0 < figures["share"] < 1 and figures["decisions_per_second"] > 0


def test_populations_are_measured_beside_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    make, shape, _ = bench.BENCHMARKS["mlp_64_64_10"]
    monkeypatch.setitem(bench.BENCHMARKS, "mlp_64_64_10", (make, shape, (1, 3)))
    report = bench.population_throughput(["mlp_64_64_10"], repeats=1, seconds=0.01)
    figures = report["mlp_64_64_10"]
    assert set(report) == {"threads", "mlp_64_64_10"} and set(figures["sizes"]) == {"1", "3"}
    best = figures["sizes"][str(figures["best_size"])]
    assert figures["best_ratio"] == best["ratio"] == max(size["ratio"] for size in figures["sizes"].values())
    assert best["ratio"] == pytest.approx(best["updates_per_second"] / figures["plain"])
