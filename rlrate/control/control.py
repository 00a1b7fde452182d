"""One code for environment and scheduler: statistics of N training runs in, N learning rates out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlrate.control import single
from rlrate.control.action import SpikeGuard
from rlrate.control.horizon import Horizon
from rlrate.control.patience import Patience
from rlrate.control.probe import probing_rate
from rlrate.control.signals import Interval, Signals
from rlrate.control.spec import ControlSpec
from rlrate.control.state import dump, restore
from rlrate.control.traits import OptimizerTraits
from rlrate.control.trend import LossTrend

Array = NDArray[np.float64]

#: Updates before each decision at which gradients are sampled.
WINDOW = 3

#: What changes during a run, apart from the parts that keep their own state.
# The rates follow from the given ones, so these come first.
_STATE = (
    *("_base", "_log_base", "log_rate", "log_start", "updates", "decisions", "interventions"),
    *("_next", "action", "_capped", "_ratio", "_layer_ratio", "_probing", "_unit"),
    *("_losses", "_length", "_cuts", "_samples", "_validation"),
)


class RateControl:
    """The learning rates of N training runs that share a budget, one update at a time.

    The owner (an environment or a scheduler) asks :attr:`rates` before each update, samples the gradient
    when :attr:`sampling` says so, reports losses with :meth:`advance` after it, and when
    :attr:`decision_due` is true passes :meth:`observe`'s result to a policy and its answer to :meth:`act`.

    Args:
        spec: Signals, cadence and action.
        runs: N.
        total_steps: Budget in updates, or None when it is not known.
        given: Rates the runs were given, shape (N,); only the start "given" and a failed probe use them.
        start: Relative update size after the probe, shape (N,), instead of what ``spec.action`` says of the budget.
        min_rate: Lowest rate. The final anneal goes below it.
        max_rate: Highest rate.
        blind: Mask of shape (N,) of runs whose losses are withheld; default none.
        traits: Of the optimizer that all runs use.
        epoch: Updates of an epoch, shape (N,), NaN where not told; default nowhere.
    """

    def __init__(
        self,
        spec: ControlSpec,
        runs: int,
        total_steps: int | None,
        *,
        given: Array,
        start: Array | None = None,
        min_rate: float = 1e-10,
        max_rate: float = 1e4,
        blind: NDArray[np.bool_] | None = None,
        traits: OptimizerTraits | None = None,
        epoch: Array | None = None,
    ) -> None:
        self.spec = spec
        self.traits = traits or OptimizerTraits()
        self.epoch = epoch
        self.blind = np.zeros(runs, dtype=bool) if blind is None else blind
        self.runs, self.min_rate, self.max_rate = runs, min_rate, max_rate
        self.horizon = Horizon(spec.cadence, spec.action, total_steps)
        self.signals = Signals(spec.signals, runs, spec.limits)
        self.guard = SpikeGuard(runs, spec.action.alarm)
        self.patience = Patience(spec, runs)
        self.start = spec.action.starts(runs, total_steps) if start is None else start
        self.updates = 0
        self.decisions = 0
        self.interventions = {"cut": np.zeros(runs, int), "cap": np.zeros(runs, int)}
        self.give(given)
        self._next = 0
        self.action = np.zeros(runs)
        self._capped = np.zeros(runs)
        self._ratio = np.full(runs, np.nan)
        self._layer_ratio = np.full(runs, np.nan)
        self._probing = self.start is not None
        self._unit: list[Array] = []
        self._validation: list[Array] = []
        self._reset_interval()

    def give(self, rates: Array) -> None:
        """Sets the rates to start from, shape (N,)."""
        self._base = np.clip(np.asarray(rates, np.float64), self.min_rate, self.max_rate)
        self._log_base = np.log(self._base)
        self.log_rate = self.log_start = self._log_base

    # Position -----------------------------------------------------------------------------------------

    @property
    def rates(self) -> Array:
        """Learning rate of the next update, shape (N,): finite and within bounds."""
        return self.rates_at(self.updates)

    def rates_at(self, position: int) -> Array:
        """Learning rate of the update after ``position`` updates, if nothing is decided in between, shape (N,)."""
        if self._probing:
            return self._level.copy()
        return self._level * self.horizon.envelope(position)

    @property
    def log_rate(self) -> Array:
        """Natural logarithm of the rates before the final anneal, shape (N,)."""
        return self._log_rate

    @log_rate.setter
    def log_rate(self, value: Array) -> None:
        self._log_rate = value
        # Relative to the start, which is then held exactly when nothing changes it.
        level = self._base * np.exp(value - self._log_base)
        self._level = np.minimum(np.maximum(level, self.min_rate), self.max_rate)

    @property
    def total_steps(self) -> int | None:
        """Budget in updates, or None when it is not known."""
        return self.horizon.total

    @property
    def probing(self) -> bool:
        """Whether the next update is one of the first, made at a negligible rate."""
        return self._probing

    @property
    def sampling(self) -> bool:
        """Whether the gradient of the next update is to be sampled."""
        return self.samples_at(self.updates)

    def samples_at(self, position: int) -> bool:
        """Whether to sample the gradient of the update after ``position`` updates, as seen from now."""
        if self._probing:
            return position < self._probe_end
        end = self.horizon.end(self._next)
        return end is not None and 0 < end - position <= WINDOW

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.horizon.done(self.updates)

    @property
    def decision_due(self) -> bool:
        """Whether a policy is to decide now."""
        return not self.done and self._at_end(self.updates)

    # Measurements -------------------------------------------------------------------------------------

    def set_probe(self, gradient_norm: Array, weight_norm: Array, size: int) -> None:
        """Sets a negligible rate before the very first update; arguments as for :func:`probing_rate`."""
        self.give(probing_rate(gradient_norm, weight_norm, size))

    def advance(self, losses: Array | None, samples: Array | None = None, count: int = 1) -> None:
        """Takes note of ``count`` updates.

        Several may be given at once as long as :meth:`closes` is false before the last one of them.

        Args:
            losses: Training losses of the (last) update, shape (N,), or of several, shape (updates, N); None when
                not known.
            samples: What the sampler collected, shape (samples, 7, N); needed at the end of the probe and of
                each interval, when :meth:`wants_samples` is true.
            count: Updates since the last call.
        """
        if losses is not None:
            rows = np.asarray(losses, np.float64).reshape(-1, self.runs)
            self._losses.extend(np.where(self.blind, np.nan, rows))
        self.updates += count
        self._length += count
        if samples is not None and len(samples):
            self._measure(samples, self.rates_at(self.updates - 1))
        if self._probing and self.updates >= self._probe_end:
            self._finish_probe()
        if len(self._losses) >= self.spec.action.check or (self._losses and self._at_end(self.updates)):
            self._close_block()

    def validate(self, losses: Array) -> None:
        """Takes note of validation losses, shape (N,), NaN for runs that have none; the next observation shows them.

        Only the latest of an interval counts.
        """
        losses = np.where(np.isfinite(losses), losses, np.nan)
        if self._validation:
            losses = np.where(np.isnan(losses), self._validation[0], losses)
        self._validation = [losses]

    @property
    def ceiling(self) -> float:
        """Loss of a single run above which :meth:`look` cuts its rate."""
        return math.inf if self._unalarmed else float(self.guard.ceiling[0])

    @property
    def _unalarmed(self) -> bool:
        return self.guard.alarm is None or self._probing or self.spec.action.cut is None

    def look(self, losses: Array) -> bool:
        """Looks at an update's losses, shape (N,), before :meth:`advance` is told of them; whether a rate was cut."""
        if self._unalarmed or not (losses > self.guard.ceiling).any():
            return False
        self._cut(self.guard.alarms(losses))
        return True

    def advance_block(self, losses: list[float], count: int) -> bool:
        """:meth:`advance` of a single run by a block of losses within an interval; whether the guard cut the rate."""
        self.updates += count
        self._length += count
        earlier = [float(row[0]) for row in self._losses]
        self._losses.clear()
        return self._close_single(earlier + losses)

    def wants_samples(self, count: int = 1) -> bool:
        """Whether :meth:`advance` by ``count`` updates ends the probe or an interval."""
        after = self.updates + count
        return (self._probing and after >= self._probe_end) or self._at_end(after)

    def closes(self, losses: int, count: int) -> bool:
        """Whether :meth:`advance` by ``count`` updates, of which ``losses`` are known, may change the rates."""
        return len(self._losses) + losses >= self.spec.action.check or self.wants_samples(count)

    @property
    def next_event(self) -> int | None:
        """Updates made at the end of the probe or else of the interval; None when the run is over."""
        end = self.horizon.end(self._next)
        return min(self._probe_end, end or self._probe_end) if self._probing else end

    @property
    def room(self) -> int:
        """Losses until a block of them is full."""
        return self.spec.action.check - len(self._losses)

    # Decisions ----------------------------------------------------------------------------------------

    def observe(self) -> NDArray[np.float32]:
        """The observation at the end of the interval, shape (N, size of the signals); call once a decision."""
        mean, noise, slope = self._trend.summary()
        interval = Interval(
            progress=self.horizon.progress(self.updates),
            decisions=self.decisions,
            updates=self._length,
            loss=mean,
            noise=noise,
            slope=slope,
            samples=self._samples,
            update_ratio=self._ratio,
            layer_ratio=self._layer_ratio,
            rate_initial=self.log_rate - self.log_start,
            action=self.action,
            cuts=self._cuts,
            capped=self._capped,
            validation=self._validation.pop() if self._validation else None,
            adaptive=np.full(self.runs, float(self.traits.adaptive)),
            momentum=np.full(self.runs, self.traits.momentum),
            epoch=self.epoch,
            done=self.updates,
            total=self.total_steps,
        )
        self._reset_interval()
        while self._at_end(self.updates):
            self._next += 1
        return self.signals.observe(interval)

    def act(self, action: Array, stop: NDArray[np.bool_] | None = None) -> None:
        """Applies a policy's answer, u in [-1, 1] and whether to stop, each of shape (N,), from the next update on."""
        rule = self.spec.action
        action = np.clip(np.nan_to_num(np.asarray(action, np.float64), nan=0.0), -1.0, 1.0)
        action = self.patience.heed(action, stop, self.decisions)
        target = self.log_rate + rule.log_multiplier(action)
        if rule.cap is not None:
            with np.errstate(all="ignore"):
                highest = self.log_rate + math.log(rule.cap) - np.log(self._ratio)
            # The cap holds raises back and brings down a rate that is already too high.
            capped = np.isfinite(highest) & (target > highest)
            target = np.where(capped, highest, target)
            self._capped = capped.astype(np.float64)
            self.interventions["cap"] += capped
        self.log_rate = self._bounded(target)
        self.action = action
        self.decisions += 1

    def anneal(self, steps: int) -> None:
        """Brings the rates down to zero over the next ``steps`` updates, at least 1, instead of what was planned."""
        self.horizon.anneal(self.updates, steps, self._next)

    # State --------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes during the runs, as numbers, lists, dictionaries and torch tensors."""
        return {
            **dump(self, _STATE),
            "signals": self.signals.state_dict(),
            "guard": self.guard.state_dict(),
            "patience": self.patience.state_dict(),
            "trend": self._trend.state_dict(),
            "horizon": self.horizon.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where :meth:`state_dict` was called, for the same specification, budget and number of runs.

        Raises:
            ConfigError: when ``state`` does not have the entries and shapes of such a state.
        """
        restore(self, _STATE, {"validation": [], **state})  # which came later
        self.signals.load_state_dict(state.get("signals"))
        self.guard.load_state_dict(state.get("guard"))
        self.patience.load_state_dict(state.get("patience"))
        self._trend.load_state_dict(state.get("trend"))
        self.horizon.load_state_dict(state.get("horizon"))

    # Inner --------------------------------------------------------------------------------------------

    @property
    def _probe_end(self) -> int:
        probe, total = self.spec.cadence.probe, self.horizon.total
        return probe if total is None else min(probe, total)

    def _at_end(self, updates: int) -> bool:
        """Whether an interval is over after ``updates`` updates."""
        end = self.horizon.end(self._next)
        return end is not None and updates >= end

    def _bounded(self, log_rate: Array) -> Array:
        return np.clip(log_rate, math.log(self.min_rate), math.log(self.max_rate))

    def _reset_interval(self) -> None:
        self._losses: list[Array] = []
        self._length = 0
        self._cuts = np.zeros(self.runs)
        self._samples: Array = np.zeros((0, 7, self.runs))
        self._trend = LossTrend(self.runs)

    def _measure(self, samples: Array, rates: Array) -> None:
        """Relative update sizes, expressed at the rate before the final anneal."""
        with np.errstate(all="ignore"):
            ratio = np.sqrt(samples[:, 3] / samples[:, 4])
            layer = np.sqrt(samples[:, 6])
            base = np.exp(self.log_rate) / rates
        if self._probing:
            self._unit.append(np.asarray(np.max(ratio / rates, axis=0)))
            return
        self._samples = samples
        self._ratio = ratio.max(axis=0) * base
        self._layer_ratio = layer.mean(axis=0) * base

    def _finish_probe(self) -> None:
        """Chooses the start: the rate at which the update is a share ``start`` of the weights."""
        self._probing = False
        assert self.start is not None
        with np.errstate(all="ignore"):
            unit = self._unit[-1] if self._unit else np.full(self.runs, np.nan)
            log_rate = np.log(self.start) - np.log(unit)
        # Without a usable gradient the probing rate stays: small, and the policy can raise it.
        self.give(np.exp(self._bounded(np.where(np.isfinite(log_rate), log_rate, self.log_rate))))

    def _close_block(self) -> None:
        if self.runs == 1:
            self.advance_block([], 0)
            return
        block = np.stack(self._losses)
        self._losses = []
        spiked, broken = self.guard.spikes(block)
        broken &= ~self.blind
        self._trend.add(block, self._length - len(block))
        cut = self.spec.action.cut
        if cut is None or self._probing:
            return
        factor = np.where(broken, 2.0, np.where(spiked, 1.0, 0.0))
        if factor.any():
            self._cut(factor)

    def _close_single(self, block: list[float]) -> bool:
        """The same for one run; whether the rate was cut."""
        if not block:
            return False
        spiked, broken = single.spikes(self.guard, block)
        single.extend(self._trend, block, self._length - len(block))
        cut = self.spec.action.cut
        if cut is None or self._probing or not (spiked or (broken and not self.blind[0])):
            return False
        self._cut(np.array([2.0 if broken else 1.0]))
        return True

    def _cut(self, times: Array) -> None:
        """Cuts the rates, each so many times; shape (N,)."""
        assert self.spec.action.cut is not None
        self.log_rate = self._bounded(self.log_rate + times * math.log(self.spec.action.cut))
        self._cuts += times > 0
        self.interventions["cut"] += times > 0
