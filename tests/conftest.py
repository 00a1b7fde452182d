"""Hygiene for every test: it starts from one global state, gives it back, and leaks nothing."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings

# Examples are the same in every run, so that a failure is a failure for everybody.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# Sums of floats depend on how many threads share them.
torch.set_num_threads(1)

# Written by pytest itself, and by libraries when parts of them are first imported.
_VOLATILE = ("PYTEST_", "KMP_", "PYGAME_", "TORCHINDUCTOR_", "PYTORCH_NVML_")


@pytest.fixture(autouse=True)
def hygiene() -> Iterator[None]:
    """Seeds and restores the random streams; fails a test that leaves other global state behind."""
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
    threads = torch.get_num_threads()
    before = _global_state()
    running = set(threading.enumerate())
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

    yield

    random.setstate(streams[0])
    np.random.set_state(streams[1])
    torch.set_rng_state(streams[2])
    torch.set_num_threads(threads)
    after = _global_state()
    leaks = [name for name in before | after if before.get(name) != after.get(name)]
    if leaks:
        _restore(before)
    leaks += [
        f"thread {thread.name!r}, which still runs"
        for thread in threading.enumerate()
        if thread not in running and not thread.daemon
    ]
    assert not leaks, "the test changed, and did not restore: " + ", ".join(leaks)


def _global_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "grad enabled": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "working directory": os.getcwd(),
        "SIGINT handler": signal.getsignal(signal.SIGINT),
        "SIGTERM handler": signal.getsignal(signal.SIGTERM),
        **{f"${k}": v for k, v in os.environ.items() if not k.startswith(_VOLATILE)},
    }


def _restore(state: dict[str, Any]) -> None:
    torch.set_default_dtype(state["default dtype"])
    torch.set_grad_enabled(state["grad enabled"])
    torch.use_deterministic_algorithms(state["deterministic algorithms"])
    os.chdir(state["working directory"])
    signal.signal(signal.SIGINT, state["SIGINT handler"])
    signal.signal(signal.SIGTERM, state["SIGTERM handler"])
    variables = {name[1:]: value for name, value in state.items() if name.startswith("$")}
    for name in set(os.environ) - set(variables):
        if not name.startswith(_VOLATILE):
            del os.environ[name]
    os.environ.update(variables)
