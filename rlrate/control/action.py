"""How a policy's output becomes a learning rate, and the rules that guard it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.control.state import dump, restore
from rlrate.errors import ConfigError

Array = NDArray[np.float64]

_GUARD_STATE = ("first", "smooth", "best", "noise", "ceiling")

#: Relative update size above which no short budget starts.
HIGHEST_START = 0.05

#: Cuts that one alarm makes at most.
MOST_CUTS = 4.0


@dataclass(frozen=True)
class Action:
    """A bounded multiplier of the learning rate, and the structural rules around it.

    The rate after a decision is ``rate * factor**u`` with u in [-1, 1]; u = 0 keeps it. Around it stand:
    the start (a small relative update size, whatever rate was given), a cap on the relative update size
    |update| / |weights| per step, a cut when the loss spikes or is not finite, and a final linear anneal.
    Each rule can be switched off by None (or 0 for the anneal).

    Attributes:
        factor: Largest multiplier of one decision, > 1.
        multipliers: For discrete policies, the multiplier of each choice; None for continuous ones.
        start: Relative update size after the probing updates; None starts from the rate that was given.
        cap: Largest relative update size per step that a decision may aim for.
        cut: Multiplier of the rate when the loss spikes; ``cut**2`` when it is not finite.
        check: The loss is looked at in blocks of this many updates.
        alarm: A single loss cuts the rate at once when it lies above the best by more than so many standard deviations
            plus 30 % of all that was gained, and once more for each further factor of ten; None to look at blocks only.
        anneal: Final share of the budget over which the rate goes linearly to zero.
        short: Budgets of fewer updates leave little time to climb: they start higher, by the square of the ratio, up to
            :data:`HIGHEST_START`, where a run is not given its start. None for the same start always.
        patience: So many decisions in a row must advise to stop; from then on u is -1, whatever comes. None for never.
    """

    factor: float = 2.5
    multipliers: tuple[float, ...] | None = None
    start: float | None = 1e-3
    cap: float | None = 0.05
    cut: float | None = 0.5
    check: int = 5
    alarm: float | None = None
    anneal: float = 0.3
    patience: int | None = None
    short: int | None = None

    def __post_init__(self) -> None:
        _require(self.factor > 1.0 and math.isfinite(self.factor), "factor > 1", self.factor)
        if self.multipliers is not None:
            object.__setattr__(self, "multipliers", tuple(float(m) for m in self.multipliers))
            ok = len(self.multipliers) >= 2 and all(
                m > 0 and abs(math.log(m)) <= math.log(self.factor) * (1 + 1e-9) for m in self.multipliers
            )
            _require(ok, "at least two multipliers within 1/factor .. factor", self.multipliers)
        _require(self.start is None or 0 < self.start < 1, "start in (0, 1)", self.start)
        _require(self.cap is None or 0 < self.cap <= 1, "cap in (0, 1]", self.cap)
        _require(self.cut is None or 0 < self.cut < 1, "cut in (0, 1)", self.cut)
        _require(isinstance(self.check, int) and self.check >= 1, "check >= 1", self.check)
        _require(self.alarm is None or 0 < self.alarm < math.inf, "alarm > 0", self.alarm)
        _require(0 <= self.anneal <= 1, "anneal in [0, 1]", self.anneal)
        patient = type(self.patience) is int and self.patience >= 1
        _require(self.patience is None or patient, "patience, an integer >= 1", self.patience)
        _require(
            self.short is None or (type(self.short) is int and self.short >= 1), "short, an integer >= 1", self.short
        )

    def starts(self, runs: int, total_steps: int | None) -> Array | None:
        """Relative update sizes with which a budget starts, which may not be known, shape (runs,); None for none."""
        if self.start is None:
            return None
        start = self.start
        if self.short is not None and total_steps is not None and total_steps < self.short:
            start = max(start, min(start * (self.short / total_steps) ** 2, HIGHEST_START))
        return np.full(runs, start)

    @property
    def choices(self) -> NDArray[np.float32] | None:
        """The u in [-1, 1] of each discrete choice, or None for a continuous action."""
        if self.multipliers is None:
            return None
        return (np.log(self.multipliers) / math.log(self.factor)).astype(np.float32)

    def log_multiplier(self, u: Array) -> Array:
        """Natural logarithm of the multiplier for u, clipped to [-1, 1]; non-finite u keeps the rate."""
        return np.clip(np.nan_to_num(u, nan=0.0), -1.0, 1.0) * math.log(self.factor)

    def envelope(self, progress: float) -> float:
        """Factor in (0, 1] of the final anneal at a share ``progress`` of the budget."""
        if self.anneal <= 0.0:
            return 1.0
        return min(1.0, max(0.0, (1.0 - progress) / self.anneal))


class SpikeGuard:
    """Tells when the loss of a run has spiked, from means over blocks of updates.

    A block is a spike when its mean lies above the lowest smoothed loss so far by more than six standard
    errors plus 30 % of all that was gained since the start, so neither the unit nor the sign of the loss matters.
    After a spike the reference is the spike itself, so that the rate is not cut for one event for ever.

    A network that is lost is lost within two or three updates, each of which multiplies its loss; blocks see that too
    late. So single losses may raise an alarm (:meth:`alarms`), with a limit that is wide enough for noise.

    Args:
        runs: N, the number of runs.
        alarm: Standard deviations that a single loss may lie above the best one; None for no alarms.
    """

    def __init__(self, runs: int, alarm: float | None = None) -> None:
        self.alarm = alarm
        #: Single losses above it raise an alarm.
        self.ceiling = np.full(runs, np.inf)
        self.first = np.full(runs, np.nan)
        self.smooth = np.full(runs, np.nan)
        self.best = np.full(runs, np.nan)
        self.noise = np.full(runs, np.nan)

    def spikes(self, block: Array) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Looks at one block of losses.

        Args:
            block: Losses, shape (updates, N); may hold NaN and infinities.

        Returns:
            Two masks of shape (N,): finite blocks that spiked, and blocks that hold a non-finite loss.
        """
        with np.errstate(all="ignore"):
            mean, deviation = block.mean(axis=0), block.std(axis=0)
            broken = ~np.isfinite(mean) | ~np.isfinite(deviation)
            if len(block) == 1:  # an interval's last loss may stand alone, and has no deviation of its own
                deviation = np.where(np.isnan(self.smooth), 0.0, np.abs(mean - self.smooth))
            fresh = np.isnan(self.first) & ~broken
            for name, value in (("first", mean), ("smooth", mean), ("best", mean)):
                setattr(self, name, np.where(fresh, value, getattr(self, name)))
            self.noise = np.where(fresh, deviation, self.noise)
            error = self.noise / math.sqrt(len(block))
            gained = np.maximum(self.first - self.best, 0.0)
            # The last term keeps the rounding noise of a constant loss from counting as a spike.
            spiked = ~broken & (mean > self.best + 6.0 * error + 0.3 * gained + 0.02 * np.abs(self.best))
            # A spike must not raise the noise that it is judged by.
            bounded = np.minimum(deviation, 3.0 * self.noise + 1e-3 * np.abs(self.best))
            self.noise = np.where(broken, self.noise, self.noise + 0.1 * (bounded - self.noise))
            smooth = np.where(spiked, mean, self.smooth + 0.25 * (mean - self.smooth))
            self.smooth = np.where(broken, self.smooth, smooth)
            self.best = np.where(spiked, mean, np.fmin(self.best, self.smooth))
            if self.alarm is not None:
                self.ceiling = np.where(np.isnan(self.best), np.inf, self.best + self._margin())
        return spiked, broken

    def alarms(self, losses: Array) -> Array:
        """How often the rates are to be cut for what the losses of one update, shape (N,), are; shape (N,).

        The next alarm of the block needs a loss that is higher still.
        """
        with np.errstate(all="ignore"):
            alarmed = losses > self.ceiling
            excess = np.log10((losses - self.best) / self._margin())
            cuts = np.where(alarmed, np.clip(np.floor(1.0 + excess), 1.0, MOST_CUTS), 0.0)
            self.ceiling = np.where(alarmed, losses + self._margin(), self.ceiling)
        return cuts

    def _margin(self) -> Array:
        assert self.alarm is not None
        gained = np.maximum(self.first - self.best, 0.0)
        margin: Array = self.alarm * self.noise + 0.3 * gained + 0.02 * np.abs(self.best)
        return margin

    def state_dict(self) -> dict[str, Any]:
        """The smoothed losses, as torch tensors."""
        return dump(self, _GUARD_STATE)

    def load_state_dict(self, state: object) -> None:
        """Continues from what :meth:`state_dict` returned."""
        if isinstance(state, Mapping) and "ceiling" not in state:  # written before there was one
            state = {**state, "ceiling": torch.full((len(self.first),), math.inf, dtype=torch.float64)}
        restore(self, _GUARD_STATE, state)


def _require(ok: bool, what: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"the action needs {what}, got {got!r}")
