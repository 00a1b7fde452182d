"""Draws on a Ray cluster, and the cluster itself: joined or started, and left.

An extra: ``pip install "rlrate[ray]"``. Where no cluster is given (``RAY_ADDRESS``, or `ray.init` called before), one
is started on this machine. The machines of a cluster need rlrate installed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import traceback
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from rlrate.envs.training import TrainingConfig
from rlrate.envs.workers import Array, Draws, DrawState, Seed
from rlrate.errors import ConfigError, RlrateError

__all__ = ["RayHost", "join", "leave", "make_ray_hosts"]

#: Actors that may die over one question.
ATTEMPTS = 3


@dataclass
class _Membership:
    """Who uses the cluster in this process, of which there is one at most."""

    users: int = 0
    started: bool = False


_membership = _Membership()


def join(workers: int) -> None:
    """Joins the cluster that the environment names, or starts one on this machine; :func:`leave` undoes it.

    Raises:
        ConfigError: The cluster is not there, or has fewer cores than workers.
    """
    mine = not ray.is_initialized()
    if mine:
        _start(workers)
        _membership.users, _membership.started = 0, True
    cores = int(ray.cluster_resources().get("CPU", 0))
    if cores < workers:
        if mine:
            leave()
        raise ConfigError(f"the Ray cluster has {cores} cores, too few for {workers} workers: ask for fewer workers")
    _membership.users += 1


def leave() -> None:
    """Leaves the cluster that was joined here, and so ends one that was started, when nobody here uses it any more."""
    _membership.users = max(0, _membership.users - 1)
    if _membership.started and not _membership.users:
        _membership.started = False
        ray.shutdown()


def _start(workers: int) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not address:  # "local": not the cluster that somebody else may have started on this machine
        settings |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    try:
        if address:
            _knock(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own, about settings to come
            ray.init(**settings)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"join the Ray cluster at RAY_ADDRESS={address}" if address else "start Ray on this machine"
        raise ConfigError(f"cannot {where}: {_first_line(error)}") from None


def _knock(address: str) -> None:
    """Raises an OSError when nobody is at host:port, which Ray itself takes minutes to say."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


class _Remote:
    """What an actor does."""

    def __init__(self, config: TrainingConfig, runs: int, folder: str) -> None:
        torch.set_num_threads(1)
        with contextlib.suppress(OSError):  # not there on another machine
            os.chdir(folder)  # so that 'file.py:function' names the same file
        self._draws = Draws(config, runs)

    def pid(self) -> int:
        """The process it lives in."""
        return os.getpid()

    def call(self, method: str, argument: Mapping[int, Any]) -> dict[int, DrawState] | RlrateError:
        """What a method of :class:`Draws` returns, or why it does not."""
        try:
            states: dict[int, DrawState] = getattr(self._draws, method)(argument)
            return states
        except RlrateError as error:
            return error
        except Exception:
            return RlrateError(f"a worker on the Ray cluster failed:\n{traceback.format_exc()}")


class RayHost:
    """Draws in an actor with one core.

    The seed and the actions so far determine a draw. This side keeps them, and when the actor dies another one trains
    the draws again up to the same decision.

    Args:
        config: What is trained.
        runs: Runs of each draw.
        workers: Hosts that will share the cluster.
    """

    def __init__(self, config: TrainingConfig, runs: int, workers: int) -> None:
        join(workers)
        self._open = True
        self._arguments = config, runs, os.getcwd()
        self._history: dict[int, tuple[Seed, list[Array]]] = {}
        self._asked: list[int] = []
        self._answer: Any = None
        self._actor = self._new()

    def _new(self) -> Any:
        return ray.remote(num_cpus=1, max_restarts=0)(_Remote).remote(*self._arguments)

    def ask(self, method: str, argument: Mapping[int, Any]) -> None:
        """Sends the call."""
        for index, value in argument.items():
            if method == "begin":
                self._history[index] = value, []
            elif method == "forget":
                del self._history[index]
            else:
                self._history[index][1].append(np.array(value))
        self._asked = [] if method == "forget" else list(argument)
        self._answer = self._actor.call.remote(method, dict(argument))

    def answer(self) -> dict[int, DrawState]:
        """Waits for the result, from another actor if need be.

        Raises:
            RlrateError: what the call raised, or when actors keep dying or cannot start.
        """
        result = self._result()
        if isinstance(result, RlrateError):
            raise result
        return {index: result[index] for index in self._asked}

    def _result(self) -> dict[int, DrawState] | RlrateError:
        for _ in range(ATTEMPTS):
            try:
                result: dict[int, DrawState] | RlrateError = ray.get(self._answer)
                return result
            except (RayActorError, OutOfMemoryError) as error:
                how = _first_line(error)
                if getattr(error, "actor_init_failed", False):
                    cause = str(error).strip().splitlines()[-1]
                    raise RlrateError(
                        f"a worker on the Ray cluster could not start ({cause}); every machine of the cluster needs "
                        'pip install "rlrate[ray]"'
                    ) from None
                ray.kill(self._actor)
                self._actor = self._new()
                self._answer = self._actor.call.remote("rebuild", self._history)
            except RayError as error:
                raise RlrateError(f"the Ray cluster failed: {_first_line(error)}") from None
        raise RlrateError(
            f"a worker on the Ray cluster died {ATTEMPTS} times in a row ({how}); out of memory? "
            "Use fewer runs or workers"
        )

    def close(self) -> None:
        """Ends the actor, and the cluster if it was started here and this was the last host."""
        if not self._open:
            return
        self._open = False
        if ray.is_initialized():
            ray.kill(self._actor)
        leave()


def make_ray_hosts(config: TrainingConfig, runs: int, workers: int) -> Sequence[RayHost]:
    """``workers`` hosts on the cluster."""
    return [RayHost(config, runs, workers) for _ in range(workers)]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
