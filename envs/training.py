"""N training runs of one draw (workload, optimizer, budget), advanced from decision to decision."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlrate.control import ControlSpec, RateControl, UpdateSampler
from rlrate.control.copies import copies
from rlrate.envs.optimizers import OPTIMIZERS, OptimizerSpec, make_optimizer
from rlrate.envs.population import Population
from rlrate.envs.reward import REWARDS, Improvement, Reward
from rlrate.envs.workload import Workload
from rlrate.envs.workloads import make_workload, workload_names
from rlrate.errors import ConfigError

Array = NDArray[np.float64]

#: Held-out examples looked at between the first and the last decision.
INTERMEDIATE_EXAMPLES = 64

#: Training examples of a draw whose batches are all of them.
FULL_BATCH_EXAMPLES = 256


@dataclass(frozen=True)
class TrainingConfig:
    """What an environment samples its training runs from.

    Attributes:
        workload: A registered name, a :class:`Workload`, a factory, "file.py:function", or a sequence of these to
            draw from, or a mapping from them to whole numbers: how often each is drawn relative to the others; None
            draws from all registered families.
        optimizer: A name of :data:`rlrate.envs.optimizers.OPTIMIZERS`, an :class:`OptimizerSpec`, or a
            sequence to draw from; None draws from all. Drawn optimizers have randomised settings.
        steps: Budget in updates: an integer, or (low, high) for a log-uniform draw.
        start: Relative update size after the probe: a number, or (low, high) for a log-uniform draw per run.
        reward: "heldout" or "train": log improvement of that loss over each decision (they telescope); "final":
            the held-out log improvement of the whole run, at its end.
        reward_floor: A loss below this share of the first one earns nothing more, so that no workload dominates the
            return.
        reward_best: Share of the reward that is for the lowest loss so far instead of the last one. What training goes
            on to lose after it counts only to the rest: who sees a held-out loss rise keeps the weights from before.
        full_batch: Share of draws whose batches are all of the training examples, the first
            :data:`FULL_BATCH_EXAMPLES`: a loss without noise. They are optimisation problems: what is held out is what
            is trained on.
        withhold_loss: Share of runs whose policy does not see the loss.
        withhold_epochs: Share of runs whose policy is not told how many updates make an epoch.
        validation: Share of runs whose policy is shown a validation loss, at every decision, every second or every
            fourth. It comes from :data:`INTERMEDIATE_EXAMPLES` of the held-out examples, at most half of them, by which
            the end of the run is then not judged.
        siblings: So many runs of a draw, one after the other, share their seed, their start and what their policy sees:
            they differ by their actions alone.
        spec: Signals, cadence and action.
        dtype: "float32" or "float64".
    """

    workload: Any = None
    optimizer: Any = None
    steps: int | tuple[int, int] = (200, 2000)
    start: float | tuple[float, float] = (1e-5, 1e-3)
    reward: Reward = "heldout"
    reward_floor: float = 1e-3
    reward_best: float = 0.0
    full_batch: float = 0.0
    withhold_loss: float = 0.0
    withhold_epochs: float = 0.0
    validation: float = 0.0
    siblings: int = 1
    spec: ControlSpec = field(default_factory=ControlSpec)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        low, high = _pair(self.steps)
        if not (isinstance(low, int) and isinstance(high, int) and 1 <= low <= high):
            raise ConfigError(f"steps must be a positive integer or (low, high) with low <= high, got {self.steps!r}")
        low_start, high_start = _pair(self.start)
        if not 0.0 < low_start <= high_start < 1.0:
            raise ConfigError(f"start must lie in (0, 1), got {self.start!r}")
        if self.reward not in REWARDS:
            raise ConfigError(f"unknown reward {self.reward!r}; known: {', '.join(REWARDS)}")
        if not 0.0 < self.reward_floor < 1.0:
            raise ConfigError(f"reward_floor must lie in (0, 1), got {self.reward_floor!r}")
        if isinstance(self.workload, Mapping):
            bad = [(name, n) for name, n in self.workload.items() if type(n) is not int or n < 1]
            if bad or not self.workload:
                raise ConfigError(f"workloads are weighted by positive integers, got {bad[0] if bad else '{}'}")
        for name in ("full_batch", "withhold_loss", "withhold_epochs", "validation", "reward_best"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)!r}")
        if not isinstance(self.siblings, int) or isinstance(self.siblings, bool) or self.siblings < 1:
            raise ConfigError(f"siblings must be a positive integer, got {self.siblings!r}")
        if self.dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype must be 'float32' or 'float64', got {self.dtype!r}")
        if isinstance(self.optimizer, str):
            make_optimizer(self.optimizer)


@dataclass(frozen=True)
class Draw:
    """One sample of what all runs of a population share."""

    workload: Workload
    optimizer: OptimizerSpec
    steps: int


def sample_draw(config: TrainingConfig, seed: Sequence[int]) -> Draw:
    """The workload, optimizer and budget that ``seed`` stands for."""
    rng = np.random.default_rng([*seed, 0])
    choices = config.workload
    if choices is None:
        choices = workload_names(kind="family")
    if isinstance(choices, Mapping):
        choices = [name for name, weight in choices.items() for _ in range(weight)]
    if isinstance(choices, list | tuple):
        choices = choices[int(rng.integers(len(choices)))]
    workload = make_workload(choices, rng)
    # A stream of its own, so that all other draws are as without.
    if config.full_batch > 0.0 and np.random.default_rng([*seed, 2]).random() < config.full_batch:
        workload = _full_batch(workload)
    if config.validation > 0.0:
        workload = workload.with_validation(INTERMEDIATE_EXAMPLES)
    optimizer = config.optimizer
    if optimizer is None or isinstance(optimizer, list | tuple):
        names = list(OPTIMIZERS) if optimizer is None else list(optimizer)
        optimizer = make_optimizer(names[int(rng.integers(len(names)))], rng)
    else:
        optimizer = make_optimizer(optimizer)
    low, high = _pair(config.steps)
    steps = low if low == high else round(math.exp(rng.uniform(math.log(low), math.log(high))))
    return Draw(workload, optimizer, int(steps))


def _full_batch(workload: Workload) -> Workload:
    x, y = (values[:FULL_BATCH_EXAMPLES] for values in workload.train)
    return replace(workload, train=(x, y), heldout=(x, y), batch_size=len(x))


class TrainingRuns:
    """N runs of one draw, from the first update to the end of the budget.

    A run is determined by its seed: initial weights and batch order are its own, so the same run alone or among others
    sees the same data.

    Args:
        config: Control specification, reward and arithmetic.
        draw: What the runs share.
        seeds: One seed for each run.
        start: Relative update size after the probe, shape (N,); None for that of the specification.
        blind: Mask of shape (N,) of runs whose policy does not see the loss.
        validated: At every how many decisions a policy is shown the validation loss, shape (N,); 0 for never. Default
            never.
        untold: Mask of shape (N,) of runs whose policy is not told of epochs.
    """

    def __init__(
        self,
        config: TrainingConfig,
        draw: Draw,
        seeds: Sequence[int],
        *,
        start: Array | None = None,
        blind: NDArray[np.bool_] | None = None,
        validated: NDArray[np.int_] | None = None,
        untold: NDArray[np.bool_] | None = None,
    ) -> None:
        self.config = config
        self.draw = draw
        self.seeds = tuple(seeds)
        self.size = len(seeds)
        dtype = torch.float64 if config.dtype == "float64" else torch.float32
        self.population = Population(draw.workload, draw.optimizer, seeds, dtype=dtype)
        self._sampler = _sampler_of(self.population)
        self.control = RateControl(
            config.spec,
            self.size,
            draw.steps,
            given=np.full(self.size, 1e-3),
            start=None if config.spec.action.start is None else start,
            blind=blind,
            traits=draw.optimizer.traits,
            epoch=np.where(np.zeros(self.size, bool) if untold is None else untold, np.nan, draw.workload.epoch),
        )
        self.validated = np.zeros(self.size, dtype=int) if validated is None else validated
        self.diverged = np.zeros(self.size, dtype=bool)
        self.train_loss = np.full(self.size, np.nan)
        self.heldout_loss = np.full(self.size, np.nan)
        self.heldout_accuracy = np.full(self.size, np.nan)
        self._fall = Improvement(
            self.size, floor=config.reward_floor, best=config.reward_best, signed=draw.workload.signed
        )
        #: Held-out losses on the examples looked at in between, where the last ones are on others.
        self._sample: Array | None = None
        self._waiting: list[Array] = []

    @classmethod
    def sample(cls, config: TrainingConfig, seed: Sequence[int], members: Sequence[int]) -> TrainingRuns:
        """The runs ``members`` of the draw that ``seed`` stands for."""
        streams = [np.random.default_rng([*seed, 1, member // config.siblings]) for member in members]
        low, high = _pair(config.start)
        return cls(
            config,
            sample_draw(config, seed),
            [int(stream.integers(2**31)) for stream in streams],
            start=np.array([math.exp(s.uniform(math.log(low), math.log(high))) for s in streams]),
            blind=np.array([s.random() < config.withhold_loss for s in streams]),
            validated=np.array([s.random() < config.validation and 2 ** s.integers(3) for s in streams], dtype=int)
            if config.validation > 0.0
            else None,
            # Drawn last, so that what is drawn before stays as it was.
            untold=np.array([s.random() < config.withhold_epochs for s in streams])
            if config.withhold_epochs > 0.0
            else None,
        )

    def take(self, runs: Sequence[int] | NDArray[np.int_]) -> TrainingRuns:
        """Copies of ``runs``, by their number, which go on by themselves; each may be taken several times.

        To be called at a decision, or before the first update.
        """
        rows = np.asarray(runs)
        other = copy.copy(self)
        other.size, other.seeds = len(rows), tuple(self.seeds[row] for row in rows)
        other.population = self.population.take(rows.tolist())
        other.control = copies(self.control, rows)
        other._sampler = _sampler_of(other.population)
        measured = ("diverged", "train_loss", "heldout_loss", "heldout_accuracy")
        for name in ("validated", *measured):
            setattr(other, name, getattr(self, name)[rows])
        other._fall = self._fall.take(rows)
        other._waiting = []
        return other

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.control.done

    @property
    def rates(self) -> Array:
        """Learning rate of the next update of each run, shape (N,)."""
        return self.control.rates_at(self._position)

    @property
    def improvement(self) -> Array:
        """Log improvement of the loss that is paid for, since the first decision, shape (N,)."""
        return self._fall.last

    @property
    def best_improvement(self) -> Array:
        """The highest that :attr:`improvement` has been; of runs that diverged the least there is, shape (N,)."""
        return self._fall.best

    @property
    def last_sample(self) -> Array:
        """Last held-out losses, on the examples that were looked at at each decision, shape (N,); of finished runs."""
        assert self._sample is not None
        return self._sample

    def begin(self) -> NDArray[np.float32]:
        """Runs up to the first decision; the observation there has shape (N, size of the signals)."""
        observation = self._advance()
        self._fall.begin(self._criterion())
        return observation

    def step(self, action: Array, stop: NDArray[np.bool_] | None = None) -> tuple[NDArray[np.float32], Array]:
        """Applies an answer and runs to the next decision or the end.

        Args:
            action: u in [-1, 1], shape (N,).
            stop: Whether it is advised to stop, shape (N,).

        Returns:
            Observation (N, size of the signals) and reward (N,).
        """
        self.control.act(action, stop)
        observation = self._advance()
        paid = np.zeros(self.size) if self.config.reward == "final" else self._fall.paid
        self._fall.update(self._criterion(), self.diverged, self._sample)
        if self.config.reward == "final" and not self.done:
            return observation, np.zeros(self.size)
        return observation, self._fall.paid - paid

    def update(self) -> Array:
        """One update of every run; returns the training losses, shape (N,)."""
        control, population, position = self.control, self.population, self._position
        losses = population.backward()
        sampling = control.samples_at(position)
        if sampling:
            if position == 0 and control.probing:
                control.set_probe(
                    self._sampler.norms(population.gradients).double().numpy(),
                    self._sampler.norms(population.rows).double().numpy(),
                    sum(p[0].numel() for p in population.parameters),
                )
            self._sampler.before(population.rows, population.gradients)
        rates = torch.from_numpy(control.rates_at(position)).to(losses.dtype)
        population.update(rates)
        if sampling:
            self._sampler.after(population.rows)
        values: Array = losses.double().numpy()
        # Losses wait until something may follow from them: that is once in some updates, and costs much less.
        self._waiting.append(values)
        control.look(values)
        count = len(self._waiting)
        if control.closes(count, count):
            samples = self._sampler.collect() if control.wants_samples(count) else None
            control.advance(np.stack(self._waiting), samples, count)
            self._waiting.clear()
        return values

    def facts(self) -> dict[str, NDArray[Any]]:
        """What the infos of an environment tell of each run, as arrays of shape (N,)."""
        return {
            "updates": np.full(self.size, self.control.updates),
            "steps": np.full(self.size, self.draw.steps),
            "lr": np.array(self.rates),
            "train_loss": np.array(self.train_loss),
            "heldout_loss": np.array(self.heldout_loss),
            "heldout_accuracy": np.array(self.heldout_accuracy),
            "improvement": np.array(self.improvement),
            "diverged": self.diverged.copy(),
            "cuts": self.control.interventions["cut"].copy(),
            "caps": self.control.interventions["cap"].copy(),
        }

    def validate(self) -> Array | None:
        """Shows the control the validation losses that are due before it observes.

        Returns:
            Those of all runs, shape (N,), shown or not; None if none is ever shown any.
        """
        if not self.validated.any():
            return None
        losses: Array = self.population.validation().double().numpy()
        shown = (self.validated > 0) & (self.control.decisions % np.maximum(self.validated, 1) == 0)
        self.control.validate(np.where(shown, losses, np.nan))
        return losses

    @property
    def _position(self) -> int:
        """Updates made."""
        return self.control.updates + len(self._waiting)

    def _advance(self) -> NDArray[np.float32]:
        total, count = np.zeros(self.size), 0
        with np.errstate(all="ignore"):
            while not (self.control.done or (self.control.decision_due and count)):
                total += self.update()
                count += 1
            self.train_loss = total / count
        # Rewards telescope, so what lies between the ends may be estimated from fewer examples.
        ends = self.control.done or self.control.decisions == 0
        validation = self.validate()
        if ends or validation is None:
            heldout, accuracy = self.population.heldout(None if ends else INTERMEDIATE_EXAMPLES)
            self.heldout_loss = heldout.double().numpy()
            self.heldout_accuracy = accuracy.double().numpy()
        else:
            self.heldout_loss, self.heldout_accuracy = validation, np.full(self.size, np.nan)
        if self.control.done and self.config.reward != "train":
            # By how much the loss has risen since it was lowest, the same examples tell.
            if validation is None:
                validation = self.population.heldout(INTERMEDIATE_EXAMPLES)[0].double().numpy()
            self._sample = validation
        self.diverged |= ~(np.isfinite(self.train_loss) & np.isfinite(self.heldout_loss))
        return self.control.observe()

    def _criterion(self) -> Array:
        return self.train_loss if self.config.reward == "train" else self.heldout_loss


def _sampler_of(population: Population) -> UpdateSampler:
    parameters = population.parameters
    return UpdateSampler(
        [p.shape[1:] for p in parameters],
        population.size,
        dtype=population.dtype,
        device=parameters[0].device,
        starts=population.starts,
    )


def _pair(value: Any) -> tuple[Any, Any]:
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ConfigError(f"expected a number or (low, high), got {value!r}")
        return value[0], value[1]
    return value, value
