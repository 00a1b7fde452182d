"""The arithmetic of one run in plain floats; for arrays of one element numpy takes ten times as long.

Each function does what its counterpart for N runs does, in the same order of operations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlrate.control.action import SpikeGuard
from rlrate.control.trend import LossTrend


def spikes(guard: SpikeGuard, block: Sequence[float]) -> tuple[bool, bool]:
    """:meth:`SpikeGuard.spikes` for one run: whether the block spiked, and whether it holds a non-finite loss."""
    count = len(block)
    mean = sum(block) / count
    deviation = math.sqrt(sum([(loss - mean) * (loss - mean) for loss in block]) / count)
    broken = not (math.isfinite(mean) and math.isfinite(deviation))
    first, smooth = float(guard.first[0]), float(guard.smooth[0])
    best, noise = float(guard.best[0]), float(guard.noise[0])
    if count == 1:
        deviation = 0.0 if math.isnan(smooth) else abs(mean - smooth)
    if math.isnan(first) and not broken:
        first = smooth = best = mean
        noise = deviation
    gained = first - best
    if gained < 0.0:
        gained = 0.0
    limit = best + 6.0 * (noise / math.sqrt(count)) + 0.3 * gained + 0.02 * abs(best)
    spiked = not broken and mean > limit
    if not broken:
        limit = 3.0 * noise + 1e-3 * abs(best)
        noise = noise + 0.1 * ((deviation if deviation < limit else limit) - noise)
        smooth = mean if spiked else smooth + 0.25 * (mean - smooth)
    if spiked:
        best = mean
    elif smooth < best or math.isnan(best):
        best = smooth
    if guard.alarm is not None and not math.isnan(best):
        guard.ceiling[0] = best + (guard.alarm * noise + 0.3 * max(first - best, 0.0) + 0.02 * abs(best))
    guard.first[0], guard.smooth[0], guard.best[0], guard.noise[0] = first, smooth, best, noise
    return spiked, broken


def extend(trend: LossTrend, block: Sequence[float], first: int) -> None:
    """:meth:`LossTrend.add` for one run."""
    known = [(first + index, loss) for index, loss in enumerate(block) if math.isfinite(loss)]
    count = len(known)
    total = sum([loss for _, loss in known])
    centre = total / max(count, 1)
    trend.accumulate(
        (
            count,
            sum([time for time, _ in known]),
            sum([time * time for time, _ in known]),
            total,
            sum([time * loss for time, loss in known]),
            sum([loss * loss for _, loss in known]),
        ),
        (max(count - 1.0, 0.0), sum([(loss - centre) * (loss - centre) for _, loss in known])),
    )
