"""Gymnasium environments: set the learning rate of a network while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from rlrate.control import LIMIT, Action, ControlSpec
from rlrate.envs.training import TrainingConfig, TrainingRuns
from rlrate.envs.workers import HOSTS, DrawState, Host, check_backend, check_portable, spread
from rlrate.errors import ConfigError

Array = NDArray[np.float64]
Kind = Literal["continuous", "discrete"]

#: Multipliers of the discrete action space: halve .. keep .. double.
MULTIPLIERS = (0.5, 0.5**0.5, 1.0, 2.0**0.5, 2.0)


def make_config(action: Kind | None = None, **settings: Any) -> TrainingConfig:
    """The configuration of an environment from keyword arguments.

    Args:
        action: "continuous", "discrete", or None for what ``spec`` says (continuous by default).
        settings: Attributes of :class:`TrainingConfig`.

    Raises:
        ConfigError: for an unknown or illegal setting.
    """
    names = set(TrainingConfig.__dataclass_fields__)
    unknown = sorted(set(settings) - names)
    if unknown:
        raise ConfigError(f"unknown settings {unknown}; known: action, {', '.join(sorted(names))}")
    spec: ControlSpec = settings.pop("spec", None) or ControlSpec()
    if action == "discrete":
        spec = replace(spec, action=replace(spec.action, multipliers=MULTIPLIERS))
    elif action == "continuous":
        spec = replace(spec, action=replace(spec.action, multipliers=None))
    elif action is not None:
        raise ConfigError(f"unknown action space {action!r}; known: continuous, discrete")
    return TrainingConfig(spec=spec, **settings)


def observation_space(spec: ControlSpec) -> spaces.Space[NDArray[np.float32]]:
    """The space of one observation: a float32 box of the length of the signals."""
    return cast("spaces.Space[NDArray[np.float32]]", spaces.Box(-LIMIT, LIMIT, (len(spec.signals),), np.float32))


def action_space(rule: Action) -> spaces.Box | spaces.Discrete[np.int64]:
    """The space of one action: [-1, 1], or one of the discrete multipliers."""
    if rule.multipliers is None:
        return spaces.Box(-1.0, 1.0, (1,), np.float32)
    return spaces.Discrete(len(rule.multipliers))


def to_unit(actions: Any, rule: Action, runs: int) -> Array:
    """Actions of ``runs`` runs as u in [-1, 1], shape (runs,)."""
    values = np.asarray(actions).reshape(runs)
    choices = rule.choices
    return np.asarray(values if choices is None else choices[values.astype(int)], np.float64)


class TrainingEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """One training run of a neural network; the agent sets its learning rate.

    An episode is one whole training run of the drawn budget; a step is one interval between two decisions, of
    several network updates.

    **Observation**: float32, the signals of :data:`rlrate.control.SIGNALS` in [-4, 4]: logs of ratios, cosines and
    shares of training loss, gradients and updates; nothing has a unit.

    **Action**: u in [-1, 1], multiplies the rate by ``2.5**u``; or, with ``action="discrete"``, one of
    x0.5, x0.71, x1, x1.41, x2. The structural rules of :class:`rlrate.control.Action` apply.

    **Reward**: log(loss before / after) of the held-out loss over the step, so that the undiscounted return is the log
    improvement of the whole run. ``reward="train"`` takes the training loss, ``"final"`` pays all at the end.

    **End**: ``terminated`` when the budget is spent or the run diverged. Never truncated.

    Args:
        action: "continuous" or "discrete".
        run: Which member of the draw's population this run is; equals row ``run`` of the batched environment.
        render_mode: None or "ansi" (one line of text).
        settings: Attributes of :class:`TrainingConfig`: workload, optimizer, steps, start, reward, ...
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012

    def __init__(
        self,
        action: Kind | None = None,
        run: int = 0,
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        self.config = make_config(action, **settings)
        if not isinstance(run, int) or run < 0:
            raise ConfigError(f"run must be an integer >= 0, got {run!r}")
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"unknown render_mode {render_mode!r}; known: 'ansi'")
        self.run = run
        self.render_mode = render_mode
        self.observation_space = observation_space(self.config.spec)
        self.action_space = action_space(self.config.spec.action)
        self.runs: TrainingRuns | None = None
        self._over = True
        self._seeds = _EpisodeSeeds()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draws a training run and trains it up to the first decision."""
        super().reset(seed=seed, options=options)
        self._seeds.reseed(seed, self.np_random)
        self.runs = TrainingRuns.sample(self.config, (*self._seeds.next(), 0), [self.run])
        observation = self.runs.begin()
        self._over = False
        return observation[0], self._info()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Sets the rate and trains to the next decision.

        Raises:
            ConfigError: when the episode is over or was never begun.
        """
        if self.runs is None or self._over:
            raise ConfigError("the training run is over; call reset() to begin another")
        observation, reward = self.runs.step(to_unit(action, self.config.spec.action, 1))
        self._over = bool(self.runs.done or self.runs.diverged[0])
        return observation[0], float(reward[0]), self._over, False, self._info()

    def render(self) -> str | None:
        """One line: updates, rate and losses."""
        if self.render_mode != "ansi" or self.runs is None:
            return None
        info = self._info()
        return (
            f"{self.runs.draw.workload.name} {self.runs.draw.optimizer.name} "
            f"{info['updates']}/{info['steps']} updates: lr {info['lr']:.3g}, "
            f"training loss {info['train_loss']:.4g}, held-out loss {info['heldout_loss']:.4g}"
        )

    def _info(self) -> dict[str, Any]:
        assert self.runs is not None
        info = {name: values[0].item() for name, values in self.runs.facts().items()}
        if math.isnan(info["heldout_accuracy"]):  # not a workload of classes, or between the ends
            del info["heldout_accuracy"]
        return info


