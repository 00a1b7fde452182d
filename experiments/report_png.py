"""Charts of a report as PNG files, drawn by matplotlib from the same description as those of the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlrate.experiments.report_charts import Chart, Scale, scales

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

COLOURS = {
    "learned": "#c62b45",
    "best": "#00718a",
    "constant": "#a86c06",
    "fourth": "#6448c4",
    "fifth": "#3c7a32",
    "sixth": "#9c4297",
    "other": "#757983",
}
_WIDTH = 6.4  # inches
_DASHES = {"constant": (4, 2), "fourth": (1, 1.6), "fifth": (5, 1.5, 1, 1.5), "sixth": (7, 3)}


def save_chart(chart: Chart, path: Path) -> Path:
    """Draws a chart into a PNG file; returns its path."""
    from matplotlib.figure import Figure

    x, y = scales(chart)
    height = 0.32 * len(chart.spans) + 1.2 if y is None else 4.0
    figure = Figure(figsize=(_WIDTH, height))
    # Margins by hand: finding them takes longer than the drawing.
    labels = [span.label for span in chart.spans] if y is None else [text for _, text in y.ticks]
    label = max(map(len, labels), default=1)
    rows = -(-len(chart.legend) // 3)
    left = (0.085 * label + (0.25 if y is None else 0.5)) / _WIDTH
    axes = figure.add_axes((left, 0.62 / height, 0.97 - left, 1 - (1.0 + 0.22 * rows) / height))
    _fix(axes, x, "x")
    if y is None:
        _spans(axes, chart)
    else:
        _fix(axes, y, "y")
        _lines(axes, chart)
    figure.text(0.02, 1 - 0.1 / height, chart.title, fontsize=11, va="top")
    if chart.legend:
        handles = [_sample(role, dot=y is None) for role, _ in chart.legend]
        names = [name for _, name in chart.legend]
        above = (0.01, 1 - 0.28 / height)
        figure.legend(handles, names, ncols=3, fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=above)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, linewidth=0.5, alpha=0.5)
    figure.savefig(path, dpi=130)
    return path


def _sample(role: str, *, dot: bool) -> Line2D:
    from matplotlib.lines import Line2D

    if dot:
        return Line2D([], [], color=COLOURS[role], marker="o", linestyle="none", markersize=5)
    return Line2D([], [], color=COLOURS[role], linestyle=(0, _DASHES.get(role, ())), linewidth=1.5)


def _spans(axes: Axes, chart: Chart) -> None:
    for row, span in enumerate(chart.spans):
        value, low, high = span.interval
        axes.plot([low, high], [row, row], color=COLOURS[span.role], linewidth=2, solid_capstyle="round")
        axes.plot(value, row, "o", color=COLOURS[span.role], markersize=5)
    axes.set_yticks(range(len(chart.spans)), [span.label for span in chart.spans])
    axes.set_ylim(len(chart.spans) - 0.5, -0.5)
    if chart.rule is not None:
        axes.axvline(chart.rule, color="0.4", linewidth=1, linestyle="--")


def _lines(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        colour, y = COLOURS[line.role], np.where(np.isfinite(line.y), line.y, np.nan)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(
            line.x,
            y,
            color=colour,
            linewidth=2.2 if line.role == "learned" else 1.5,
            drawstyle="steps-post" if line.stairs else "default",
            linestyle=(0, _DASHES.get(line.role, ())),
        )
    if chart.rule is not None:
        axes.axhline(chart.rule, color="0.4", linewidth=1, linestyle="--")


def _fix(axes: Axes, scale: Scale, which: str) -> None:
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    axes.set(**{f"{which}scale": "log" if scale.log else "linear", f"{which}label": scale.label})
    axes.set(**{f"{which}lim": (scale.low, scale.high)})
    axis.set_ticks([value for value, _ in scale.ticks], [label for _, label in scale.ticks])
    axis.set_ticks([], minor=True)
