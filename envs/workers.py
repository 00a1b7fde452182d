"""The populations of a batched environment, in this process or spread over several, here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.envs.processes import process_context
from rlrate.envs.siblings import SiblingRuns
from rlrate.envs.training import TrainingConfig
from rlrate.errors import ConfigError, RlrateError, unknown_name

Array = NDArray[np.float64]
Seed = tuple[int, ...]


@dataclass
class DrawState:
    """What a draw shows after a step; arrays have one row for each of its runs.

    Attributes:
        observation: At the decision that is due, float32, shape (runs, signals).
        reward: Of the step that led here, shape (runs,); zeros at the beginning.
        done: Whether the budget is spent.
        facts: Of each run, by name; see :meth:`rlrate.envs.TrainingRuns.facts`.
        family: Workload family of the draw.
        cost: Estimate of the seconds that the whole budget takes; known at the beginning only, and of no consequence
            for anything but where the draw is trained.
    """

    observation: NDArray[np.float32]
    reward: Array
    done: bool
    facts: dict[str, NDArray[Any]]
    family: str
    cost: float = 0.0


class Draws:
    """Several draws, trained one after another in this process."""

    def __init__(self, config: TrainingConfig, runs: int) -> None:
        self._config = config
        self._members = range(runs)
        self._populations: dict[int, SiblingRuns] = {}

    def begin(self, seeds: Mapping[int, Seed]) -> dict[int, DrawState]:
        """Draws anew, by index of the draw, and trains to the first decision."""
        states = {}
        for index, seed in seeds.items():
            self._populations.pop(index, None)
            runs = self._populations[index] = SiblingRuns.sample(self._config, seed, self._members)
            before = time.perf_counter()
            observation = runs.begin()
            cost = (time.perf_counter() - before) / max(runs.updates, 1) * runs.draw.steps
            states[index] = replace(self._state(runs, observation, np.zeros(runs.size)), cost=cost)
        return states

    def forget(self, indices: Mapping[int, Any]) -> dict[int, DrawState]:
        """Frees draws that are trained elsewhere from now on."""
        for index in indices:
            self._populations.pop(index, None)
        return {}

    def step(self, actions: Mapping[int, Array]) -> dict[int, DrawState]:
        """Applies actions u, by index of the draw, and trains to the next decision."""
        return {
            index: self._state(self._populations[index], *self._populations[index].step(u))
            for index, u in actions.items()
        }

    def rebuild(self, history: Mapping[int, tuple[Seed, Sequence[Array]]]) -> dict[int, DrawState]:
        """Trains draws again that were lost, by index: seeds, and the actions since they began."""
        states: dict[int, DrawState] = {}
        for index, (seed, actions) in history.items():
            states |= self.begin({index: seed})
            for u in actions:
                states |= self.step({index: u})
        return states

    @staticmethod
    def _state(runs: SiblingRuns, observation: NDArray[np.float32], reward: Array) -> DrawState:
        return DrawState(observation, reward, runs.done, runs.facts(), runs.draw.workload.family)


class Host(Protocol):
    """Where draws live: asked first, answered later, so that several hosts work at once."""

    def ask(self, method: str, argument: Mapping[int, Any]) -> None:
        """Calls a method of :class:`Draws`."""

    def answer(self) -> dict[int, DrawState]:
        """What the last call returned."""

    def close(self) -> None:
        """Ends it."""


class LocalHost:
    """Draws in this process."""

    def __init__(self, config: TrainingConfig, runs: int) -> None:
        self._draws = Draws(config, runs)
        self._answer: dict[int, DrawState] = {}

    def ask(self, method: str, argument: Mapping[int, Any]) -> None:
        """Works at once."""
        self._answer = getattr(self._draws, method)(argument)

    def answer(self) -> dict[int, DrawState]:
        """What the last call returned."""
        return self._answer

    def close(self) -> None:
        """Frees the populations."""
        self._draws = Draws(self._draws._config, 0)


class ProcessHost:
    """Draws in a process of their own, which computes on one thread."""

    def __init__(self, config: TrainingConfig, runs: int) -> None:
        context = process_context()
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config, runs), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, argument: Mapping[int, Any]) -> None:
        """Sends the call; :meth:`answer` tells if nobody was there."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._pipe.send((method, dict(argument)))

    def answer(self) -> dict[int, DrawState]:
        """Waits for the result.

        Raises:
            RlrateError: what the call raised, or when the process ended.
        """
        try:
            result = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            raise RlrateError(self._death()) from None
        if isinstance(result, BaseException):
            raise result
        states: dict[int, DrawState] = result
        return states

    def _death(self) -> str:
        code = self._process.exitcode
        if code is not None and code > 0:  # an exception, which Python has printed
            return (
                f"a worker process failed to start (exit code {code}); a script that uses several workers must do so "
                'under `if __name__ == "__main__":`, or use workers=1'
            )
        return f"a worker process died (exit code {code}); out of memory? Use fewer runs or workers"

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def spread(costs: Mapping[int, float], hosts: int, owners: Mapping[int, int]) -> dict[int, int]:
    """Which host each draw should live at, so that the busiest one has little more to do than the others.

    Args:
        costs: Of each draw.
        hosts: Their number.
        owners: Where the draws are now. Draws move one by one, each the one that helps most, while that helps by 3 %.
    """
    owners = dict(owners)
    load = [sum(cost for index, cost in costs.items() if owners[index] == host) for host in range(hosts)]
    for _ in costs:
        busiest, idlest = load.index(max(load)), load.index(min(load))
        gap = load[busiest] - load[idlest]
        mine = [index for index in costs if owners[index] == busiest]
        best = min(mine, key=lambda index: abs(gap - 2.0 * costs[index]))
        if max(load[busiest] - costs[best], load[idlest] + costs[best]) > 0.97 * load[busiest]:
            break
        owners[best] = idlest
        load[busiest] -= costs[best]
        load[idlest] += costs[best]
    return owners


