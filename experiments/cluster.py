"""Cells on a Ray cluster: actors that are replaced when they die, and their cells computed again."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from rlrate.controller import Controller
from rlrate.envs.cluster import join, leave
from rlrate.errors import RlrateError
from rlrate.experiments.backends import Attempts, Finished, Progress
from rlrate.experiments.cells import Cell, run_cell
from rlrate.experiments.store import Row

__all__ = ["RayWorkers"]


class _Remote:
    """What an actor does."""

    def __init__(self, controller: Controller) -> None:
        torch.set_num_threads(1)
        self._controller = controller

    def pid(self) -> int:
        """The process it lives in."""
        return os.getpid()

    def run(self, cell: Cell) -> list[Row] | RlrateError:
        """The rows of a cell, or why there are none."""
        try:
            return run_cell(cell, self._controller)
        except RlrateError as error:
            return error
        except Exception:
            return RlrateError(f"{cell.problem.name}, {cell.runs[0].method}: failed:\n{traceback.format_exc()}")


@dataclass
class _Worker:
    actor: Any
    cell: Cell | None = None
    answer: Any = None


class RayWorkers:
    """Actors with one core each.

    Args:
        controller: The learned scheduler.
        progress: Called when a cell is finished.
        workers: Number of actors.
    """

    def __init__(self, controller: Controller, progress: Progress, workers: int) -> None:
        self._progress = progress
        self._attempts = Attempts()
        self._again: list[Cell] = []
        join(workers)
        self._controller = ray.put(controller)
        self._workers = [self._actor() for _ in range(workers)]

    def _actor(self) -> _Worker:
        return _Worker(ray.remote(num_cpus=1, max_restarts=0)(_Remote).remote(self._controller))

    @property
    def free(self) -> int:
        """Idle actors."""
        return sum(worker.cell is None for worker in self._workers) - len(self._again)

    def submit(self, cell: Cell) -> None:
        """Gives it to an idle actor."""
        worker = next(w for w in self._workers if w.cell is None)
        worker.cell, worker.answer = cell, worker.actor.run.remote(cell)

    def collect(self) -> Finished:
        """Waits up to half a second.

        Raises:
            RlrateError: A cell cannot be computed.
        """
        again, self._again = self._again, []
        for lost in again:
            self.submit(lost)
        busy = {worker.answer: worker for worker in self._workers if worker.cell is not None}
        finished: Finished = []
        for answer in ray.wait(list(busy), timeout=0.5)[0]:
            worker = busy[answer]
            cell = worker.cell
            assert cell is not None
            try:
                result = ray.get(answer)
            except RayActorError as error:
                self._attempts.failed(cell, str(error).splitlines()[0])
                self._workers[self._workers.index(worker)] = self._actor()
                self._again.append(cell)
                continue
            if isinstance(result, RlrateError):
                raise result
            self._progress(cell, cell.updates)
            worker.cell = worker.answer = None
            finished.append((cell, result))
        return finished

    def close(self) -> None:
        """Kills the actors, and the cluster if it was started here."""
        for worker in self._workers:
            ray.kill(worker.actor)
        leave()
