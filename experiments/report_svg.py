"""Charts as SVG: coordinates are computed here, ``report_template/chart.svg.j2`` prints them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlrate.experiments.report_charts import Chart, Line, Scale, Span, number, scales
from rlrate.experiments.statistics import Array

#: Width of a chart in its own units: about that of a phone, so that its text need not shrink there.
WIDTH = 420
_HEIGHT, _ROW, _TOP, _BOTTOM, _RIGHT = 236, 24, 8, 40, 14
_CHARACTER, _LETTER = 6.4, 6.9  # width of one at 12 units: on average, and where there must be room for all


@dataclass(frozen=True)
class Frame:
    """Where the plot lies in the picture."""

    left: float
    top: float
    width: float
    height: float


def scene(chart: Chart) -> dict[str, Any]:
    """Everything that the template prints, in the picture's units."""
    x, y = scales(chart)
    legend, rows = _legend(chart)
    top = _TOP + (18 * rows + 6 if rows else 0)
    if y is None:
        left = min(max(len(span.label) for span in chart.spans) * _LETTER + 16, 0.53 * WIDTH)
        frame = Frame(left, top, WIDTH - left - _RIGHT, _ROW * len(chart.spans) + 6)
    else:
        left = max((len(label) for _, label in y.ticks), default=1) * _CHARACTER + 30
        frame = Frame(left, top, WIDTH - left - _RIGHT, _HEIGHT - _BOTTOM)
    height = frame.top + frame.height + _BOTTOM
    return {
        "chart": chart,
        "frame": frame,
        "width": WIDTH,
        "height": round(height),
        "legend": legend,
        "x": x,
        "y": y,
        "xticks": [(_across(frame, x, value), label) for value, label in _thinned(x, frame)],
        "yticks": [(_down(frame, y, value), label) for value, label in y.ticks] if y else [],
        "rule": None
        if chart.rule is None
        else (_across(frame, x, chart.rule) if y is None else _down(frame, y, chart.rule)),
        "spans": [_span(frame, x, index, span) for index, span in enumerate(chart.spans)],
        "lines": [_line(frame, x, y, line) for line in chart.lines] if y else [],
        "data": _data(chart, frame, x, y) if y else "",
        "label_at": _label_at(frame, x.label),
    }


def _label_at(frame: Frame, label: str) -> float:
    """Middle of the horizontal axis's label: under the axis, but within the picture."""
    half = len(label) * _CHARACTER / 2
    return round(min(frame.left + frame.width / 2, WIDTH - half), 1)


def _across(frame: Frame, x: Scale, value: float) -> float:
    return round(frame.left + frame.width * float(np.clip(x.share(value), 0, 1)), 1)


def _down(frame: Frame, y: Scale, value: float) -> float:
    return round(frame.top + frame.height * (1 - float(np.clip(y.share(value), 0, 1))), 1)


def _thinned(x: Scale, frame: Frame) -> list[tuple[float, str]]:
    """Ticks whose labels do not touch."""
    kept: list[tuple[float, str]] = []
    end = -math.inf
    for value, label in x.ticks:
        at, half = _across(frame, x, value), len(label) * _CHARACTER / 2
        if at - half > end + 5:
            kept.append((value, label))
            end = at + half
    return kept


def _legend(chart: Chart) -> tuple[list[dict[str, Any]], int]:
    """What the colours mean, in rows."""
    entries: list[dict[str, Any]] = []
    at, row = 0.0, 0
    for role, name in chart.legend:
        width = len(name) * _CHARACTER + (30 if chart.spans else 40)
        if entries and at + width > WIDTH:
            at, row = 0.0, row + 1
        entries.append({"x": round(at + 4, 1), "y": _TOP + 8 + 18 * row, "name": name, "role": role})
        at += width
    return entries, row + 1 if entries else 0


def _span(frame: Frame, x: Scale, index: int, span: Span) -> dict[str, Any]:
    value, low, high = span.interval
    at = frame.top + 3 + _ROW * (index + 0.5)
    limit = int((frame.left - 12) / _LETTER)
    # Of a name that is too long the middle goes: its end tells problems apart.
    head, tail = limit // 2, limit - limit // 2 - 1
    label = span.label if len(span.label) <= limit else f"{span.label[:head]}…{span.label[-tail:]}"
    tip = f"{span.label}: {number(value)} [{number(low)}, {number(high)}]" + (f". {span.note}" if span.note else "")
    ends = (_across(frame, x, low), _across(frame, x, value), _across(frame, x, high))
    return {"y": round(at, 1), "ends": ends, "label": label, "tip": tip, "role": span.role}


def _line(frame: Frame, x: Scale, y: Scale, line: Line) -> dict[str, Any]:
    band = ""
    if line.low is not None and line.high is not None:
        edges = np.isfinite(line.low) & np.isfinite(line.high)
        forth = _points(frame, x, y, line.x[edges], line.low[edges])
        back = _points(frame, x, y, line.x[edges], line.high[edges])[::-1]
        if len(forth) > 1:
            band = "M" + "L".join(f"{a} {b}" for a, b in [*forth, *back]) + "Z"
    return {"path": _path(frame, x, y, line), "band": band, "role": line.role, "name": line.name}


def _points(frame: Frame, x: Scale, y: Scale, xs: Array, ys: Array) -> list[tuple[float, float]]:
    # What lies outside the axes is drawn outside the frame, and cut off by it.
    across = frame.left + frame.width * x.share(xs)
    down = frame.top + frame.height * (1 - y.share(ys))
    return [(round(float(a), 1), round(float(b), 1)) for a, b in zip(across, down, strict=True)]


def _path(frame: Frame, x: Scale, y: Scale, line: Line) -> str:
    usable = np.isfinite(line.y) & ((line.y > 0) | (not y.log))
    parts, pen = [], "M"
    points = iter(_points(frame, x, y, line.x[usable], line.y[usable]))
    for good in usable:
        if not good:
            pen = "M"
            continue
        a, b = next(points)
        parts.append(f"H{a}V{b}" if line.stairs and pen == "L" else f"{pen}{a} {b}")
        pen = "L"
    return "".join(parts)


def _data(chart: Chart, frame: Frame, x: Scale, y: Scale) -> str:
    """What the page's script needs to tell values under the pointer."""

    def short(values: Array) -> list[float | None]:
        return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]

    series = [{"n": n.name, "r": n.role, "x": short(n.x), "y": short(n.y)} for n in reversed(chart.lines)]
    axes = {
        "f": [frame.left, frame.top, frame.width, frame.height],
        "x": [x.low, x.high, int(x.log)],
        "y": [y.low, y.high, int(y.log)],
        "l": x.label,
    }
    return json.dumps(axes | {"s": series}, separators=(",", ":")).replace("<", "\\u003c")
