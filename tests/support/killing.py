"""Processes that are killed while they write. A script of one thread, so that it may fork: a fork starts at once.

Standard input lists the work as JSON; standard output tells how often was killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comparing

#: Moments of a write at which a process can be killed.
POINTS = ("before write", "mid write", "before fsync", "before rename", "between renames", "after rename")


def child(work: Callable[[], object], after: float | None = None) -> bool:
    """Runs ``work`` in a forked process; kills it after some seconds. Whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            os._exit(1)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)  # still ours, even if it is over: not waited for yet
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the process failed, see above"
    return False


def die() -> None:
    """As kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, number: int) -> None:
    """Kills this process at ``point`` of its ``number``-th atomic write, counted from 0."""
    real: dict[str, Any] = {name: getattr(os, name) for name in ("fdopen", "fsync", "replace")}
    make, seen = tempfile.mkstemp, {"writes": -1, "renames": 0}

    def mkstemp(*args: Any, **kwargs: Any) -> Any:
        seen["writes"] += 1
        seen["renames"] = 0
        if due("before write"):
            die()
        return make(*args, **kwargs)

    def due(name: str) -> bool:
        return point == name and seen["writes"] == number

    def fdopen(handle: int, mode: str) -> Any:
        file = real["fdopen"](handle, mode)
        if due("mid write"):
            write = file.write

            class Half:
                def __enter__(self) -> Half:
                    return self

                def __exit__(self, *error: object) -> None:
                    file.close()

                def write(self, data: bytes) -> None:
                    write(data[: len(data) // 2])
                    file.flush()
                    die()

            return Half()
        return file

    def fsync(handle: int) -> None:
        if due("before fsync"):
            die()
        real["fsync"](handle)

    def replace(source: Any, target: Any) -> None:
        if due("before rename"):
            die()
        real["replace"](source, target)
        seen["renames"] += 1
        if due("between renames") and "previous" in str(target):
            die()
        if due("after rename") and "previous" not in str(target):
            die()

    tempfile.mkstemp = mkstemp
    os.fdopen, os.fsync, os.replace = fdopen, fsync, replace  # type: ignore[assignment]


def train(recipe: dict[str, Any], out: Path) -> None:
    """Begins or continues a training, whichever its folder allows."""
    from rlrate.agents import Recipe
    from rlrate.agents import train as begin

    begin(Recipe.from_dict(recipe), out, resume=(out / "config.json").exists())


def same_training(out: Path, whole: Path) -> None:
    """Raises unless a training ended as the undisturbed one did."""
    for name in ("controller.safetensors", "progress.csv", "config.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def readable(out: Path) -> None:
    """Raises unless what a killed training left can be read."""
    from rlrate import Controller
    from rlrate.agents.checkpoint import has_checkpoint, read_checkpoint

    if has_checkpoint(out):
        read_checkpoint(out)
    if (out / "controller.safetensors").exists():
        Controller.load(out / "controller.safetensors")


def kill_training(folder: Path, whole: Path, recipe: dict[str, Any], kills: int, seed: int) -> int:
    """Kills trainings at random times, and continues each until it is done; the number of kills."""
    rng, done, number = random.Random(seed), 0, 0
    began = time.monotonic()
    child(lambda: train(recipe, folder / "timed"))
    length = time.monotonic() - began
    while done < kills:
        out, number = folder / f"run-{number}", number + 1
        while child(lambda out=out: train(recipe, out), rng.uniform(0, 0.8 * length) if done < kills else None):  # type: ignore[misc]
            done += 1
            readable(out)
        same_training(out, whole)
        shutil.rmtree(out)
    return done


def fail_training(folder: Path, whole: Path, recipe: dict[str, Any], points: list[tuple[str, int]]) -> int:
    """Kills trainings at points of their writes, and continues each; the number of kills."""
    done = 0
    for number, (point, write) in enumerate(points):
        out = folder / f"point-{number}"

        def work(point: str = point, write: int = write, out: Path = out) -> None:
            arm(point, write)
            train(recipe, out)

        done += child(work)
        readable(out)
        child(lambda out=out: train(recipe, out))  # type: ignore[misc]
        same_training(out, whole)
        shutil.rmtree(out)
    return done


def kill_export(folder: Path, run: Path, kills: int, seed: int) -> int:
    """Kills processes that export two controllers in turn to one file, which must always be one of them."""
    from rlrate import Controller

    rng, target = random.Random(seed), folder / "exported.safetensors"
    one = Controller.load(run / "controller.safetensors")
    other = Controller.constant(0.5, one.spec)
    allowed = {path.read_bytes() for path in (one.save(folder / "one"), other.save(folder / "other"))}

    def work() -> None:
        while True:
            one.save(target)
            other.save(target)

    one.save(target)
    for _ in range(kills):
        child(work, rng.uniform(0, 0.05))
        assert target.read_bytes() in allowed
        Controller.load(target)
    return kills


def arm_store(point: str, number: int) -> None:
    """Kills this process at ``point`` of the ``number``-th append to a result store, counted from 0."""
    from rlrate.experiments import store

    seen, sync = {"appends": -1}, os.fsync

    def due(name: str) -> bool:
        return point == name and seen["appends"] == number

    class Half:
        """A file that is killed in the middle of what it writes."""

        def __init__(self, file: Any) -> None:
            self.file, self.fileno, self.flush = file, file.fileno, file.flush

        def __enter__(self) -> Half:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> None:
            if due("mid write"):
                data = data[: len(data) * 2 // 3]
            self.file.write(data)
            if due("mid write"):
                self.file.flush()
                die()

    def opened(path: Path, mode: str) -> Any:
        if mode != "ab":
            return open(path, mode)
        seen["appends"] += 1
        if due("before write"):
            die()
        return Half(open(path, mode))

    def fsync(handle: int) -> None:
        if due("before fsync"):
            die()
        sync(handle)
        if due("after fsync"):
            die()

    store.open = opened  # type: ignore[attr-defined]
    os.fsync = fsync  # type: ignore[assignment]


def same_rows(out: Path, whole: list[dict[str, Any]]) -> None:
    """Raises unless a comparison ended as the undisturbed one did: no row lost, none twice, no other number."""
    assert comparing.rows(out) == whole
    assert len((out / "results.jsonl").read_text("utf-8").splitlines()) == len(whole)


def kill_comparison(folder: Path, whole: list[dict[str, Any]], kills: int, seed: int) -> int:
    """Kills comparisons at random times, now and then with a second process at work, and continues each."""
    rng, done, number = random.Random(seed), 0, 0
    began = time.monotonic()
    child(lambda: comparing.compare(folder / "compared"))
    length = time.monotonic() - began
    while done < kills:
        out, number = folder / f"comparison-{number}", number + 1
        other = 0
        if number % 3 == 0:
            other = os.fork()
            if other == 0:
                comparing.compare(out)
                os._exit(0)
        while child(lambda out=out: comparing.compare(out), rng.uniform(0, length) if done < kills else None):  # type: ignore[misc]
            done += 1
            if (out / "suite.json").exists():
                seen = comparing.rows(out)
                assert all(row in whole for row in seen) and len({row["key"] for row in seen}) == len(seen)
        if other:
            assert os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]) == 0
        same_rows(out, whole)
        shutil.rmtree(out)
    return done


def fail_comparison(folder: Path, whole: list[dict[str, Any]], points: list[tuple[str, int]]) -> int:
    """Kills comparisons at points of their appends, and continues each; the number of kills."""
    done = 0
    for number, (point, append) in enumerate(points):
        out = folder / f"append-{number}"

        def work(point: str = point, append: int = append, out: Path = out) -> None:
            arm_store(point, append)
            comparing.compare(out)

        done += child(work)
        child(lambda out=out: comparing.compare(out))  # type: ignore[misc]
        same_rows(out, whole)
        shutil.rmtree(out)
    return done


def main() -> None:
    """Does one kind of work and prints the number of kills."""
    import torch

    import rlrate.agents

    assert rlrate.agents is not None
    torch.set_num_threads(1)
    job = json.load(sys.stdin)
    folder = Path(job["folder"])
    recipe, whole = job["recipe"], folder / "whole"
    train(recipe, whole)  # here, so that the forks need not do again what is done once in a process
    found = {"export": kill_export(folder, whole, job["export"], job["seed"])}
    found["training"] = kill_training(folder, whole, recipe, job["training"], job["seed"])
    found["points"] = fail_training(folder, whole, recipe, [tuple(point) for point in job["points"]])
    comparing.compare(folder / "results")
    rows = comparing.rows(folder / "results")
    found["comparison"] = kill_comparison(folder, rows, job["comparison"], job["seed"])
    found["appends"] = fail_comparison(folder, rows, [tuple(point) for point in job["appends"]])
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
