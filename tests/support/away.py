"""The runtime's tests away from the repository: against the wheel, and with other versions of the dependencies."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

import scoreboard

ROOT = scoreboard.ROOT
#: The runtime's tests that need nothing but its dependencies, pytest and hypothesis.
TESTS = (
    *("test_action.py", "test_cadence.py", "test_conformance.py", "test_control.py", "test_controller.py"),
    *("test_counting.py", "test_errors.py", "test_faults.py", "test_horizon.py", "test_resume.py", "test_sampler.py"),
    *("test_scheduler.py", "test_scheduler_groups.py", "test_scheduler_steps.py", "test_signals.py", "test_storage.py"),
)


def wheel(folder: Path) -> Path:
    """Builds the wheel."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=ROOT, check=True)
    (built,) = folder.glob("rlrate-*.whl")
    return built


def tests(folder: Path) -> Path:
    """A folder with the public tests, and no sight of the repository."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "tests" / "support", folder / "tests" / "support")
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "rlrate").mkdir()
    for name in ("conftest.py", *TESTS):
        shutil.copy(ROOT / "tests" / "rlrate" / name, folder / "tests" / "rlrate")
    return folder


def run(python: str, folder: Path, site: Path | None = None) -> bool:
    """Whether the tests pass with that Python."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    if site is not None:
        environment["PYTHONPATH"] = str(site)
    where = "import rlrate, torch, numpy; print(rlrate.__file__, torch.__version__, numpy.__version__)"
    shown = subprocess.run(
        [python, "-c", where], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    print(shown.stdout.strip().replace(str(folder.parent), "..."), flush=True)
    if str(ROOT / "rlrate") in shown.stdout:
        sys.exit("the repository's code was imported")
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/rlrate"]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode == 0


def requirements(lowest: bool) -> list[str]:
    """The dependencies of the runtime: as low as allowed, or as they are given."""
    given = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    return [re.sub(r"^([\w-]+)>=([\w.]+).*$", r"\1==\2", line) if lowest else line for line in given]


def environment(folder: Path, built: Path, *, lowest: bool) -> str:
    """A fresh virtual environment with the wheel; its Python."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*install, *requirements(lowest), "pytest", "hypothesis"], check=True)
    subprocess.run([*install, "--no-deps", str(built)], check=True)
    return python


def main() -> None:
    """Runs what is asked for and records it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["wheel", "dependencies"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = wheel(folder)
        (folder / "away").mkdir()
        away = tests(folder / "away")
        if given.what == "wheel":
            with zipfile.ZipFile(built) as archive:
                archive.extractall(folder / "site")
            results = [run(sys.executable, away, folder / "site")]
        else:
            results = [run(environment(folder / f"{lowest}", built, lowest=lowest), away) for lowest in (True, False)]
    scoreboard.note(given.what, len(results), results.count(False))
    sys.exit(not all(results))


if __name__ == "__main__":
    main()
