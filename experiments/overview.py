"""A suite's results at a glance, for the terminal; the report has the statistics."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from rlrate.experiments.methods import LEARNED, METHODS
from rlrate.experiments.statistics import centre
from rlrate.experiments.store import Results


def suite_table(results: Results) -> Table:
    """One line for each problem: the best tuned schedule, the best method without trials, and the learned one."""
    table = Table(
        title=results.suite["title"],
        caption="final held-out loss over seeds; ratio to the best tuned schedule; lower is better",
    )
    table.add_column("problem")
    table.add_column("best tuned")
    table.add_column("loss", justify="right")
    table.add_column("best without trials")
    table.add_column("ratio", justify="right")
    table.add_column(LEARNED, justify="right")
    table.add_column("diverged", justify="right")
    for problem in results.suite["problems"]:
        losses: dict[str, list[float]] = {}
        for row in results.rows:
            if row.problem == problem["name"] and row.role == "report":
                losses.setdefault(row.method, []).append(row.heldout_loss)
        centres = {method: centre(np.array(values)) for method, values in losses.items()}
        tuned = min((m for m in centres if METHODS[m].group == "schedule"), key=centres.__getitem__)
        free = [m for m in centres if METHODS[m].group in ("default", "self-tuning")]
        untuned = min(free, key=centres.__getitem__) if free else ""
        best = centres[tuned]
        broken = sum(not np.isfinite(loss) for loss in losses.get(LEARNED, []))
        table.add_row(
            problem["name"],
            tuned,
            f"{best:.4g}",
            untuned,
            f"{centres[untuned] / best:.3f}" if untuned else "",
            f"{centres[LEARNED] / best:.3f}" if LEARNED in centres else "",
            f"{broken} of {len(losses[LEARNED])}" if LEARNED in losses else "",
        )
    return table
