"""Files that were cut short, or of which a bit flipped: noticed or repaired, never another number."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rlrate import Controller, ControllerError, RlrateError
from rlrate.agents import train
from rlrate.agents.checkpoint import read_checkpoint
from rlrate.container import checksum
from rlrate.errors import ConfigError, ResultsError
from rlrate.experiments.store import load

import comparing
from scoreboard import cases

Make = Callable[..., Controller]
CUTS, FLIPS = cases(120, 500), cases(480, 2_000)
SECONDS = 2.0


def damaged(data: bytes, seed: int) -> Iterator[bytes]:
    """The data cut short, at both ends of it and anywhere, and with single bits flipped."""
    rng = random.Random(seed)
    ends = [*range(20), *range(len(data) - 20, len(data))]
    for length in [*ends, *(rng.randrange(len(data)) for _ in range(CUTS - len(ends)))]:
        yield data[:length]
    for number in range(FLIPS):
        changed = bytearray(data)
        # Half of them where the structure is, which is a small part of a large file.
        place = rng.randrange(min(len(data), 4096)) if number % 2 else rng.randrange(len(data))
        changed[place] ^= 1 << rng.randrange(8)
        yield bytes(changed)


class Stopwatch:
    """The longest that anything took, in seconds of processor time: waiting for others is no hang."""

    def __init__(self) -> None:
        self.longest = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *error: object) -> None:
        self.longest = max(self.longest, time.process_time() - self._began)


def test_controllers(make_controller: Make, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    path, watch, good = tmp_path / "c.safetensors", Stopwatch(), make_controller()
    noticed = tried = 0
    for content in damaged(good.save(path).read_bytes(), 1):
        path.write_bytes(content)
        tried += 1
        try:
            with watch:
                found = Controller.load(path)
        except ControllerError:
            noticed += 1
        else:  # another spelling of the same, such as of an escape in a text
            assert found == good and found.provenance == good.provenance
    assert noticed >= 0.99 * tried
    assert watch.longest < SECONDS
    record_property("cases", tried)
    record_property("longest read (CPU s)", round(watch.longest, 3))


def test_checkpoints(trained: Path, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Alone they are refused; where the one before is kept, it takes their place."""
    path, before, watch = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.previous.pt", Stopwatch()
    older = (trained / "checkpoint.previous.pt").read_bytes()
    tried = 0
    for number, content in enumerate(damaged((trained / "checkpoint.pt").read_bytes(), 2)):
        path.write_bytes(content)
        tried += 1
        with watch, pytest.raises(ConfigError, match=r"checkpoint.pt (is damaged|has checkpoint format)"):
            read_checkpoint(tmp_path)
        if number % 50 == 0:
            before.write_bytes(older)
            with watch:
                found = read_checkpoint(tmp_path)
            assert found["num_timesteps"] < read_checkpoint(trained)["num_timesteps"]
            before.unlink()
    assert watch.longest < SECONDS
    record_property("cases", tried)
    record_property("longest read (CPU s)", round(watch.longest, 3))


def test_results(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """An error, or the cells that come before a torn tail; never another number."""
    comparing.compare(tmp_path / "whole")
    rows = comparing.rows(tmp_path / "whole")
    known = {row["key"]: row for row in rows}
    data = (tmp_path / "whole/results.jsonl").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/suite.json").write_bytes((tmp_path / "whole/suite.json").read_bytes())
    watch, tried, noticed = Stopwatch(), 0, 0
    for content in damaged(data, 3):
        (tmp_path / "cut/results.jsonl").write_bytes(content)
        tried += 1
        try:
            with watch:
                found = comparing.rows(tmp_path / "cut")
        except ResultsError:
            noticed += 1
        else:
            assert all(known[row["key"]] == row for row in found)
            assert len(found) < len(rows)
            assert not load(tmp_path / "cut").complete
    assert noticed > CUTS, "most bits that flip are before the last cell"
    assert watch.longest < SECONDS
    record_property("cases", tried)
    record_property("longest read (CPU s)", round(watch.longest, 3))


def test_a_training_repairs_itself(trained: Path, tmp_path: Path) -> None:
    """With its newest checkpoint damaged, it goes on from the one before and ends alike."""
    for name in ("config.json", "checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    content = bytearray((tmp_path / "checkpoint.pt").read_bytes())
    content[len(content) // 2] ^= 16
    (tmp_path / "checkpoint.pt").write_bytes(content)
    path = train("demo", tmp_path, resume=True)
    assert path.read_bytes() == (trained / "controller.safetensors").read_bytes()


def test_recipes(trained: Path, tmp_path: Path) -> None:
    """The config.json of a training: a flipped bit must not train something else."""
    (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes())
    content = (trained / "config.json").read_bytes()
    assert b'"seed": 3' in content
    (tmp_path / "config.json").write_bytes(content.replace(b'"seed": 3', b'"seed": 1'))
    with pytest.raises(ConfigError, match=r"config.json is missing or damaged .its recipe does not match"):
        train("demo", tmp_path, resume=True)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def places(tree: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to all entries of nested dictionaries and lists."""
    if way:
        yield way
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from places(value, (*way, key))


def test_any_header(make_controller: Make, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Entries that were replaced by anything, with a checksum that is right: only errors of rlrate's own."""
    good, path = make_controller(), tmp_path / "any.safetensors"
    text = good.save(path).read_bytes()
    header = json.loads(json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])["__metadata__"]["rlrate"])
    tensors = {
        f"layer.{index}.{kind}": tensor
        for index, layer in enumerate(good.layers)
        for kind, tensor in zip(("weight", "bias"), layer, strict=True)
    }
    ways = [way for way in places(header) if way != ("checksum",)]
    tried = 0

    @settings(max_examples=cases(100, 2_500), deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.sampled_from(ways), anything), min_size=1, max_size=3), st.booleans())
    def holds(changes: list[tuple[tuple[Any, ...], Any]], drop: bool) -> None:
        nonlocal tried
        tried += 1
        new = json.loads(json.dumps(header))
        for way, value in changes:
            target = new
            try:
                for key in way[:-1]:
                    target = target[key]
                if isinstance(target, dict) and way[-1] not in target:
                    continue
                if drop and isinstance(target, dict):
                    del target[way[-1]]
                else:
                    target[way[-1]] = value
            except (KeyError, IndexError, TypeError):
                continue  # an earlier change took it away
        new["checksum"] = checksum(new, tensors)
        path.write_bytes(save(tensors, {"rlrate": json.dumps(new)}))
        try:
            found = Controller.load(path)
        except RlrateError:
            return
        assert found == good

    holds()
    assert torch.equal(tensors["layer.0.weight"], good.layers[0][0])
    record_property("cases", tried)
