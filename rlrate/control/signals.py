"""Observations: what a policy sees of a training run, free of every unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.control.state import dump, restore
from rlrate.errors import ConfigError, unknown_name

Array = NDArray[np.float64]

#: Names of signals, each with a lowest and a highest value.
Limits = tuple[tuple[str, float, float], ...]

#: Every observation lies in [-LIMIT, LIMIT].
LIMIT = 4.0

#: Name and meaning of each signal, in the order of the observation. All are ratios, cosines and shares.
SIGNALS: dict[str, str] = {
    "progress": "share of the budget that is spent",
    "youth": "exp(-decisions / 5): 1 at the start, soon 0",
    "interval": "log10 of the updates in the last interval, / 3",
    "loss_known": "1 when losses are reported, 0 when not (the loss signals are then 0)",
    "loss_initial": "squashed log of the interval's mean loss / the first one",
    "loss_previous": "squashed log of the mean loss / that of the interval before",
    "loss_fast": "squashed log of the mean loss / its fast moving average",
    "loss_slow": "squashed log of the mean loss / its slow moving average",
    "loss_best": "squashed log of the mean loss / the lowest one so far",
    "loss_slope": "squashed t statistic of the loss's linear trend within the interval",
    "promise": "log10 of what the gradient promises of the loss per update, -gradient.update / loss, + 3, / 2",
    "kept": "squashed ratio of the loss's fall since the last interval to what was promised",
    "loss_noise": "log10 of the loss's dispersion within blocks / its mean",
    "gradient_initial": "squashed log of the gradient's norm / the first one",
    "gradient_dispersion": "standard deviation of the log of the gradient's norm",
    "gradient_cosine": "cosine between successive gradients",
    "momentum_cosine": "cosine between the update and the negative gradient",
    "update_ratio": "log10 of |update| / |weights| per step, + 3, / 2",
    "layer_ratio": "the same for the weight matrix where it is largest",
    "rate_initial": "log10 of the rate / the rate after the start, / 2",
    "action_last": "the last action in [-1, 1]",
    "action_mean": "moving average of the actions",
    "cuts": "spikes of the loss in the last interval (saturates at 2)",
    "capped": "1 when the cap on the update size held the last action back",
    "validation_known": "1 when validation losses are reported, 0 when not (the validation signals are then 0)",
    "validation_gap": "squashed log of the validation loss / the first one, less the same of the training loss",
    "validation_excess": "squashed log of the validation loss / its lowest, as far as the training loss did not follow",
    "optimizer_adaptive": "1 when the optimizer divides updates by the gradients' size, 0 when not or not known",
    "optimizer_momentum": "-log10(1 - the share of an update that the next one keeps) / 2, 0 without momentum",
    "epochs_known": "1 when the updates of an epoch are told, 0 when not (the signals of epochs are then 0)",
    "epoch_updates": "log10 of the updates of an epoch, / 2",
    "epochs_planned": "log10 of the epochs of the budget, / 2",
    "epochs_done": "log10(1 + epochs so far)",
}

#: What the names of signals begin with that need more than the training itself.
_TOLD = ("validation_", "optimizer_", "epoch")

#: Those that need nothing but the training itself: what a policy sees unless it asks for more.
USUAL: tuple[str, ...] = tuple(name for name in SIGNALS if not name.startswith(_TOLD))

_STATE = (
    *("positive", "first", "previous", "fast", "slow", "best", "scale", "span", "gradient_first", "action_mean"),
    *("validation", "validation_first", "validation_best", "fitted", "fitted_first", "fitted_best"),
)

#: Entries of the state that came later, and are not known where it was written before.
_LATER = ("span", *("validation", "validation_first", "validation_best", "fitted", "fitted_first", "fitted_best"))


@dataclass
class Interval:
    """What one interval of N runs left behind; arrays have shape (N,), NaN where not known.

    Attributes:
        progress: Share of the budget that is spent.
        decisions: Decisions made so far.
        updates: Updates in the interval.
        loss: Mean of the finite training losses.
        noise: Root mean square of the losses' deviation within blocks of a few updates.
        slope: t statistic of the losses' linear trend.
        samples: Gradient statistics, shape (samples, 7, N); see :mod:`rlrate.control.sampler`.
        update_ratio: |update| / |weights| per step at the rate of the interval's end.
        layer_ratio: The same, largest over weight matrices.
        rate_initial: Natural log of the rate over the one after the start.
        action: Last action.
        cuts: Cuts made by the guard in the interval.
        capped: Whether the cap bound at the last decision.
        validation: The latest validation loss since the interval before; None where there is none of any run.
        adaptive: 1 for an adaptive optimizer, else 0; None for 0.
        momentum: The optimizer's momentum in [0, 1); None for 0.
        epoch: Updates of an epoch, NaN where not told; None where it is told of no run.
        done: Updates so far.
        total: The budget, None when it is not known.
    """

    progress: float
    decisions: int
    updates: int
    loss: Array
    noise: Array
    slope: Array
    samples: Array
    update_ratio: Array
    layer_ratio: Array
    rate_initial: Array
    action: Array
    cuts: Array
    capped: Array
    validation: Array | None = None
    adaptive: Array | None = None
    momentum: Array | None = None
    epoch: Array | None = None
    done: int = 0
    total: int | None = None


class Signals:
    """Turns intervals into observations for N runs; keeps the moving averages that this needs.

    Logs of loss ratios are used while all losses of a run are positive. From the first loss that is not,
    differences in units of the loss's own noise take their place (policy gradients and log densities have
    no meaningful ratio).

    Args:
        names: The signals, in order; None for :data:`USUAL`, all but those of a validation loss, of the optimizer and
            of epochs.
        runs: N, the number of runs.
        limits: Bounds within which single signals are shown: name, lowest and highest value.

    Raises:
        ConfigError: for a name that is not in :data:`SIGNALS`, or a limit of a signal that is not among ``names``.
    """

    def __init__(
        self,
        names: tuple[str, ...] | None = None,
        runs: int = 1,
        limits: Limits = (),
    ) -> None:
        self.names = USUAL if names is None else tuple(names)
        unknown = [name for name in self.names if name not in SIGNALS]
        if unknown or not self.names:
            raise ConfigError(
                f"unknown signals {unknown}; this version knows {', '.join(SIGNALS)}"
                if unknown
                else "a controller needs at least one signal"
            )
        for name, _, _ in limits:
            if name not in self.names:
                raise ConfigError(unknown_name("signal of limits", name, self.names))
        bounds = {name: (low, high) for name, low, high in limits}
        self._lowest, self._highest = np.array([bounds.get(name, (-LIMIT, LIMIT)) for name in self.names]).T
        self.runs = runs
        nan = np.full(runs, np.nan)
        self.positive = np.ones(runs, dtype=bool)
        self.first, self.previous, self.fast, self.slow, self.best = (nan.copy() for _ in range(5))
        self.scale, self.span = nan.copy(), nan.copy()
        self.gradient_first = nan.copy()
        # Validation losses, and the training losses of the intervals at whose end they were reported.
        self.validation, self.validation_first, self.validation_best = (nan.copy() for _ in range(3))
        self.fitted, self.fitted_first, self.fitted_best = (nan.copy() for _ in range(3))
        self._validated = any(name.startswith("validation_") for name in self.names)
        self.action_mean = np.zeros(runs)

    @property
    def size(self) -> int:
        """Length of an observation."""
        return len(self.names)

    def observe(self, interval: Interval) -> NDArray[np.float32]:
        """The observation at the end of ``interval``.

        Returns:
            float32 array of shape (N, size), finite, within [-LIMIT, LIMIT] and the limits, whatever the statistics.
        """
        with np.errstate(all="ignore"):
            promises = self._promise(interval)  # compares with the interval before, which the next line forgets
            values = {**self._position(interval), **self._epochs(interval)}
            values |= {**self._loss(interval), **self._gradient(interval), **promises}
            if self._validated:
                values |= self._validation(interval)
        rows = np.empty((self.runs, len(self.names)))
        for column, name in enumerate(self.names):
            rows[:, column] = values[name]
        rows = np.nan_to_num(rows, nan=0.0, posinf=LIMIT, neginf=-LIMIT)
        observation: NDArray[np.float32] = np.clip(rows, self._lowest, self._highest).astype(np.float32)
        return observation

    def state_dict(self) -> dict[str, Any]:
        """The moving averages, as torch tensors."""
        return dump(self, _STATE)

    def load_state_dict(self, state: object) -> None:
        """Continues from what :meth:`state_dict` returned."""
        if isinstance(state, Mapping):
            missing = [name for name in _LATER if name not in state]
            state = {**state, **{name: torch.full((self.runs,), math.nan, dtype=torch.float64) for name in missing}}
        restore(self, _STATE, state)

    def _position(self, interval: Interval) -> dict[str, Array | float]:
        self.action_mean = 0.7 * self.action_mean + 0.3 * interval.action
        return {
            "progress": interval.progress,
            "youth": math.exp(-interval.decisions / 5.0),
            "interval": math.log10(max(interval.updates, 1)) / 3.0,
            "rate_initial": interval.rate_initial / math.log(10.0) / 2.0,
            "action_last": interval.action,
            "action_mean": self.action_mean,
            "cuts": np.minimum(interval.cuts, 2.0),
            "capped": interval.capped,
            "optimizer_adaptive": 0.0 if interval.adaptive is None else interval.adaptive,
            "optimizer_momentum": 0.0 if interval.momentum is None else -np.log10(1.0 - interval.momentum) / 2.0,
        }

    def _epochs(self, interval: Interval) -> dict[str, Array]:
        """How often the data have been gone through, zero where it is not told."""
        epoch = np.full(self.runs, np.nan) if interval.epoch is None else interval.epoch
        planned = math.nan if interval.total is None else float(interval.total)
        return {
            "epochs_known": np.isfinite(epoch).astype(np.float64),
            "epoch_updates": np.log10(epoch) / 2.0,
            "epochs_planned": np.log10(planned / epoch) / 2.0,
            "epochs_done": np.log10(1.0 + interval.done / epoch),
        }

    def _loss(self, interval: Interval) -> dict[str, Array]:
        loss = np.where(np.isfinite(interval.loss), interval.loss, np.nan)
        noise = np.where(np.isfinite(interval.noise), interval.noise, np.nan)
        known = np.isfinite(loss)
        self.positive &= ~(loss <= 0.0)
        fresh = known & np.isnan(self.first)
        for name in ("first", "previous", "fast", "slow", "best"):
            setattr(self, name, np.where(fresh, loss, getattr(self, name)))
        self.scale = np.where(np.isnan(self.scale), noise, 0.7 * self.scale + 0.3 * noise)

        def versus(reference: Array, gain: float) -> Array:
            return _squash(self._rise(loss, reference), np.where(self.positive, gain, 1.0))

        values = {
            "loss_known": known.astype(np.float64),
            "loss_initial": versus(self.first, 1.0),
            "loss_previous": versus(self.previous, 10.0),
            "loss_fast": versus(self.fast, 10.0),
            "loss_slow": versus(self.slow, 5.0),
            "loss_best": versus(self.best, 10.0),
            "loss_slope": _squash(interval.slope, 0.5),
            "loss_noise": np.log10(noise / np.abs(loss)),
        }
        self.previous = np.where(known, loss, self.previous)
        self.fast = np.where(known, 0.5 * self.fast + 0.5 * loss, self.fast)
        self.slow = np.where(known, 0.85 * self.slow + 0.15 * loss, self.slow)
        self.best = np.fmin(self.best, loss)
        return values

    def _validation(self, interval: Interval) -> dict[str, Array]:
        """Signals of the loss on data that training does not see; call after :meth:`_loss`."""
        latest = np.full(self.runs, np.nan) if interval.validation is None else interval.validation
        new = np.isfinite(latest)
        self.positive &= ~(latest <= 0.0)
        fresh, best = new & np.isnan(self.validation), new & ~(latest >= self.validation_best)
        for name, which in (("", new), ("_first", fresh), ("_best", best)):
            for series, loss in (("validation", latest), ("fitted", self.previous)):
                setattr(self, series + name, np.where(which, loss, getattr(self, series + name)))
        rise = self._rise(self.validation, self.validation_best)
        # A rise that the training loss shares, as after a spike or when the data drift, is not overfitting.
        apart = rise - np.nan_to_num(self._rise(self.fitted, self.fitted_best))
        gap = self._rise(self.validation, self.validation_first)
        gap = gap - np.nan_to_num(self._rise(self.fitted, self.fitted_first))
        return {
            "validation_known": np.isfinite(self.validation).astype(np.float64),
            "validation_gap": _squash(gap, 1.0),
            "validation_excess": _squash(np.maximum(np.minimum(rise, apart), 0.0), 10.0),
        }

    def _rise(self, loss: Array, reference: Array) -> Array:
        """By how much a loss is above another one, in logs, or in units of its noise where losses are not positive."""
        spread = (loss - reference) / np.maximum(self.scale, 1e-12 + 1e-6 * np.abs(reference))
        return np.where(self.positive, np.log(loss) - np.log(reference), spread)

    def _promise(self, interval: Interval) -> dict[str, Array]:
        """The first-order fall of the loss, and how much of it came true (as in trust-region methods)."""
        loss = interval.loss
        promised = np.full(self.runs, np.nan)
        if len(interval.samples):
            mean = interval.samples[:, 5].mean(axis=0)
            promised = np.where(mean > 0.0, mean, np.nan)
        unit = np.where(self.positive & (loss > 0.0), loss, self.scale)
        between = 0.5 * (self.span + interval.updates)  # from the middle of one interval to that of the next
        self.span = np.full(self.runs, float(interval.updates))
        return {
            "promise": (np.log10(promised / unit) + 3.0) / 2.0,
            "kept": _squash((self.previous - loss) / (between * promised), 1.0),
        }

    def _gradient(self, interval: Interval) -> dict[str, Array]:
        if len(interval.samples) == 0:
            norm = spread = cosine = momentum = np.full(self.runs, np.nan)
        else:
            gg, gp, pp, uu, _, gu, _ = interval.samples.transpose(1, 0, 2)
            log_norm = 0.5 * np.log(gg)
            norm, spread = log_norm.mean(axis=0), log_norm.std(axis=0)
            paired = np.isfinite(gp) & np.isfinite(pp)
            cosines = np.where(paired, gp / np.sqrt(gg * pp), 0.0)
            cosine = cosines.sum(axis=0) / paired.sum(axis=0)
            momentum = (gu / np.sqrt(gg * uu)).mean(axis=0)
        norm = np.where(np.isfinite(norm), norm, np.nan)
        self.gradient_first = np.where(np.isnan(self.gradient_first), norm, self.gradient_first)
        return {
            "gradient_initial": _squash(norm - self.gradient_first, 1.0),
            "gradient_dispersion": spread,
            "gradient_cosine": cosine,
            "momentum_cosine": momentum,
            "update_ratio": (np.log10(interval.update_ratio) + 3.0) / 2.0,
            "layer_ratio": (np.log10(interval.layer_ratio) + 3.0) / 2.0,
        }


def _squash(value: Array, gain: float | Array) -> Array:
    """sign(x) log(1 + gain |x|): linear for small values, logarithmic for large ones."""
    return np.sign(value) * np.log1p(gain * np.abs(value))
