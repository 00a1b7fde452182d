"""Suites: readable files, honest budgets, and errors that name the file."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest

from rlrate import Controller
from rlrate.cli.comparing import compare as compare_command
from rlrate.envs import OPTIMIZERS
from rlrate.errors import ConfigError
from rlrate.experiments.cells import Cell, Run
from rlrate.experiments.methods import METHODS, entrant_names
from rlrate.experiments.plan import Plan
from rlrate.experiments.schedules import schedule_names
from rlrate.experiments.suite import GRID_CENTRE, Problem, Suite, load_suite, make_draw, suite_names

HEAD = 'title = "T"\nschedules = ["cosine"]\nentrants = ["learned"]\n'
PROBLEM = '[[problem]]\nworkload = "wine-mlp"\noptimizer = "adam"\nsteps = 10\n'


@pytest.mark.parametrize("name", suite_names())
def test_bundled_suites_can_be_read(name: str) -> None:
    suite = load_suite(name)
    assert suite.title and suite.name == name
    assert not set(suite.report_seeds) & set(range(suite.tuning_seeds))


def test_a_suite_may_extend_another(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "held-out"\ntitle = "Mine"\nseeds = 3\n')
    mine, base = load_suite(str(tmp_path / "mine.toml")), load_suite("held-out")
    assert mine == replace(base, name="mine", title="Mine", seeds=3)
    (tmp_path / "further.toml").write_text(f'extends = "mine.toml"\nentrants = ["learned"]\n{PROBLEM}')
    further = load_suite(str(tmp_path / "further.toml"))
    assert (further.seeds, further.entrants, len(further.problems)) == (3, ("learned",), 1)


def test_a_problem_with_several_optimizers_is_one_with_each(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(HEAD + PROBLEM.replace('"adam"', '["adam", "sgd"]'))
    problems = load_suite(str(tmp_path / "mine.toml")).problems
    assert problems == (Problem("wine-mlp", "adam", 10), Problem("wine-mlp", "sgd", 10))
    for wrong, message in (
        ("[]", "optimizer of 'wine-mlp' is an empty list"),
        ('["adamm"]', "unknown optimizer 'adamm'"),
    ):
        (tmp_path / "mine.toml").write_text(HEAD + PROBLEM.replace('"adam"', wrong))
        with pytest.raises(ConfigError, match=message):
            load_suite(str(tmp_path / "mine.toml"))


def test_the_crossed_suite_has_the_workloads_and_budgets_of_both_that_choose() -> None:
    crossed = load_suite("crossed").problems
    chosen_by = [problem for name in ("selection", "caution") for problem in load_suite(name).problems]
    assert len(crossed) == len(chosen_by) * len(GRID_CENTRE)
    assert {(p.workload, p.optimizer, p.steps, p.kind) for p in chosen_by} <= {
        (p.workload, p.optimizer, p.steps, p.kind) for p in crossed
    }
    assert {p.workload for p in crossed} == {p.workload for p in chosen_by}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "held-in"', "unknown suite 'held-in'"),
        ('extends = "gone.toml"', "there is no suite '.*gone.toml'"),
        ('extends = "mine.toml"', "leads back to the file itself"),
        ('extends = "held-out"\nsedes = 3', "unknown entry of suite 'sedes'"),
        ('extends = "held-out"\nstarts = 0', "mine.toml: starts must be true or false, got 0"),
    ],
)
def test_what_a_suite_cannot_extend(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_suite(str(tmp_path / "mine.toml"))


def test_the_suite_of_fifteen_seeds_has_the_problems_of_the_reference() -> None:
    more, reference = load_suite("held-out-15"), load_suite("held-out")
    assert more.problems == tuple(replace(problem, start=()) for problem in reference.problems)
    assert more.schedules == reference.schedules
    assert set(reference.report_seeds) < set(more.report_seeds) and more.tuning_seeds == reference.tuning_seeds


def test_the_four_suites_are_there() -> None:
    assert {"smoke", "held-out", "robustness", "optimizers"} <= set(suite_names())


@pytest.mark.parametrize("name", suite_names())
def test_the_command_line_names_every_bundled_suite(name: str) -> None:
    (option,) = get_type_hints(compare_command, include_extras=True)["suite"].__metadata__
    # As a name of its own: "held-out" is not named by "held-out-15".
    assert name in re.split(r"[,:] ", option.help)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD, "as \\[\\[problem\\]\\] tables"),
        (HEAD + PROBLEM + "lr = 1\n", "unknown entry of \\[\\[problem\\]\\] 'lr'"),
        (HEAD + "seed = 1\n" + PROBLEM, "did you mean 'seeds'"),
        (HEAD + PROBLEM.replace("10", "0"), "steps must be a positive integer, got 0"),
        (HEAD + PROBLEM.replace("steps = 10\n", ""), "lacks steps"),
        (HEAD + PROBLEM + PROBLEM, "two problems are called 'wine-mlp adam 10'"),
        (HEAD.replace("cosine", "cosin") + PROBLEM, "unknown schedule 'cosin'"),
        (HEAD.replace("learned", "cosine") + PROBLEM, "unknown entrant 'cosine'"),
        (HEAD + PROBLEM.replace("adam", "adm"), "unknown optimizer 'adm'"),
        (HEAD + PROBLEM + "start = [0.0]\n", "positive learning rates"),
        (HEAD.replace('["learned"]', '"learned"') + PROBLEM, "entrants must be a list"),
        ("seeds =", "mine.toml is not valid TOML: "),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_suite(str(path))
    assert str(caught.value).startswith(str(path))


def test_unknown_suites() -> None:
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_suite("smok")
    with pytest.raises(ConfigError, match=r"no suite 'gone.toml'"):
        load_suite("gone.toml")


def test_every_method_has_a_declaration_and_a_line_for_people() -> None:
    assert set(schedule_names()) | set(entrant_names()) == set(METHODS)
    assert set(OPTIMIZERS) < set(METHODS)
    for method in METHODS.values():
        assert method.what.endswith(".") or method.rate is not None
        assert method.group in ("schedule", "learned", "control", "default", "self-tuning", "search")
    assert METHODS["adam"].rate == 1e-3 and METHODS["adagrad"].rate == 1e-2


def test_every_row_states_its_budget_and_no_seed_is_tuned_and_reported() -> None:
    problem = Problem("wine-mlp", "adam", 10, start=(1e-3, 1.0))
    entrants = tuple(name for name in entrant_names() if not METHODS[name].validated)
    suite = Suite("s", "S", (problem,), entrants=entrants, seeds=3, tuning_seeds=2, rates=4)
    plan = Plan(suite, Controller.constant())
    cells = plan.first()
    tuned = [run for cell in cells for run in cell.runs if run.role == "tune"]
    assert len(tuned) == len(schedule_names()) * 4 * 2 and {run.seed for run in tuned} == {0, 1}
    reported = [run for cell in cells for run in cell.runs if run.role == "report"]
    assert {run.method for run in reported} == set(entrants)
    assert {run.seed for run in reported} == {1000, 1001, 1002}
    assert all(run.budget == METHODS[run.method].budget for run in reported)
    starts = [run for cell in cells for run in cell.runs if run.role == "start"]
    assert len(starts) == 3 * 2 * 3 and {run.start for run in starts} == {1e-3, 1.0}
    assert plan.runs == len(tuned) + len(reported) + len(starts) + len(schedule_names()) * 3
    keys = [cell.row_key(index) for cell in cells for index in range(len(cell.runs))]
    assert len(set(keys)) == len(keys)


def test_the_whole_grid_is_run_on_the_reported_seeds_where_the_suite_says_so(tmp_path: Path) -> None:
    problem = Problem("wine-mlp", "adam", 10)
    plain = Suite("s", "S", (problem,), schedules=("constant", "cosine"), seeds=3, rates=4)
    whole = replace(plain, whole_grid=True)
    assert "whole_grid" not in plain.to_dict() and whole.to_dict()["whole_grid"] is True
    before, after = Plan(plain, Controller.constant()), Plan(whole, Controller.constant())
    runs = [run for cell in after.first() for run in cell.runs if run.role == "grid"]
    assert {run.seed for run in runs} == {1000, 1001, 1002} and len(runs) == 2 * 4 * 3
    assert after.runs == before.runs + len(runs)
    assert not [run for cell in before.first() for run in cell.runs if run.role == "grid"]
    (path := tmp_path / "mine.toml").write_text(f"whole_grid = 1\n{SHOWN.format('')}", encoding="utf-8")
    with pytest.raises(ConfigError, match="whole_grid must be true or false, got 1"):
        load_suite(str(path))


SHOWN = """
title = "Shown"
schedules = ["constant"]
entrants = ["learned", "learned-validated"]
{}
[[problem]]
workload = "digits-mlp"
optimizer = "adam"
steps = 40
"""


def test_a_validation_part_is_set_aside_for_every_problem(tmp_path: Path) -> None:
    (path := tmp_path / "shown.toml").write_text(SHOWN.format("validation = 50"), encoding="utf-8")
    suite = load_suite(str(path))
    workload = make_draw(suite.problems[0]).workload
    whole = make_draw(Problem("digits-mlp", "adam", 40)).workload
    assert workload.validation is not None and len(workload.validation[0]) == 50
    assert len(workload.heldout[0]) == len(whole.heldout[0]) - 50
    assert suite.to_dict()["problems"][0]["validation"] == 50
    cells = Plan(suite, Controller.constant()).first()
    assert [cell.runs[0].method for cell in cells if cell.task == "controlled"] == ["learned", "learned-validated"]


def test_who_is_shown_a_validation_loss_needs_one(tmp_path: Path) -> None:
    (path := tmp_path / "shown.toml").write_text(SHOWN.format(""), encoding="utf-8")
    with pytest.raises(ConfigError, match="learned-validated is shown a validation loss, but digits-mlp"):
        load_suite(str(path))


def test_without_a_validation_part_files_are_what_they_were() -> None:
    problem = Problem("digits-mlp", "adam", 40)
    assert "validation" not in Suite("s", "S", (problem,)).to_dict()["problems"][0]
    run = Run("constant", "tune", 0, peak=0.1)
    assert Cell(problem, "schedules", (run,)).key == "70c0036b54e8bebe"
    assert Cell(replace(problem, validation=5), "schedules", (run,)).key != "70c0036b54e8bebe"


def test_problems_can_change_batch_width_and_depth() -> None:
    def sizes(**changes: float) -> list[tuple[int, ...]]:
        problem = Problem("digits-mlp", "adam", 10, **changes)  # type: ignore[arg-type]
        return [tuple(p.shape) for p in make_draw(problem).workload.make_model().parameters() if p.ndim == 2]

    assert sizes() == [(64, 64), (10, 64)]
    assert sizes(width=2) == [(128, 64), (10, 128)]
    assert sizes(depth=2) == [(64, 64), (64, 64), (10, 64)]
    assert make_draw(Problem("digits-mlp", "adam", 10, batch=7)).workload.batch_size == 7
    assert Problem("digits-mlp", "adam", 10, batch=7, width=2).name == "digits-mlp adam 10 batch 7 width x2"
    with pytest.raises(ConfigError, match="built-in MLP and ConvNet only"):
        make_draw(Problem("digits-gru", "adam", 10, width=2))
