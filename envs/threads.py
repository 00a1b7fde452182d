"""Run tasks on as many threads as torch may use, each thread computing on its own.

Torch's own parallelism splits every operation over threads that meet at its end. The operations of
small networks are so short that the meetings cost more than they save, above all when something
else wants the processor; independent tasks never wait for each other.
"""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["run_all"]


@functools.cache
def _pool(process: int, helpers: int) -> ThreadPoolExecutor:
    # Keyed by the process: threads do not survive a fork.
    return ThreadPoolExecutor(helpers, "population", initializer=torch.set_num_threads, initargs=(1,))


def run_all(tasks: Sequence[Callable[[int], None]], workers: int) -> None:
    """Call every task with the number of its worker, a number below ``workers``; wait for all.

    Args:
        tasks: No two tasks run at once with the same worker number.
        workers: Most tasks to run at once; bounded by ``torch.get_num_threads()``. With one worker
            the tasks run in turn, and torch's own parallelism within them.
    """
    threads = torch.get_num_threads()
    workers = min(workers, threads, len(tasks))
    if workers == 1:
        for task in tasks:
            task(0)
        return
    todo = deque(tasks)

    def work(worker: int) -> None:
        while True:
            try:
                task = todo.popleft()
            except IndexError:
                return
            task(worker)

    helpers = [_pool(os.getpid(), workers - 1).submit(work, k) for k in range(1, workers)]
    torch.set_num_threads(1)
    try:
        work(0)
    finally:
        todo.clear()
        for helper in helpers:
            helper.exception()
        torch.set_num_threads(threads)
    for helper in helpers:
        helper.result()
