"""What the commands print: results on stdout; progress, notes and errors on stderr."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

#: Seconds between two lines of progress where there is no terminal to draw a bar on.
QUIET = 2.0

_PIPE_WIDTH = 120


def stdout() -> Console:
    """The console for results; wide enough for tables where the output is no terminal."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def stderr() -> Console:
    """The console for everything that is no result."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else _PIPE_WIDTH, highlight=False)


def say(text: str, *, style: str = "") -> None:
    """Prints one result line as it is: no markup, no wrapping."""
    stdout().print(Text(text, style=style), soft_wrap=True)


def note(text: str, *, style: str = "") -> None:
    """Prints one line to stderr as it is."""
    stderr().print(Text(text, style=style), soft_wrap=True)


def say_json(data: Any) -> None:
    """Prints JSON; numbers that are not finite, which JSON does not have, become null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, default=str) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner for work whose end cannot be told; nothing where there is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


class Steps:
    """Progress of work in known steps: a bar with the remaining time, or now and then a line."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.console = stderr()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None, note="")
        self._begun = self._printed = time.monotonic()
        self._first: tuple[int, float] | None = None
        self._said = self._begun

    def __enter__(self) -> Steps:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def remaining(self, done: int, total: int) -> float:
        """Seconds that the rest will take, judged by the steps seen so far."""
        now = time.monotonic()
        if self._first is None:
            # The first step pays for the set-up, and a resumed training begins in the middle.
            self._first = (done, now)
            return (now - self._begun) * (total - done)
        return (now - self._first[1]) / max(done - self._first[0], 1) * (total - done)

    def line(self, done: int, total: int, text: str) -> None:
        """A line that stays, for steps that take seconds."""
        left = clock(self.remaining(done, total))
        width = len(str(total))
        self._bar.update(self._task, completed=done, total=total, note=f"{left} left")
        self.console.print(Text(f"{self.what} {done:{width}}/{total}  {text}  {left} left"), soft_wrap=True)
        self._said = time.monotonic()

    def beside(self, done: int, total: int, text: str, share: float) -> None:
        """A line about other work before, between or after the steps, of which ``share`` is done."""
        now = time.monotonic()
        left = clock((now - self._said) / share * (1.0 - share)) if share > 0.0 else "?"
        if self._first is None:
            self._begun = now  # what the first step takes begins after it
        self._bar.update(self._task, completed=done, total=total, note=f"{text}, {left} of it left")
        width = len(str(total))
        line = f"{self.what} {done:{width}}/{total}  {text}, {share:.0%}  {left} of it left"
        self.console.print(Text(line), soft_wrap=True)

    def step(self, done: int, total: int, text: str) -> None:
        """A step that may be one of many."""
        # How many steps the first report stands for is not known here.
        left = "?" if self._first is None else clock(self.remaining(done, total))
        self._first = self._first or (done, time.monotonic())
        self._bar.update(self._task, completed=done, total=total, note=f"{left} left  {text}")
        now = time.monotonic()
        if not self.console.is_terminal and (done == total or now - self._printed >= QUIET):
            self._printed = now
            self.console.print(Text(f"{self.what} {done}/{total}  {text}  {left} left"), soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
