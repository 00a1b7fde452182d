"""Pictures of a comparison."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlrate.experiments.compare import LEARNED, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEARNED, _BEST, _CONSTANT, _OTHER = "#d1495b", "#00798c", "#edae49", "#c4c9ce"


def save_figures(comparison: Comparison, out: Path) -> list[Path]:
    """Writes ``curves-WORKLOAD.png`` (losses and rates over time) and ``ratios.png``; returns their paths."""
    paths = [_curves(comparison, name, out) for name in comparison.settings["workloads"]]
    return [*paths, _ratios(comparison, out)]


def _curves(comparison: Comparison, workload: str, out: Path) -> Path:
    import matplotlib.pyplot as plt

    optimizers = comparison.settings["optimizers"]
    figure, axes = plt.subplots(
        2, len(optimizers), figsize=(3.6 * len(optimizers) + 0.6, 5.6), sharex=True, squeeze=False, layout="constrained"
    )
    for column, optimizer in enumerate(optimizers):
        _one_column(comparison, workload, optimizer, axes[:, column])
    axes[0, 0].set_ylabel("training loss")
    axes[1, 0].set_ylabel("learning rate")
    figure.suptitle(f"{workload}: median of {comparison.settings['seeds']} seeds")
    name = re.sub(r"[^-.\w]+", "-", workload)  # that of a user's own has a colon
    path = out / f"curves-{name}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _one_column(comparison: Comparison, workload: str, optimizer: str, axes: Any) -> None:
    methods = {m: t for (w, o, m), t in comparison.traces.items() if (w, o) == (workload, optimizer)}
    rows = {r.method: r for r in comparison.rows if (r.workload, r.optimizer) == (workload, optimizer)}
    best = min((m for m in methods if m != LEARNED), key=lambda m: rows[m].loss)
    styles: dict[str, tuple[str, float, str | None]] = {m: (_OTHER, 1.0, None) for m in methods}
    if "constant" in methods:
        styles["constant"] = (_CONSTANT, 1.6, "constant, tuned")
    styles[best] = (_BEST, 2.0, f"{best}, tuned (best)")
    styles[LEARNED] = (_LEARNED, 2.4, "learned, nothing given")
    for method in sorted(methods, key=lambda m: styles[m][1]):
        trace, (colour, width, label) = methods[method], styles[method]
        with np.errstate(all="ignore"):
            loss = np.nanmedian(np.where(np.isfinite(trace.train_loss), trace.train_loss, np.nan), axis=1)
        axes[0].plot(trace.updates, loss, color=colour, linewidth=width, label=label)
        axes[1].plot(trace.updates, np.median(trace.rate, axis=1), color=colour, linewidth=width)
    # Both heroes must stay in the picture; a rival that diverged need not.
    shown = np.concatenate([methods[LEARNED].train_loss, methods[best].train_loss])
    finite = shown[np.isfinite(shown)]
    if len(finite) and finite.min() > 0:
        axes[0].set_yscale("log")
        axes[0].set_ylim(finite.min() / 2, finite.max() * 2)
    axes[1].set_yscale("log")
    axes[0].set_title(f"{optimizer}\nlearned / best tuned: {rows[LEARNED].ratio:.3f}", fontsize=10)
    axes[0].legend(fontsize=7, frameon=False)
    axes[1].set_xlabel("update")
    for axis in axes:
        _clean(axis)


def _ratios(comparison: Comparison, out: Path) -> Path:
    import matplotlib.pyplot as plt

    rows = [row for row in comparison.rows if row.method == LEARNED]
    figure, axis = plt.subplots(figsize=(6.4, 0.36 * len(rows) + 1.4), layout="constrained")
    for position, row in enumerate(reversed(rows)):
        low, high = row.interval
        if np.isfinite([row.ratio, low, high]).all():
            axis.plot([low, high], [position, position], color=_LEARNED, linewidth=2)
            axis.plot(row.ratio, position, "o", color=_LEARNED)
    axis.axvline(1.0, color=_BEST, linewidth=1.5)
    axis.set_yticks(range(len(rows)), [f"{r.workload}, {r.optimizer}" for r in reversed(rows)])
    axis.set_xlabel("final held-out loss, learned / best tuned schedule (95 % interval)")
    _clean(axis)
    path = out / "ratios.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def _clean(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, which="major", linewidth=0.4, alpha=0.5)
