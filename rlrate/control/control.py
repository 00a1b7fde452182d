"""One code for environment and scheduler: statistics of N training runs in, N learning rates out."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlrate.control.action import Action, SpikeGuard
from rlrate.control.cadence import Cadence
from rlrate.control.signals import Interval, Signals
from rlrate.errors import ConfigError

Array = NDArray[np.float64]
Part = TypeVar("Part", Cadence, Action)

#: The first probing update aims at this relative size: negligible, yet far above float32 rounding.
PROBE_RATIO = 1e-5

#: Updates before each decision at which gradients are sampled.
WINDOW = 4


@dataclass(frozen=True)
class ControlSpec:
    """What a policy sees and does: signals, cadence and action. Part of every controller file."""

    signals: tuple[str, ...] = tuple(Signals().names)
    cadence: Cadence = field(default_factory=Cadence)
    action: Action = field(default_factory=Action)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary; :meth:`from_dict` is its inverse."""
        plain = asdict(self)
        plain["signals"] = list(self.signals)
        multipliers = self.action.multipliers
        plain["action"]["multipliers"] = None if multipliers is None else list(multipliers)
        return plain

    @classmethod
    def from_dict(cls, data: object) -> ControlSpec:
        """Reads what :meth:`to_dict` wrote.

        Raises:
            ConfigError: for a missing, unknown or illegal entry.
        """
        if not isinstance(data, dict) or set(data) != {"signals", "cadence", "action"}:
            raise ConfigError("a control specification has exactly signals, cadence and action")
        names = data["signals"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError("signals must be a list of names")
        Signals(tuple(names))
        return cls(tuple(names), _read(Cadence, data["cadence"]), _read(Action, data["action"]))


def _read(kind: type[Part], data: object) -> Part:
    names = {f.name for f in fields(kind)}
    if not isinstance(data, dict) or set(data) != names:
        raise ConfigError(f"{kind.__name__.lower()} must have exactly the entries {sorted(names)}")
    try:
        return kind(**data)
    except TypeError as error:
        raise ConfigError(f"{kind.__name__.lower()}: an entry has the wrong type ({error})") from None


class RateControl:
    """The learning rates of N training runs that share a budget, one update at a time.

    The owner (an environment or a scheduler) asks :attr:`rates` before each update, samples the gradient
    when :attr:`sampling` says so, reports losses with :meth:`advance` after it, and when
    :attr:`decision_due` is true passes :meth:`observe`'s result to a policy and its answer to :meth:`act`.

    Args:
        spec: Signals, cadence and action.
        runs: N.
        total_steps: Budget in updates.
        given: Rates the runs were given, shape (N,); only the start "given" and a failed probe use them.
        start: Relative update size after the probe, shape (N,), instead of ``spec.action.start``.
        min_rate: Lowest rate. The final anneal goes below it.
        max_rate: Highest rate.
        blind: Mask of shape (N,) of runs whose losses are withheld; default none.
    """

    def __init__(
        self,
        spec: ControlSpec,
        runs: int,
        total_steps: int,
        *,
        given: Array,
        start: Array | None = None,
        min_rate: float = 1e-10,
        max_rate: float = 1e4,
        blind: NDArray[np.bool_] | None = None,
    ) -> None:
        self.spec = spec
        self.blind = np.zeros(runs, dtype=bool) if blind is None else blind
        self.runs = runs
        self.total_steps = total_steps
        self.min_rate, self.max_rate = min_rate, max_rate
        self.boundaries = spec.cadence.boundaries(total_steps)
        self.signals = Signals(spec.signals, runs)
        self.guard = SpikeGuard(runs)
        self.start = start if start is not None or spec.action.start is None else np.full(runs, spec.action.start)
        self.updates = 0
        self.decisions = 0
        self.interventions = {"cut": np.zeros(runs, int), "cap": np.zeros(runs, int)}
        self.log_rate = np.log(np.clip(given, min_rate, max_rate))
        self.log_start = self.log_rate.copy()
        self._next = 0
        self._action = np.zeros(runs)
        self._capped = np.zeros(runs)
        self._ratio = np.full(runs, np.nan)
        self._layer_ratio = np.full(runs, np.nan)
        self._probing = self.start is not None
        self._unit: list[Array] = []
        self._reset_interval()

    # Position -----------------------------------------------------------------------------------------

    @property
    def rates(self) -> Array:
        """Learning rate of the next update, shape (N,): finite and within bounds."""
        rates = np.exp(self.log_rate)
        if not self._probing:
            last = self.total_steps - 1  # past the budget the final rate stays
            rates = rates * self.spec.action.envelope(min(self.updates, last) / self.total_steps)
        return rates

    @property
    def probing(self) -> bool:
        """Whether the next update is one of the first, made at a negligible rate."""
        return self._probing

    @property
    def sampling(self) -> bool:
        """Whether the gradient of the next update is to be sampled."""
        if self._probing or self._next >= len(self.boundaries):
            return self._probing
        return int(self.boundaries[self._next]) - self.updates <= WINDOW

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.updates >= self.total_steps

    @property
    def decision_due(self) -> bool:
        """Whether a policy is to decide now."""
        return self._next < len(self.boundaries) - 1 and self.updates >= self.boundaries[self._next]

    # Measurements -------------------------------------------------------------------------------------

    def set_probe(self, gradient_norm: Array, weight_norm: Array, size: int) -> None:
        """Sets a negligible rate before the very first update.

        The update of any optimizer with a linear rate is, at its first step, about rate * gradient (SGD) or
        about rate per coordinate (adaptive ones); the rate makes the larger of the two a tiny share
        (:data:`PROBE_RATIO`) of the weights.

        Args:
            gradient_norm: Norm of the first gradient, shape (N,).
            weight_norm: Norm of the weights, shape (N,).
            size: Number of parameters of one run.
        """
        with np.errstate(all="ignore"):
            floor = math.sqrt(max(size, 1)) * 1e-3
            scale = np.maximum(np.nan_to_num(gradient_norm, posinf=1e30), math.sqrt(max(size, 1)))
            rate = PROBE_RATIO * np.maximum(np.nan_to_num(weight_norm, posinf=1.0), floor) / scale
        self.log_rate = np.log(np.clip(rate, self.min_rate, self.max_rate))

    def advance(self, losses: Array | None, samples: Array | None = None, count: int = 1) -> None:
        """Takes note of ``count`` updates.

        Args:
            losses: Training losses of the (last) update, shape (N,), or None when not known.
            samples: What the sampler collected, shape (samples, 7, N); needed at the end of the probe and of
                each interval, when :meth:`wants_samples` is true.
            count: Updates since the last call.
        """
        if losses is not None:
            self._losses.append(np.where(self.blind, np.nan, np.asarray(losses, np.float64)))
        rates = self.rates
        self.updates += count
        self._length += count
        if samples is not None and len(samples):
            self._measure(samples, rates)
        if self._probing and self.updates >= min(self.spec.cadence.probe, self.total_steps):
            self._finish_probe()
        at_boundary = self._next < len(self.boundaries) and self.updates >= self.boundaries[self._next]
        if len(self._losses) >= self.spec.action.check or (at_boundary and self._losses):
            self._close_block()

    def wants_samples(self, count: int = 1) -> bool:
        """Whether :meth:`advance` by ``count`` updates ends the probe or an interval."""
        after = self.updates + count
        if self._probing and after >= min(self.spec.cadence.probe, self.total_steps):
            return True
        return self._next < len(self.boundaries) and after >= int(self.boundaries[self._next])

    # Decisions ----------------------------------------------------------------------------------------

    def observe(self) -> NDArray[np.float32]:
        """The observation at the end of the interval, shape (N, size of the signals); call once a decision."""
        n, t, tt, y, ty, yy = self._trend
        with np.errstate(all="ignore"):
            mean = y / n
            stt, sty, syy = tt - t * t / n, ty - t * y / n, yy - y * y / n
            residual = np.sqrt(np.maximum(syy - sty * sty / stt, 0.0) / np.maximum(n - 2, 1))
            slope = sty / np.sqrt(stt) / np.maximum(residual, 1e-12 + 1e-6 * np.abs(mean))
            noise = np.sqrt(self._noise[1] / self._noise[0])
        interval = Interval(
            progress=self.updates / self.total_steps,
            decisions=self.decisions,
            updates=self._length,
            loss=mean,
            noise=noise,
            slope=np.where(n >= 3, slope, 0.0),
            samples=self._samples,
            update_ratio=self._ratio,
            layer_ratio=self._layer_ratio,
            rate_initial=self.log_rate - self.log_start,
            action=self._action,
            cuts=self._cuts,
            capped=self._capped,
        )
        self._reset_interval()
        while self._next < len(self.boundaries) and self.updates >= self.boundaries[self._next]:
            self._next += 1
        return self.signals.observe(interval)

    def act(self, action: Array) -> None:
        """Applies a policy's answer u in [-1, 1], shape (N,): the new rates hold from the next update on."""
        rule = self.spec.action
        action = np.clip(np.nan_to_num(np.asarray(action, np.float64), nan=0.0), -1.0, 1.0)
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
        self._action = action
        self.decisions += 1

    # Inner --------------------------------------------------------------------------------------------

    def _bounded(self, log_rate: Array) -> Array:
        return np.clip(log_rate, math.log(self.min_rate), math.log(self.max_rate))

    def _reset_interval(self) -> None:
        self._losses: list[Array] = []
        self._length = 0
        self._cuts = np.zeros(self.runs)
        self._samples: Array = np.zeros((0, 7, self.runs))
        self._trend = np.zeros((6, self.runs))
        self._noise = np.zeros((2, self.runs))

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
        self.log_rate = self._bounded(np.where(np.isfinite(log_rate), log_rate, self.log_rate))
        self.log_start = self.log_rate.copy()

    def _close_block(self) -> None:
        block = np.stack(self._losses)
        self._losses = []
        spiked, broken = self.guard.spikes(block)
        broken &= ~self.blind
        self._add_to_trend(block)
        cut = self.spec.action.cut
        if cut is None or self._probing:
            return
        factor = np.where(broken, 2.0, np.where(spiked, 1.0, 0.0))
        if factor.any():
            self.log_rate = self._bounded(self.log_rate + factor * math.log(cut))
            self._cuts += factor > 0
            self.interventions["cut"] += factor > 0

    def _add_to_trend(self, block: Array) -> None:
        finite = np.isfinite(block)
        values = np.where(finite, block, 0.0)
        count = finite.sum(axis=0)
        times = (self._length - len(block) + np.arange(len(block)))[:, None] * finite
        with np.errstate(all="ignore"):
            self._trend += np.stack(
                [
                    count,
                    times.sum(axis=0),
                    (times * times).sum(axis=0),
                    values.sum(axis=0),
                    (times * values).sum(axis=0),
                    (values * values).sum(axis=0),
                ]
            )
            centre = values.sum(axis=0) / np.maximum(count, 1)
            squares = (np.where(finite, block - centre, 0.0) ** 2).sum(axis=0)
            self._noise += np.stack([np.maximum(count - 1.0, 0.0), squares])
