"""The research figure: zero for the reference itself, worse for a worse controller."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rlrate import Controller
from rlrate.control import SIGNALS, Action, ControlSpec
from rlrate.envs import TrainingConfig
from rlrate.errors import ConfigError
from rlrate.experiments import regret as module
from rlrate.experiments import run_suite
from rlrate.experiments.regret import (
    RegretSet,
    between,
    duel,
    main,
    over_workloads,
    ratios,
    references,
    regrets,
    side_by_side,
)
from rlrate.experiments.store import load
from rlrate.experiments.suite import Problem, Suite

SMALL = RegretSet(families=("logistic-regression", "noisy-quadratic"), steps=(40, 60), draws=3, runs=2, seed=5)


def test_a_controller_that_does_nothing_is_far_behind_and_a_bold_one_is_closer() -> None:
    reference = references(SMALL)
    assert reference.shape == (3,) and np.isfinite(reference).all()
    idle = regrets(Controller.constant(-1.0), SMALL, reference)
    bold = regrets(Controller.constant(0.6), SMALL, reference)
    assert idle.shape == (3,)
    assert bold.mean() < idle.mean()
    np.testing.assert_array_equal(references(SMALL), reference)


def test_beside_a_comparison_a_schedule_that_learned_nothing_is_far_behind(tmp_path: Path) -> None:
    suite = Suite("tiny", "Tiny", (Problem("quadratic-20", "momentum", 40),), ("constant",), ("learned",), 2, 1, 5)
    results = run_suite(suite, tmp_path, controller=Controller.constant(0.6))
    ((name, (bold, rival)),) = ratios(Controller.constant(0.6), results).items()
    assert name == "quadratic-20 momentum 40" and rival.startswith("constant at ")
    learned = [row.heldout_loss for row in results.rows if row.method == "learned"]
    tuned = [row.heldout_loss for row in results.rows if row.method == "constant" and row.role == "report"]
    assert bold == pytest.approx(np.exp(np.mean(np.log(learned) - np.log(tuned))), rel=1e-4)
    assert ratios(Controller.constant(-1.0), results)[name][0] > bold


def test_two_comparisons_are_paired_by_problem_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("quadratic-20", "momentum", 40)
    for name, answer, seeds in (("bold", 0.6, 3), ("idle", -1.0, 2)):
        suite = Suite("tiny", "Tiny", (problem,), ("constant",), ("learned",), seeds, 1, 3)
        run_suite(suite, tmp_path / name, controller=Controller.constant(answer))
    bold, idle = (load(tmp_path / name) for name in ("bold", "idle"))
    ratio, parts = between(bold, idle, "learned")
    losses = [
        {row.seed: row.heldout_loss for row in results.rows if row.method == "learned"} for results in (bold, idle)
    ]
    expected = np.exp(np.mean([np.log(losses[0][seed] / losses[1][seed]) for seed in losses[1]]))
    assert len(losses[1]) == 2
    assert ratio.value == pytest.approx(expected) and ratio.high < 1.0
    assert parts == {"quadratic-20 momentum 40": pytest.approx(expected)}
    assert between(idle, bold, "learned")[0].value == pytest.approx(1.0 / expected)
    main(["--between", str(tmp_path / "bold"), str(tmp_path / "idle")])
    assert capsys.readouterr().out.startswith(f"learned: {expected:.3f} [")
    with pytest.raises(ConfigError, match="share no reported runs of 'replay'"):
        between(bold, idle, "replay")


def test_two_controllers_on_a_suite_are_what_two_comparisons_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = Suite("tiny", "Tiny", (Problem("quadratic-20", "momentum", 40),), ("constant",), ("learned",), 2, 1, 3)
    bold, idle = (Controller.constant(answer) for answer in (0.6, -1.0))
    kept = [run_suite(suite, tmp_path / str(n), controller=one) for n, one in enumerate((bold, idle))]
    ratio, parts = side_by_side(bold, idle, suite, suite.report_seeds)
    assert ratio == pytest.approx(between(kept[0], kept[1], "learned")[0], rel=1e-4)
    assert parts == {"quadratic-20 momentum 40": pytest.approx(ratio.value)}
    file = tmp_path / "tiny.toml"
    problem = '[[problem]]\nworkload = "quadratic-20"\noptimizer = "momentum"\nsteps = 40\n'
    file.write_text(f'title = "Tiny"\nschedules = ["constant"]\nseeds = 2\n{problem}')
    main(["--on", str(file), "0.6", "-1"])
    assert capsys.readouterr().out.startswith(f"0.6 / -1: {ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], 1 ")
    main(["--on", str(file), "--seeds", "2,4", "0.6", "0.6"])
    assert capsys.readouterr().out.startswith("0.6 / 0.6: 1.000 [1.000, 1.000], 1 problems")
    second = problem.replace("quadratic-20", "wine-mlp")
    file.write_text(f'title = "Tiny"\nschedules = ["constant"]\nseeds = 2\n{problem}{second}')
    main(["--on", str(file), "0.6", "0", "-1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if " / " in line] == ["0.6 / -1", "0 / -1"]
    assert [line.split(", ")[-1] for line in lines if "other workloads" in line] == ["2 workloads"] * 2
    assert not any("by optimizer" in line for line in lines)
    file.write_text(file.read_text().replace('"momentum"', '["momentum", "adam"]'))
    main(["--on", str(file), "0.6", "-1"])
    lines = capsys.readouterr().out.splitlines()
    printed = {name: float(value) for name, value in (line.strip().split(": ") for line in lines[1:5])}
    (found,) = (line for line in lines if "by optimizer" in line)
    for part in found.split(": ")[1].split(", "):
        name, value = part.split()
        own = [ratio for problem, ratio in printed.items() if f" {name} " in problem]
        assert float(value) == pytest.approx(np.exp(np.mean(np.log(own))), abs=2e-3) and len(own) == 2
    for seeds in ("4,2", "many"):
        with pytest.raises(SystemExit):
            main(["--on", str(file), "--seeds", seeds, "0.6", "0.6"])
        assert "--seeds FIRST,LAST" in capsys.readouterr().err


def test_workloads_that_several_problems_share_are_redrawn_together() -> None:
    rng = np.random.default_rng(0)
    own = rng.normal(0.1, 0.2, (12, 1, 1))  # what each of twelve workloads does, whatever the optimizer and the seed
    difference = (own + rng.normal(0, 0.01, (12, 7, 5))).reshape(84, 5)
    names = [f"w{index}" for index in range(12) for _ in range(7)]
    wide = over_workloads(difference, names)
    assert wide.value == pytest.approx(np.exp(difference.mean()))
    half = (np.log(wide.high) - np.log(wide.low)) / 2
    assert half == pytest.approx(1.96 * own.std(ddof=1) / np.sqrt(12), rel=0.25)
    apart = over_workloads(difference, [str(index) for index in range(84)])
    assert np.log(apart.high / apart.low) < 0.6 * 2 * half


def test_a_duel_is_paired() -> None:
    config = TrainingConfig(workload="noisy-quadratic", optimizer="momentum", steps=(60, 80))
    bold, idle = Controller.constant(0.5), Controller.constant(0.0)
    same = duel(bold, bold, config, draws=3, runs=2)
    assert same.value == same.low == same.high == 1.0
    ratio, back = duel(bold, idle, config, draws=3, runs=2), duel(idle, bold, config, draws=3, runs=2)
    assert ratio.high < 1.0
    assert ratio.value * back.value == pytest.approx(1.0)


def test_given_rates_are_judged_and_bad_requests_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Problem("quadratic-20", "momentum", 40, start=(1e-6, 10.0))
    run_suite(
        Suite("tiny", "Tiny", (problem,), ("constant",), ("learned",), 2, 1, 3),
        tmp_path,
        controller=Controller.constant(0.6),
    )
    main(["--starts", str(tmp_path)])
    assert capsys.readouterr().out == "4 learned runs from given rates: 0 diverged, losses differ by at most 0.00%\n"
    with pytest.raises(SystemExit):
        main(["--workload", "wine-mlp", "default"])
    assert "--workload compares two controllers" in capsys.readouterr().err


def test_references_are_kept_for_each_family(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, ...]] = []

    def reference(judged: RegretSet) -> np.ndarray:
        made.append(judged.families)
        return np.zeros(len(judged.families))

    monkeypatch.setattr(module, "references", reference)
    monkeypatch.setattr(module, "regrets", lambda controller, judged, reference: reference)
    cache = tmp_path / "regret.json"
    for _ in range(2):
        main(["0.5"], cache)
        main(["0.5", "--family", "ordinary"], cache)
    assert made == [RegretSet().families, ("ordinary",)]
    assert capsys.readouterr().out.count("0.5: mean +0.000") == 4
    with pytest.raises(SystemExit):
        main(["0.5", "--family", "digits-mlp"], cache)
    assert "ordinary" in capsys.readouterr().err


def test_controllers_are_told_of_epochs_and_shown_a_validation_loss_where_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.toml"
    problem = '[[problem]]\nworkload = "wine-mlp"\noptimizer = "adam"\nsteps = 100\n'
    file.write_text(f'title = "Tiny"\nschedules = ["constant"]\nseeds = 2\n{problem}')
    spec = ControlSpec(tuple(SIGNALS), action=Action(patience=1))
    plain = Controller.constant(0.2, spec)
    # Advises to stop where a validation loss is shown; which is heeded where epochs are told.
    shown = torch.tensor([[float(name == "validation_known") for name in SIGNALS]])
    advising = replace(plain, stop=((shown, torch.tensor([-0.5])),))
    files = (advising, "stops.safetensors"), (plain, "goes-on.safetensors")
    names = [str(one.save(tmp_path / name)) for one, name in files]

    def ratio(*told: str) -> float:
        main(["--on", str(file), "--seeds", "2,3", *told, *names])
        return float(capsys.readouterr().out.split(": ")[1].split()[0])

    assert ratio() == ratio("--untold", "--validation", "16") == 1.0
    assert ratio("--validation", "16") != 1.0
    with pytest.raises(SystemExit):
        ratio("--validation", "-1")
    assert "a number of examples, got -1" in capsys.readouterr().err
