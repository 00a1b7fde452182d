"""How worker processes are started."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

__all__ = ["process_context", "spread"]

Task = TypeVar("Task")
Result = TypeVar("Result")

#: What workers run, each of which brings torch, and what they read data with: seconds to import.
PRELOADED = (
    "rlrate.envs.workers",
    "rlrate.agents.evaluate",
    "rlrate.agents.imitation",
    "rlrate.experiments.backends",
    "sklearn.datasets",
)


def process_context() -> SpawnContext | ForkServerContext:
    """A context whose processes share nothing with this one but what they are given.

    Forking a process that has run torch's threads may hang. On Linux processes are forked from a server instead, which
    has imported what they need and computed nothing: the first of them takes one import, the others milliseconds.
    Elsewhere every process begins anew, as libraries there may start threads when they are imported.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Of no effect once the server runs. Only what this process uses too: the rest would be imported in vain.
    context.set_forkserver_preload([name for name in PRELOADED if name in sys.modules])
    return context


def spread(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """What ``function`` makes of each task, in their order, over so many processes of one thread each.

    One worker is this process.
    """
    if workers <= 1:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(workers, process_context(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(function, tasks)
