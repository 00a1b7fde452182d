"""Nothing in the package unpickles or evaluates, but the one module that says so."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from scoreboard import ROOT

DOOR = "agents/unpickling.py"
FOLDERS = ("rlrate", "envs", "agents", "experiments")
#: Functions that run code which their argument holds.
BANNED = {
    *("eval", "exec", "compile", "__import__", "execfile"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.hub.load", "torch.jit.load"),
}
#: Modules that have no other use than that.
MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "code", "runpy"}
#: Loaders of Stable-Baselines3, which unpickle: ``PPO.load``, ``VecNormalize.load``, ``load_from_zip_file`` ...
LOADERS = {"load_from_zip_file", "load_from_pkl", "load_replay_buffer", "load_results"}
ALGORITHMS = {"A2C", "DDPG", "DQN", "PPO", "SAC", "TD3", "VecNormalize", "BaseAlgorithm", "ALGORITHM_CLASSES"}


def sins(source: str) -> list[str]:
    """What a module does that is banned, with lines."""
    tree = ast.parse(source)
    names: dict[str, str] = {}  # local name -> what it stands for
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            found += [f"{node.lineno}: import {a.name}" for a in node.names if a.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            if node.module.split(".")[0] in MODULES or whole & BANNED:
                found.append(f"{node.lineno}: from {node.module} import")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(getattr(node, "ctx", None), ast.Load):
            name = dotted(node, names)
            if name in BANNED - {"compile"} or name.split(".")[-1] in LOADERS:
                found.append(f"{node.lineno}: {name}")
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {sin}" for sin in call_sins(node, names)]
    return sorted(set(found))


def call_sins(node: ast.Call, names: dict[str, str]) -> list[str]:
    name = dotted(node.func, names)
    given = {keyword.arg: keyword.value for keyword in node.keywords}

    def says(argument: str, value: object) -> bool:
        return isinstance(entry := given.get(argument), ast.Constant) and entry.value is value

    if name == "compile":
        return ["compile"]
    if name == "torch.load" and not says("weights_only", True):
        return ["torch.load without weights_only=True"]
    if name == "numpy.load" and "allow_pickle" in given and not says("allow_pickle", False):
        return ["numpy.load with allow_pickle"]
    if name.startswith("subprocess.") and "shell" in given and not says("shell", False):
        return ["a shell"]
    last = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "load" else None
    last = last.value if isinstance(last, ast.Subscript) else last
    if last is not None and dotted(last, names).split(".")[-1] in ALGORITHMS:
        return [f"{dotted(last, names)}.load"]
    return []


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The full name of what an expression refers to; empty if it is no name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    return ""


def modules() -> list[Path]:
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_module_but_the_door(record_property: Callable[[str, object], None]) -> None:
    found = {path.relative_to(ROOT).as_posix(): sins(path.read_text("utf-8")) for path in modules()}
    assert {name for name, lines in found.items() if lines} == {DOOR}, {n: lines for n, lines in found.items() if lines}
    record_property("cases", len(found))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'')",
        "import pickle as p\np.Unpickler(f).load()",
        "from pickle import loads",
        "read = eval",
        "exec('1')",
        "compile('1', 'x', 'eval')",
        "import torch\ntorch.load('x')",
        "import torch\ntorch.load('x', weights_only=False)",
        "from torch import load\nload('x', weights_only=trust)",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from stable_baselines3 import PPO\nPPO.load('x')",
        "ALGORITHM_CLASSES[algo].load(path)",
        "from stable_baselines3.common.save_util import load_from_zip_file\nload_from_zip_file('x')",
        "import subprocess\nsubprocess.run('x', shell=True)",
        "import os\nos.system('x')",
        "import cloudpickle",
        "import yaml\nyaml.load('x')",
    ],
)
def test_the_search_finds_what_it_should(source: str) -> None:
    assert sins(source)


def test_the_search_lets_good_code_pass() -> None:
    assert not sins(
        "import json, pickle, re, torch\nimport numpy as np\njson.loads('1')\npickle.dumps(1)\nre.compile('x')\n"
        "torch.load('x', weights_only=True)\nnp.load('x')\nmodel.eval()\nController.load('x')\n"
        "try:\n    pass\nexcept pickle.UnpicklingError:\n    pass\n"
    )
