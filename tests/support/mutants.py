"""Mutation testing of the core: changes its code in small ways, one at a time, and sees whether the tests notice.

Nothing on disk is changed: each mutant lives in a forked process that imports the changed module and runs the tests
that belong to it until one fails.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, ModuleType
from typing import Any

import scoreboard

ROOT = scoreboard.ROOT
SECONDS = 300  # for the tests of one mutant; one that hangs is noticed too

#: Module, its file, and the tests that belong to it, the quickest first.
TARGETS: dict[str, tuple[str, list[str]]] = {
    "rlrate.control.signals": ("rlrate/control/signals.py", ["rlrate/test_signals.py", "rlrate/test_control.py"]),
    "rlrate.controller": ("rlrate/controller.py", ["rlrate/test_controller.py", "reliability/test_golden.py"]),
    "rlrate.scheduler": (
        "rlrate/scheduler.py",
        [
            *("rlrate/test_scheduler*.py", "rlrate/test_counting.py", "rlrate/test_resume.py", "rlrate/test_faults.py"),
            "rlrate/test_conformance.py",
        ],
    ),
    "rlrate.experiments.scoring": ("experiments/scoring.py", ["experiments/test_scoring*.py"]),
}

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any", "minimum": "maximum", "maximum": "minimum"}

Site = tuple[str, Callable[[], object]]


def sites(tree: ast.AST) -> Iterator[Site]:
    """All changes that can be made to a tree: a description, and what makes it in place."""
    for node in _code(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
            yield f"{line}: {_name(node.op)}", partial(setattr, node, "op", SWAPS[type(node.op)]())
        if isinstance(node, ast.Compare):
            for index, operator in enumerate(node.ops):
                if type(operator) in SWAPS:
                    swapped: Any = SWAPS[type(operator)]()
                    yield f"{line}: {_name(operator)}", partial(node.ops.__setitem__, index, swapped)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield f"{line}: drop the sign", partial(setattr, node, "op", ast.UAdd())
        if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
            value = not node.value if isinstance(node.value, bool) else node.value + 1
            yield f"{line}: {node.value} -> {value}", partial(setattr, node, "value", value)
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            yield f"{line}: negate the condition", partial(setattr, node, "test", ast.UnaryOp(ast.Not(), node.test))
        if isinstance(node, ast.Call):
            key = "attr" if isinstance(node.func, ast.Attribute) else "id"
            name = getattr(node.func, key, "")
            if name in NAMES:
                yield f"{line}: {name}", partial(setattr, node.func, key, NAMES[name])
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not _warns(node.value):
            yield f"{line}: drop a call", partial(setattr, node, "value", ast.Constant(None))


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that do something: no annotations, assertions, messages of errors, or what only people read."""
    skip: list[Any] = []
    if isinstance(node, ast.Assert | ast.Raise | ast.JoinedStr):
        return
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    if isinstance(node, ast.FunctionDef):
        if node.name == "__repr__":
            return
        skip = [*node.decorator_list, node.returns]
    if isinstance(node, ast.ClassDef):
        skip = [*node.decorator_list]
    if isinstance(node, ast.arg | ast.AnnAssign):
        skip = [node.annotation]
    yield node
    for inner in ast.iter_child_nodes(node):
        if inner not in skip:
            yield from _code(inner)


def _name(node: ast.AST) -> str:
    return type(node).__name__


def _warns(node: ast.Call) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr in ("_warn", "warn")


class Finder(importlib.abc.MetaPathFinder):
    """Imports one module from a changed tree, and the others as ever."""

    def __init__(self, module: str, tree: ast.Module) -> None:
        self.module, self.tree = module, tree

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        """The usual place, with a loader that compiles the tree instead of the file."""
        if name != self.module:
            return None
        tree, file = self.tree, str(ROOT / TARGETS[name][0])

        class Loader(importlib.machinery.SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return compile(tree, file, "exec")

        return importlib.util.spec_from_file_location(name, file, loader=Loader(name, file))


def noticed(module: str, tree: ast.Module, tests: list[str]) -> bool:
    """Whether the tests fail in a process with the changed module."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        sys.meta_path.insert(0, Finder(module, tree))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        import pytest

        os._exit(int(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *tests])))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0


def main() -> None:
    """Tries a sample of all changes of every module, the same each time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=25, help="changes tried of each module (0: all)")
    parser.add_argument("--only", default="", help="a module whose name ends so")
    given = parser.parse_args()
    os.chdir(ROOT)
    import torch

    torch.set_num_threads(1)  # imported here, so that the forks need not
    tried = killed = 0
    for module, (file, patterns) in TARGETS.items():
        if not module.endswith(given.only):
            continue
        tests = [str(path) for pattern in patterns for path in sorted((ROOT / "tests").glob(pattern))]
        if not tests or not (ROOT / file).exists():
            print(f"{module}: no tests of its own, left out")
            continue
        source = ast.parse((ROOT / file).read_text("utf-8"))
        if noticed(module, source, tests):
            sys.exit(f"the tests of {module} fail without any change")
        numbers = list(range(len(list(sites(source)))))
        random.Random(0).shuffle(numbers)
        numbers = sorted(numbers[: given.count or None])
        survivors, began = [], time.monotonic()
        for number in numbers:
            tree = copy.deepcopy(source)
            label, change = list(sites(tree))[number]
            change()
            if not noticed(module, ast.fix_missing_locations(tree), tests):
                survivors.append(label)
        found = len(numbers) - len(survivors)
        tried, killed = tried + len(numbers), killed + found
        print(f"{module}: {found} of {len(numbers)} noticed ({time.monotonic() - began:.0f} s)", flush=True)
        for label in survivors:
            print(f"  not noticed: {file}:{label}", flush=True)
    if not tried:
        sys.exit("nothing was tried")
    print(f"{killed} of {tried} changes noticed, {killed / tried:.0%}")
    if not given.only:
        scoreboard.note("mutants", tried, 0, **{"share noticed": killed / tried})
    sys.exit(killed / tried < 0.8)


if __name__ == "__main__":
    main()
