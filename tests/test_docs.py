"""Everything in README.md and docs/ that can be run is run, and every table is held against the code."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from rlrate.cli import app
from rlrate.control import LIMIT, SIGNALS, Interval, Signals
from rlrate.envs import TrainingConfig, TrainingRuns

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return [code for kind, code in BLOCK.findall(page.read_text("utf-8")) if kind == language]


def code_before(page: Path, code: str) -> str:
    """Newlines in place of what stands before the code, so that a traceback shows the page's line."""
    text = page.read_text("utf-8")
    return "\n" * text[: text.index(code)].count("\n")


def table(page: Path, marker: str) -> list[list[str]]:
    """The rows of the table under ``<!-- marker -->``, without backticks."""
    _, found, rest = page.read_text("utf-8").partition(f"<!-- {marker} -->\n")
    assert found, f"{name(page)} has no table marked {marker!r}"
    lines = rest.lstrip("\n").partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_every_block_says_its_language() -> None:
    kinds = {kind for page in PAGES for kind, _ in BLOCK.findall(page.read_text("utf-8"))}
    assert kinds <= {"python", "bash", "text", "toml", "json"}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path))  # else a folder beside all temporary ones, for good
    # Blocks of a page are read one after another, and run so.
    namespace: dict[str, Any] = {"__name__": "documentation"}
    for code in blocks(page, "python"):
        exec(compile(code_before(page, code) + code, name(page), "exec"), namespace)


def commands(page: Path) -> list[tuple[str, bool]]:
    """Command lines, and whether they are whole: those of bash blocks are, those in running text may not be."""
    whole = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    text = BLOCK.sub("", page.read_text("utf-8"))
    inline = [code for code in re.findall(r"`([^`\n]+)`", text) if re.match(r"(rlrate|make) [a-z]", code)]
    return [(line, True) for line in whole if line.strip()] + [(line, False) for line in inline]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist_with_their_options(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    group: Any = typer.main.get_command(app)
    for line, whole in commands(page):
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "rlrate":
            command = group.commands.get(words[1])
            assert command is not None, line
            options = {text for parameter in command.params for text in parameter.opts} | {"--help", "--debug"}
            assert {word for word in words[2:] if word.startswith("-")} <= options, line
            if whole:
                command.make_context(words[1], words[2:])
        else:
            assert words[0] in ("git", "cd", "pip", "tensorboard", "python"), line
            if words[0] == "python":
                assert words[1] == "-m" and importlib.util.find_spec(words[2]), line


def test_links_between_pages_lead_somewhere() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text("utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{name(page)}: {target}")
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "docs/examples").glob("*.py")), ids=name)
def test_families_of_the_examples_differ_from_draw_to_draw_and_train(path: Path) -> None:
    config = TrainingConfig(workload=f"{path}:make", optimizer="adam", steps=200)
    draws = [TrainingRuns.sample(config, (0, 0, index), range(2)) for index in range(2)]
    shapes = [[tuple(p.shape[1:]) for p in runs.population.parameters] for runs in draws]
    assert shapes[0] != shapes[1]
    runs = draws[0]
    runs.begin()
    first = runs.heldout_loss
    while not runs.done:
        runs.step(np.full(2, 0.3))
    assert not runs.diverged.any() and (runs.heldout_loss < 0.5 * first).all()


def test_each_command_is_documented_with_all_its_options() -> None:
    text = (ROOT / "docs/commands.md").read_text("utf-8")
    group: Any = typer.main.get_command(app)
    for command, details in group.commands.items():
        section = text.partition(f"## rlrate {command}\n")[2].partition("\n## ")[0]
        assert section, f"docs/commands.md has no section on {command}"
        options = {max(parameter.opts, key=len) for parameter in details.params if parameter.opts[0].startswith("-")}
        missing = {option for option in options if f"`{option}" not in section}
        assert not missing, f"docs/commands.md, {command}: {missing}"


@pytest.mark.parametrize(
    ("page", "cls"),
    [
        ("docs/scheduler.md", "rlrate.control.Action"),
        ("docs/scheduler.md", "rlrate.control.Cadence"),
        ("docs/environments.md", "rlrate.envs.TrainingConfig"),
        ("docs/training.md", "rlrate.agents.Recipe"),
    ],
)
def test_tables_of_settings_hold_every_field_and_its_default(page: str, cls: str) -> None:
    module, _, attribute = cls.rpartition(".")
    fields = dataclasses.fields(getattr(importlib.import_module(module), attribute))

    def default(field: Any) -> str:
        if field.default is not dataclasses.MISSING:
            return repr(field.default)
        value = field.default_factory()
        return repr(value) if isinstance(value, dict) else f"{type(value).__name__}()"

    expected = [[field.name, default(field)] for field in fields]
    assert [row[:2] for row in table(ROOT / page, cls)] == expected


def test_the_table_of_signals_is_that_of_the_code() -> None:
    rows = table(ROOT / "docs/environments.md", "rlrate.control.SIGNALS")
    assert [row[0] for row in rows] == list(SIGNALS)


def test_signals_stay_within_the_documented_ranges() -> None:
    rows = table(ROOT / "docs/environments.md", "rlrate.control.SIGNALS")
    low, high = np.array([[float(end) for end in row[2].split("..")] for row in rows]).T
    assert low.min() == -LIMIT and high.max() == LIMIT
    rng = np.random.default_rng(0)
    seen = np.concatenate([observations(rng) for _ in range(100)])
    outside = (seen < low - 1e-5) | (seen > high + 1e-5)
    assert not outside.any(), [name for name, bad in zip(SIGNALS, outside.any(axis=0), strict=True) if bad]
    # A range that is far too wide documents nothing.
    assert (seen.max(axis=0) >= low + 0.6 * (high - low)).all()


def observations(rng: np.random.Generator) -> np.ndarray:
    """What successive, otherwise arbitrary intervals of three runs look like."""
    signals = Signals(tuple(SIGNALS), 3)
    result = []
    action = rng.uniform(-1, 1, 3)
    for decision in range(8):
        g, p, u = rng.normal(size=(3, 4, 3, 5)) * 10.0 ** rng.uniform(-9, 9, (3, 4, 3, 1))
        sums = [(a * b).sum(-1) for a, b in ((g, g), (g, p), (p, p), (u, u), (u, u), (-g, u), (u, u))]
        interval = Interval(
            progress=rng.uniform(),
            decisions=decision * 3,
            updates=int(10 ** rng.uniform(0, 14)),
            loss=rng.lognormal(0, 5, 3) * rng.choice([1.0, 1.0, -1.0]),
            noise=rng.lognormal(0, 9, 3),
            slope=rng.normal(0, 100, 3),
            samples=np.stack(sums, axis=1),
            update_ratio=10.0 ** rng.uniform(-15, 15, 3),
            layer_ratio=10.0 ** rng.uniform(-15, 15, 3),
            rate_initial=rng.normal(0, 30, 3),
            action=action,
            cuts=rng.integers(0, 5, 3).astype(float),
            capped=rng.integers(0, 2, 3).astype(float),
            validation=10.0 ** rng.uniform(-9, 9, 3),
            adaptive=rng.integers(0, 2, 3).astype(float),
            momentum=1.0 - 10.0 ** rng.uniform(-4, 0, 3),
            epoch=np.floor(10.0 ** rng.uniform(0, 9, 3)),
            done=int(10 ** rng.uniform(0, 9)),
            total=int(10 ** rng.uniform(0, 9)),
        )
        result.append(signals.observe(interval))
    return np.concatenate(result)
