"""What is installed, what importing it costs, and rules that hold for every file."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import rlrate

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "rlrate": "rlrate",
    "envs": "rlrate/envs",
    "agents": "rlrate/agents",
    "experiments": "rlrate/experiments",
}
DATA = {".j2", ".js", ".safetensors", ".toml", ".typed"}
MODULE_LINES = 400


def _python(code: str, cwd: Path, **environment: str) -> str:
    """Runs code in a fresh interpreter and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _package_files(root: Path = ROOT) -> list[tuple[str, Path]]:
    """Code and data of the four folders: path in the wheel, and path here."""
    files = [
        (f"{installed}/{path.relative_to(root / folder).as_posix()}", path)
        for folder, installed in FOLDERS.items()
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in DATA | {".py"}
    ]
    assert len(files) > 10
    return files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing left in build/ can slip in."""
    source = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    # Data that a later release may add, which the wheel must not forget either.
    for name in ("rlrate/controllers/x.safetensors", "agents/recipes/x.toml"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(b"")
    done = subprocess.run(
        [sys.executable, *"-m pip wheel -q --no-deps --no-build-isolation -w dist .".split()],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("rlrate-*.whl")
    return built


def test_wheel_claims_no_other_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {"rlrate"} == {top for top in tops if not top.endswith(".dist-info")}


def test_wheel_forgets_no_module_and_no_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    missing = {name for name, _ in _package_files()} - names
    assert not missing, "extend `packages` or package-data in pyproject.toml"
    assert {"rlrate/py.typed", "rlrate/envs/__init__.py"} <= names
    assert {"rlrate/controllers/x.safetensors", "rlrate/agents/recipes/x.toml"} <= names


def test_wheel_has_the_console_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "rlrate = rlrate.cli:main" in archive.read(entry).decode()


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert rlrate.__version__ == project["version"]


def test_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import rlrate, rlrate.envs, rlrate.agents, rlrate.experiments\n"
        "for package in (rlrate, rlrate.envs, rlrate.agents, rlrate.experiments):\n"
        "    print(package.__file__)"
    )
    printed = _python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")).split()
    assert [Path(line).relative_to(tmp_path / "site").as_posix() for line in printed] == [
        f"{installed}/__init__.py" for installed in FOLDERS.values()
    ]


def test_import_stays_light(tmp_path: Path) -> None:
    code = """
import json, sys
import torch
before = set(sys.modules)
import rlrate
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before})))
"""
    loaded = set(json.loads(_python(code, cwd=tmp_path)))
    assert "rlrate" in loaded
    heavy = {"gymnasium", "matplotlib", "optuna", "pandas", "rich", "scipy", "sklearn"}
    heavy |= {"stable_baselines3", "tensorboard", "tqdm", "typer"}
    assert not loaded & heavy


def test_import_adds_at_most_a_tenth_to_that_of_torch(tmp_path: Path) -> None:
    # Processor time of one process, back to back: a busy machine changes neither much, and both alike.
    code = """
from time import process_time
start = process_time()
import torch
torch_done = process_time()
import rlrate
print((process_time() - torch_done) / (torch_done - start))
"""
    shares = [float(_python(code, cwd=tmp_path)) for _ in range(3)]
    assert statistics.median(shares) <= 0.10, f"import rlrate / import torch - 1: {shares}"


def _tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def test_no_tracked_file_names_a_path_of_one_machine() -> None:
    pattern = re.compile(rb"(?<![\w.~}/:-])/(?:home|root|Users|work|tmp|var|opt|mnt)/\w|\b[A-Z]:\\")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked()
        if b"\0" not in (content := path.read_bytes())
        for number, line in enumerate(content.splitlines(), start=1)
        if pattern.search(line) and path != Path(__file__).resolve()
    ]
    assert not found


def test_no_module_is_too_long() -> None:
    modules = [path for _, path in _package_files() if path.suffix == ".py"]
    modules += (ROOT / "tests").rglob("*.py")
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text("utf-8").splitlines()) for path in modules}
    assert not {name: n for name, n in lengths.items() if n >= MODULE_LINES}, "split at a seam"
