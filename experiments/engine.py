"""Running a suite: every cell once, whatever happens in between."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from pathlib import Path

from rlrate.controller import Controller
from rlrate.errors import ConfigError, unknown_name
from rlrate.experiments.backends import BACKENDS, make_backend
from rlrate.experiments.cells import Cell, versions
from rlrate.experiments.plan import Plan
from rlrate.experiments.store import Results, Row, Store, load
from rlrate.experiments.suite import Suite, load_suite

__all__ = ["run_suite"]

#: Called with (runs done, runs in all, what is running).
Report = Callable[[int, int, str], None]


def run_suite(
    suite: str | Suite,
    out: str | Path,
    *,
    controller: str | Controller = "default",
    workers: int = 1,
    backend: str = "local",
    reuse: str | Path | None = None,
    command: str = "",
    progress: Report | None = None,
) -> Results:
    """Runs a comparison, or goes on with one that was stopped.

    Args:
        suite: Name of a bundled suite, a TOML file, or a :class:`Suite`.
        out: Folder for ``results.jsonl`` and ``suite.json``. What is finished there is not run again.
        controller: A controller, its file, or the name of a bundled one.
        workers: Processes; the results do not depend on it. With more than one, a script must guard its entry with
            ``if __name__ == "__main__"``.
        backend: "local", or "ray" for a Ray cluster.
        reuse: Folder of another comparison, finished or not, from which runs of the same configuration are taken, such
            as those of tuned schedules when only the controller is new. They must come from the same code.
        command: The command line, for the record.
        progress: Called with (runs done, runs in all, what is running).

    Returns:
        All rows, those of earlier sessions included.

    Raises:
        ConfigError: Unknown names, bad counts, or ``out`` holds another comparison.
        ResultsError: The results in ``out`` are damaged.
        WorkloadError: A workload does not work.
    """
    name = controller if isinstance(controller, str) else ""
    controller = controller if isinstance(controller, Controller) else Controller.load(controller)
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigError(f"workers must be a positive integer, got {workers!r}")
    if backend not in BACKENDS:
        raise ConfigError(unknown_name("backend", backend, BACKENDS))
    plan = Plan(suite, controller)
    finished = {} if reuse is None else _finished(load(reuse))
    store = Store(out, plan.to_dict(command, name))
    meter = _Meter(plan, progress)
    queue = _Queue(plan, store, meter, finished)
    if queue:
        crew = make_backend(backend, controller, meter.made, min(workers, plan.cells))
        try:
            running = 0
            while queue or running:
                while crew.free > 0 and (cell := queue.pop()) is not None:
                    meter.label = f"{cell.problem.name}: {cell.runs[0].method}, {cell.runs[0].role}"
                    crew.submit(cell)
                    running += 1
                for cell, rows in crew.collect():
                    running -= 1
                    store.append(cell.key, rows)
                    queue.finished(cell)
        finally:
            crew.close()
    meter.end()
    return load(out)


def _finished(results: Results) -> dict[str, list[Row]]:
    """Rows of every finished cell, in their order, where the libraries are still the same."""
    cells: dict[str, list[Row]] = {}
    for row in results.rows:
        if dict(row.versions) == versions(row.method):
            cells.setdefault(row.cell, []).append(row)
    return {
        key: sorted(rows, key=lambda row: row.cell_index)
        for key, rows in cells.items()
        if len(rows) == rows[0].cell_rows
    }


class _Queue:
    """The cells that can be run now, the costliest first, so that no long one is left over at the end."""

    def __init__(self, plan: Plan, store: Store, meter: _Meter, earlier: Mapping[str, list[Row]]) -> None:
        self._plan, self._store, self._meter, self._earlier = plan, store, meter, earlier
        self._heap: list[tuple[float, int, Cell]] = []
        self._count = 0
        self._reported: set[str] = set()
        self._add(plan.first())
        for problem in plan.suite.problems:
            self._unlock(problem.name)

    def __bool__(self) -> bool:
        return bool(self._heap)

    def pop(self) -> Cell | None:
        """The next cell that nobody has finished."""
        self._store.refresh()
        while self._heap:
            cell = heapq.heappop(self._heap)[2]
            if cell.key not in self._store and cell.key in self._earlier:
                self._store.append(cell.key, self._earlier[cell.key])
            if cell.key not in self._store:
                return cell
            self._meter.made(cell, cell.updates)
            self._unlock(cell.problem.name)
        return None

    def finished(self, cell: Cell) -> None:
        """Adds the cells that waited for this one."""
        self._unlock(cell.problem.name)

    def _unlock(self, problem: str) -> None:
        tuning = [cell.key for cell in self._plan.tuning(problem)]
        if problem in self._reported or not all(key in self._store for key in tuning):
            return
        self._reported.add(problem)
        self._add(self._plan.reports(problem, [row for key in tuning for row in self._store.rows(key)]))

    def _add(self, cells: list[Cell]) -> None:
        for cell in cells:
            if cell.key in self._store:
                self._meter.made(cell, cell.updates)
                continue
            self._count += 1
            heapq.heappush(self._heap, (-self._plan.cost_of(cell), self._count, cell))


class _Meter:
    """Turns network updates into runs done, weighed by what they cost."""

    def __init__(self, plan: Plan, progress: Report | None) -> None:
        self._plan, self._progress = plan, progress
        self._cost = 0.0
        self.label = ""

    def made(self, cell: Cell, updates: int) -> None:
        self._cost += updates * self._plan.update_cost(cell)
        if self._progress is not None and self.label:
            done = int(self._plan.runs * self._cost / self._plan.cost)
            self._progress(min(max(done, 0), self._plan.runs - 1), self._plan.runs, self.label)

    def end(self) -> None:
        if self._progress is not None:
            self._progress(self._plan.runs, self._plan.runs, "done")
