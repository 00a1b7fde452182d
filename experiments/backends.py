"""Where cells are computed: in this process, or in several that are replaced when they die."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from rlrate.controller import Controller
from rlrate.envs.processes import process_context
from rlrate.errors import ConfigError, RlrateError, unknown_name
from rlrate.experiments.cells import Cell, run_cell
from rlrate.experiments.store import Row

__all__ = ["BACKENDS", "Attempts", "Backend", "Finished", "Progress", "make_backend"]

#: Attempts at a cell whose worker dies.
ATTEMPTS = 3

#: Seconds between two messages about a cell's progress.
NEWS = 0.3

#: Called with the cell and the network updates made in it since the last call.
Progress = Callable[[Cell, int], None]
Finished = list[tuple[Cell, list[Row]]]


class Backend(Protocol):
    """Computes cells."""

    @property
    def free(self) -> int:
        """How many more cells can be submitted now."""

    def submit(self, cell: Cell) -> None:
        """Has a cell computed."""

    def collect(self) -> Finished:
        """Waits a moment for cells to be finished; returns those that are."""

    def close(self) -> None:
        """Ends all work at once."""


class Inline:
    """One cell after another in this process, with one thread as in workers, so that the results are the same."""

    def __init__(self, controller: Controller, progress: Progress) -> None:
        self._controller, self._progress = controller, progress
        self._cell: Cell | None = None
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    @property
    def free(self) -> int:
        """1 when the last cell was collected."""
        return 1 if self._cell is None else 0

    def submit(self, cell: Cell) -> None:
        """Keeps it for :meth:`collect`."""
        self._cell = cell

    def collect(self) -> Finished:
        """Computes the cell."""
        cell, self._cell = self._cell, None
        if cell is None:
            return []
        return [(cell, run_cell(cell, self._controller, lambda updates: self._progress(cell, updates)))]

    def close(self) -> None:
        """Gives the process its threads back."""
        self._cell = None
        torch.set_num_threads(self._threads)


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    cell: Cell | None = None
    told: int = 0


@dataclass
class Attempts:
    """How often the worker of a cell has died."""

    counts: dict[str, int] = field(default_factory=dict)

    def failed(self, cell: Cell, how: str) -> None:
        """Raises a RlrateError when the cell has failed too often."""
        self.counts[cell.key] = self.counts.get(cell.key, 0) + 1
        if self.counts[cell.key] >= ATTEMPTS:
            raise RlrateError(
                f"a worker died {ATTEMPTS} times on {cell.problem.name}, {cell.runs[0].method}: {how}; out of memory? "
                "Finished runs are kept: go on with fewer workers by the same command"
            )


class Processes:
    """Worker processes on this machine; one that dies is replaced, and its cell computed again."""

    def __init__(self, controller: Controller, progress: Progress, workers: int) -> None:
        self._controller, self._progress = controller, progress
        self._attempts = Attempts()
        self._again: list[Cell] = []
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> _Worker:
        context = process_context()
        pipe, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._controller), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, pipe)

    @property
    def free(self) -> int:
        """Idle workers."""
        return sum(worker.cell is None for worker in self._workers) - len(self._again)

    def submit(self, cell: Cell) -> None:
        """Gives it to an idle worker."""
        worker = next(w for w in self._workers if w.cell is None)
        worker.cell, worker.told = cell, 0
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # collect() sees that nobody is there
            worker.pipe.send(cell)

    def collect(self) -> Finished:
        """Waits up to half a second.

        Raises:
            RlrateError: A cell cannot be computed.
        """
        again, self._again = self._again, []
        for lost in again:
            self.submit(lost)
        finished: Finished = []
        busy = {worker.pipe: worker for worker in self._workers if worker.cell is not None}
        for pipe in wait(list(busy), timeout=0.5):
            worker = busy[pipe]  # type: ignore[index]
            cell = worker.cell
            assert cell is not None
            try:
                message = worker.pipe.recv()
            except (EOFError, OSError):
                self._replace(worker, cell)
                continue
            if isinstance(message, int):
                worker.told += message
                self._progress(cell, message)
                continue
            if isinstance(message, BaseException):
                raise message
            self._progress(cell, cell.updates - worker.told)
            worker.cell = None
            finished.append((cell, message))
        return finished

    def _replace(self, worker: _Worker, cell: Cell) -> None:
        worker.process.join(5)
        code = worker.process.exitcode
        if code == 1:  # an exception that Python has printed
            raise RlrateError(
                "a worker process failed to start; a script that uses several workers must do so under "
                '`if __name__ == "__main__":`, or use workers=1'
            )
        self._attempts.failed(cell, f"exit code {code}")
        self._progress(cell, -worker.told)
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start()
        self._again.append(cell)

    def close(self) -> None:
        """Kills the workers: what they were computing is lost, what was finished is on disk."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()


def _serve(pipe: Connection, controller: Controller) -> None:
    """What a worker process does: cells in; updates made, and finally rows, out. It ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, which reaches everyone
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            cell = pipe.recv()
            news = _News(pipe)
            result: Any
            try:
                result = run_cell(cell, controller, news.tick)
            except (BrokenPipeError, ConnectionResetError):
                os._exit(0)  # nobody is there any more; tidying up would only take time
            except RlrateError as error:
                result = error
            except Exception:
                result = RlrateError(f"{cell.problem.name}, {cell.runs[0].method}: failed:\n{traceback.format_exc()}")
            pipe.send(result)


class _News:
    """Sends the updates made, now and then; fails when nobody is there any more."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._updates, self._last = pipe, 0, time.monotonic()

    def tick(self, updates: int) -> None:
        self._updates += updates
        now = time.monotonic()
        if now - self._last >= NEWS:
            self._pipe.send(self._updates)
            self._updates, self._last = 0, now


def _local(controller: Controller, progress: Progress, workers: int) -> Backend:
    return Inline(controller, progress) if workers == 1 else Processes(controller, progress, workers)


def _ray(controller: Controller, progress: Progress, workers: int) -> Backend:
    from rlrate.experiments.cluster import RayWorkers

    return RayWorkers(controller, progress, workers)


BACKENDS: dict[str, Callable[[Controller, Progress, int], Backend]] = {"local": _local, "ray": _ray}


def make_backend(name: str, controller: Controller, progress: Progress, workers: int) -> Backend:
    """The backend called ``name``.

    Raises:
        ConfigError: There is none.
    """
    if name not in BACKENDS:
        raise ConfigError(unknown_name("backend", name, BACKENDS))
    return BACKENDS[name](controller, progress, workers)