def check_backend(name: str) -> None:
    """Checks that there is such a backend, and that it is installed.

    Raises:
        ConfigError: when it is not.
    """
    if name not in HOSTS:
        raise ConfigError(unknown_name("backend", name, HOSTS))
    if name == "ray" and importlib.util.find_spec("ray") is None:
        raise ConfigError('the Ray backend needs ray, which is not installed: pip install "rlrate[ray]"')


def check_portable(config: TrainingConfig, backend: str = "local") -> None:
    """Checks that worker processes can be told what to train.

    Raises:
        ConfigError: when a workload cannot be pickled.
    """
    mend = "workers=1" if backend == "local" else "the local backend with workers=1"
    try:
        pickle.dumps(config)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"the workload cannot be sent to other processes ({error}); name it "
            f"'path/to/file.py:function', or use {mend}"
        ) from None


def _local(config: TrainingConfig, runs: int, workers: int) -> Sequence[Host]:
    """This process for one, else a process each."""
    if workers == 1:
        return [LocalHost(config, runs)]
    return [ProcessHost(config, runs) for _ in range(workers)]


def _ray(config: TrainingConfig, runs: int, workers: int) -> Sequence[Host]:
    """An actor each."""
    from rlrate.envs.cluster import make_ray_hosts

    return make_ray_hosts(config, runs, workers)


#: Makes the hosts of a backend from what is trained, the runs of a draw, and the number of hosts.
HOSTS: dict[str, Callable[[TrainingConfig, int, int], Sequence[Host]]] = {"local": _local, "ray": _ray}


def _serve(pipe: Connection, config: TrainingConfig, runs: int) -> None:
    torch.set_num_threads(1)
    draws = Draws(config, runs)
    # The parent handles Ctrl-C, which reaches everyone; where it is gone there is nobody to tell.
    with contextlib.suppress(KeyboardInterrupt, EOFError, ConnectionError):
        while (call := pipe.recv()) is not None:
            method, argument = call
            try:
                result: Any = getattr(draws, method)(argument)
            except RlrateError as error:
                result = error
            except Exception:
                result = RlrateError(f"a worker process failed:\n{traceback.format_exc()}")
            pipe.send(result)
