"""Run tasks on as many threads as torch may use, each thread computing on its own.

Torch's own parallelism splits every operation over threads that meet at its end. The operations of
small networks are so short that the meetings cost more than they save, above all when something
else wants the processor; independent tasks never wait for each other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import torch

__all__ = ["run_all"]

Task = Callable[[int], None]


class _Helper:
    """A thread that waits for calls; daemonic, as it holds nothing that needs an orderly end."""

    def __init__(self, number: int) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=self._serve, name=f"population-{number}", daemon=True).start()

    def _serve(self) -> None:
        torch.set_num_threads(1)
        while True:
            call = self._calls.get()
            try:
                call()
            except BaseException as error:
                self._done.put(error)
            else:
                self._done.put(None)
            del call

    def submit(self, call: Callable[[], None]) -> None:
        self._calls.put(call)

    def wait(self) -> BaseException | None:
        return self._done.get()


_LOCK = threading.Lock()
_helpers: list[_Helper] = []
_owner = 0


def run_all(tasks: Sequence[Task], workers: int, *, alone: bool = False) -> None:
    """Call every task with the number of its worker, a number below ``workers``; wait for all.

    Args:
        tasks: No two tasks run at once with the same worker number.
        workers: Most tasks to run at once; bounded by ``torch.get_num_threads()``. With one worker
            the tasks run in turn, and torch's own parallelism within them.
        alone: With one worker, too, compute on one thread.

    Raises:
        BaseException: The first that a task raised.
    """
    threads = torch.get_num_threads()
    workers = min(workers, threads, len(tasks))
    if workers == 1 and (threads == 1 or not alone):
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

    if workers == 1:
        _on_one_thread(threads, work)
    elif _LOCK.acquire(blocking=False):
        try:
            _share(threads, workers, work, todo)
        finally:
            _LOCK.release()
    else:  # a population in another thread has the helpers
        _on_one_thread(threads, work)


def _on_one_thread(threads: int, work: Task) -> None:
    torch.set_num_threads(1)
    try:
        work(0)
    finally:
        torch.set_num_threads(threads)


def _share(threads: int, workers: int, work: Task, todo: deque[Task]) -> None:
    global _owner
    if _owner != os.getpid():  # threads do not survive a fork
        _helpers.clear()
        _owner = os.getpid()
    while len(_helpers) < workers - 1:
        _helpers.append(_Helper(len(_helpers) + 1))
    busy = _helpers[: workers - 1]
    for number, helper in enumerate(busy, start=1):
        helper.submit(lambda number=number: work(number))  # type: ignore[misc]
    try:
        _on_one_thread(threads, work)
    finally:
        todo.clear()
        errors = [helper.wait() for helper in busy]
    for error in errors:
        if error is not None:
            raise error
