"""What a chart of the report shows, apart from how it is drawn: lines, intervals, axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlrate.experiments.statistics import Array, Interval

#: Roles of colours, the same in all charts: the learned scheduler, the best tuned one, a constant rate, three more.
ROLES = ("learned", "best", "constant", "fourth", "fifth", "sixth", "other")

Ticks = tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Axis:
    """One axis; the range covers the data where it is not given."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A line, with an optional band around it; values that are not finite interrupt it."""

    name: str
    role: str
    x: Array
    y: Array
    low: Array | None = None
    high: Array | None = None
    stairs: bool = False


@dataclass(frozen=True)
class Span:
    """An interval in a row of its own."""

    label: str
    role: str
    interval: Interval
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure: either lines, or intervals one below the other.

    Attributes:
        name: Stem of the file names, and of its anchor in the page.
        title: What it shows.
        x: Horizontal axis.
        y: Vertical axis; unused with intervals.
        lines: Lines, the most important last.
        spans: Intervals, from the top.
        key: What the colours of intervals mean: role and name.
        rule: Value of a reference line: vertical with intervals, horizontal with lines.
        caption: How to read it.
    """

    name: str
    title: str
    x: Axis
    y: Axis | None = None
    lines: tuple[Line, ...] = ()
    spans: tuple[Span, ...] = ()
    key: tuple[tuple[str, str], ...] = ()
    rule: float | None = None
    caption: str = ""

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """Role and name of all that a reader must tell apart, the most important first."""
        return self.key or tuple((line.role, line.name) for line in reversed(self.lines))


@dataclass(frozen=True)
class Scale:
    """An axis with its range and ticks fixed."""

    label: str
    log: bool
    low: float
    high: float
    ticks: Ticks

    def share(self, values: Array | float) -> Array:
        """Position along the axis, 0 at its low end and 1 at its high end, not beyond by more than a little."""
        low, high, at = self.low, self.high, np.asarray(values, dtype=np.float64)
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                low, high, at = math.log(low), math.log(high), np.log(at)
        return np.asarray(np.clip((at - low) / (high - low), -0.5, 1.5))


def scale(axis: Axis, values: Sequence[NDArray[np.float64]]) -> Scale:
    """Fixes the range of an axis: what is given, else what the finite values need, with a margin."""
    every = np.concatenate([np.ravel(each) for each in values]) if values else np.empty(0)
    finite = every[np.isfinite(every) & ((every > 0) | (not axis.log))]
    low = axis.low if axis.low is not None else float(finite.min()) if len(finite) else (0.1 if axis.log else 0.0)
    high = axis.high if axis.high is not None else float(finite.max()) if len(finite) else 1.0
    if axis.log:
        margin = max((high / low) ** 0.04, 1.02)
        low, high = (low if axis.low is not None else low / margin, high if axis.high is not None else high * margin)
        return Scale(axis.label, True, low, high, _log_ticks(low, high))
    margin = (high - low) * 0.04 or abs(high) * 0.04 or 1.0
    low, high = (low if axis.low is not None else low - margin, high if axis.high is not None else high + margin)
    return Scale(axis.label, False, low, high, _linear_ticks(low, high))


def scales(chart: Chart) -> tuple[Scale, Scale | None]:
    """Both axes of a chart; the vertical one of intervals is None, since it has rows instead."""
    rule = [np.array([chart.rule])] if chart.rule is not None else []
    if chart.spans:
        return scale(chart.x, [np.array(span.interval) for span in chart.spans] + rule), None
    assert chart.y is not None
    heights = [each for line in chart.lines for each in (line.y, line.low, line.high) if each is not None]
    return scale(chart.x, [line.x for line in chart.lines]), scale(chart.y, heights + rule)


def number(value: float) -> str:
    """A number as short as it can be read: three digits, powers of ten where many zeros would stand."""
    if math.isnan(value):
        return "n/a"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e").replace(".00e", "e")
    text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    return text


def _linear_ticks(low: float, high: float) -> Ticks:
    raw = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    values = [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]
    return tuple((value, number(value)) for value in values)


def _log_ticks(low: float, high: float) -> Ticks:
    decades = math.log10(high / low)
    if decades < 0.35:
        return tuple(tick for tick in _linear_ticks(low, high) if tick[0] > 0)
    units = (1, 2, 5) if decades < 2.6 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = max(1, math.ceil(decades / 6))
    kept = [power for power in powers if power % every == 0]
    values = [unit * 10.0**power for power in kept for unit in units if low <= unit * 10.0**power <= high]
    if len(values) < 3 and decades < 1.3:
        return tuple(tick for tick in _linear_ticks(low, high) if tick[0] > 0)
    return tuple((value, _power(value)) for value in values)


def _power(value: float) -> str:
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{value:g}"
    mantissa = round(value / 10.0**exponent)
    return f"1e{exponent}" if mantissa == 1 else f"{mantissa}e{exponent}"