class TrainingVectorEnv(VectorEnv[NDArray[np.float32], Any, NDArray[Any]]):
    """Many training runs at once: ``draws`` populations of ``num_envs / draws`` networks each.

    Row i of a single draw is the same run as ``TrainingEnv(run=i)`` reset with the same seed. Episodes reset in the
    step that ends them (``AutoresetMode.SAME_STEP``); all runs of a draw end together, so a run that diverged earns
    nothing more until then.

    Args:
        num_envs: Number of runs.
        draws: Number of populations; must divide ``num_envs``.
        action: "continuous" or "discrete".
        workers: Processes over which the draws are spread; 1 trains them in this one. The runs do not depend on it.
        backend: "local" for processes of this machine, "ray" for actors on a Ray cluster, for one worker too.
        settings: Attributes of :class:`TrainingConfig`.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 64,
        draws: int = 1,
        action: Kind | None = None,
        workers: int = 1,
        backend: str = "local",
        **settings: Any,
    ) -> None:
        self.config = make_config(action, **settings)
        if num_envs < 1 or draws < 1 or num_envs % draws:
            raise ConfigError(f"num_envs must be a positive multiple of draws, got num_envs={num_envs}, draws={draws}")
        if workers < 1:
            raise ConfigError(f"workers must be at least 1, got {workers!r}")
        self.num_envs = num_envs
        self.draws = draws
        self.workers = min(workers, draws)
        self.backend = backend
        check_backend(backend)
        if self.workers > 1 or backend != "local":
            check_portable(self.config, backend)
        self.single_observation_space = observation_space(self.config.spec)
        self.single_action_space = action_space(self.config.spec.action)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.states: list[DrawState] = []
        self.seeds = _EpisodeSeeds()
        self._hosts: Sequence[Host] = []
        self._owners = {index: index % self.workers for index in range(draws)}

    @property
    def per_draw(self) -> int:
        """Runs of one draw."""
        return self.num_envs // self.draws

    def start(self) -> None:
        """Starts the workers, which :meth:`reset` does otherwise; tells early that a cluster is not there.

        Raises:
            ConfigError: when the backend cannot provide them.
        """
        if not self._hosts:
            self._hosts = HOSTS[self.backend](self.config, self.per_draw, self.workers)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begins ``num_envs`` new runs.

        Args:
            seed: Determines this and all later episodes.
            options: ``{"episode": k}`` begins the k-th episode of the seed.

        Raises:
            ConfigError: for a list of seeds: one seed determines the shared draws.
            RlrateError: when a worker process died.
        """
        if isinstance(seed, list):
            raise ConfigError("the runs share their draws: pass one integer seed, not a list")
        super().reset(seed=seed, options=options)
        self.seeds.reseed(seed, self.np_random)
        if options and "episode" in options:
            self.seeds.episode = int(options["episode"])
        self.start()
        states = self._begin(range(self.draws))
        self.states = [states[index] for index in range(self.draws)]
        return self._observations(), self._infos(self.states)

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], Array, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Sets all rates and trains every run to its next decision."""
        if not self.states:
            raise ConfigError("call reset() before step()")
        parts = np.split(to_unit(actions, self.config.spec.action, self.num_envs), self.draws)
        stepped = self._ask("step", dict(enumerate(parts)))
        self.states = [stepped[index] for index in range(self.draws)]
        rewards = np.concatenate([state.reward for state in self.states])
        over = [index for index, state in enumerate(self.states) if state.done]
        terminated = np.repeat([state.done for state in self.states], self.per_draw)
        truncated = np.zeros(self.num_envs, dtype=bool)
        if not over:
            return self._observations(), rewards, terminated, truncated, self._infos(self.states)
        ended, final_observations = list(self.states), self._observations()
        for index, state in self._begin(over).items():
            self.states[index] = state
        infos = self._infos(self.states)
        # Object arrays, as gymnasium's own vector environments have them.
        infos["final_obs"] = np.empty(self.num_envs, dtype=object)
        for row in np.flatnonzero(terminated):
            infos["final_obs"][row] = final_observations[row]
        infos["final_info"] = self._infos(ended)
        infos["_final_obs"], infos["_final_info"] = terminated.copy(), terminated.copy()
        return self._observations(), rewards, terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the worker processes."""
        for host in self._hosts:
            host.close()
        self._hosts, self.states = [], []

    def _begin(self, indices: Sequence[int]) -> dict[int, DrawState]:
        episode = self.seeds.next()
        seeds = {index: (*episode, index) for index in indices}
        states = self._ask("begin", seeds)
        if len(self._hosts) > 1 and len(states) == self.draws:
            # A step takes as long as its busiest host, so draws move before much was done. It changes no result.
            owners = spread({i: states[i].cost for i in range(self.draws)}, len(self._hosts), self._owners)
            moved = {index: seeds[index] for index in seeds if owners[index] != self._owners[index]}
            if moved:
                self._ask("forget", dict.fromkeys(moved))
                self._owners = owners
                states |= self._ask("begin", moved)
        return states

    def _ask(self, method: str, arguments: Mapping[int, Any]) -> dict[int, DrawState]:
        """Calls every host with its share of the draws, all at once; after a failure the runs must begin anew."""
        try:
            return self._answers(method, arguments)
        except BaseException:
            self.close_extras()  # what other hosts still have to say belongs to no later question
            raise

    def _answers(self, method: str, arguments: Mapping[int, Any]) -> dict[int, DrawState]:
        asked = []
        for number, host in enumerate(self._hosts):
            share = {index: value for index, value in arguments.items() if self._owners[index] == number}
            if share:
                host.ask(method, share)
                asked.append(host)
        answers: dict[int, DrawState] = {}
        for host in asked:
            answers |= host.answer()
        return answers

    def _observations(self) -> NDArray[np.float32]:
        return np.concatenate([state.observation for state in self.states])

    def _infos(self, states: Sequence[DrawState]) -> dict[str, Any]:
        infos: dict[str, Any] = {}
        for name in states[0].facts:
            infos[name] = np.concatenate([state.facts[name] for state in states])
            infos[f"_{name}"] = np.ones(self.num_envs, dtype=bool)
        return infos


class _EpisodeSeeds:
    """Numbers the episodes since the last seed, so that any of them can be begun again."""

    def __init__(self) -> None:
        self.base: int | None = None
        self.episode = 0

    def reseed(self, seed: int | None, generator: np.random.Generator) -> None:
        if seed is not None:
            self.base, self.episode = int(seed), 0
        elif self.base is None:
            self.base = int(generator.integers(2**31))

    def next(self) -> tuple[int, int]:
        self.episode += 1
        return cast(int, self.base), self.episode - 1
