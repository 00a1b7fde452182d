"""A comparison as a table for the terminal."""

from __future__ import annotations

import math

from rich.table import Table

from rlrate.experiments.compare import LEARNED, Comparison, Row


def comparison_table(comparison: Comparison) -> Table:
    """One line per workload, optimizer and method, best first; the learned method stands out."""
    settings = comparison.settings
    table = Table(
        title=f"Final held-out loss after {settings['steps']} updates, mean of {settings['seeds']} paired seeds",
        caption="ratio: to the best tuned schedule of the same optimizer, [95 % interval]; lower is better; "
        "* best rate at the edge of the grid",
    )
    table.add_column("workload")
    table.add_column("optimizer")
    table.add_column("schedule")
    table.add_column("peak lr", justify="right")
    table.add_column("trials", justify="right")
    table.add_column("loss", justify="right")
    table.add_column("accuracy", justify="right")
    table.add_column("ratio", justify="right")
    for workload in settings["workloads"]:
        for optimizer in settings["optimizers"]:
            rows = [r for r in comparison.rows if (r.workload, r.optimizer) == (workload, optimizer)]
            for index, row in enumerate(sorted(rows, key=lambda r: r.loss)):
                head = (workload, optimizer) if index == 0 else ("", "")
                table.add_row(*head, *_cells(row), style="bold green" if row.method == LEARNED else None)
            table.add_section()
    return table


def _cells(row: Row) -> tuple[str, ...]:
    accuracy = sum(row.accuracies) / len(row.accuracies)
    low, high = row.interval
    loss = f"{row.loss:.4g}" if row.diverged == 0 else f"{row.diverged} of {len(row.losses)} diverged"
    return (
        row.method,
        "none given" if row.peak is None else f"{row.peak:.3g}{'*' if row.edge else ''}",
        str(row.trials),
        loss,
        "" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %",
        f"{row.ratio:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(row.ratio) else "inf",
    )
