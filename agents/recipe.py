"""Recipes: everything that determines how a controller is trained, as readable files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlrate.agents.imitation import Imitation
from rlrate.agents.refinement import Refinement
from rlrate.agents.stopping import Stopping, without_stop
from rlrate.control import SIGNALS, USUAL, Action, Cadence, ControlSpec
from rlrate.control.signals import Limits
from rlrate.control.spec import read_limits
from rlrate.controller import Controller
from rlrate.envs import TrainingVectorEnv
from rlrate.envs.env import MULTIPLIERS
from rlrate.envs.extending import read_extending
from rlrate.errors import ConfigError, unknown_name

_FOLDER = Path(__file__).parent / "recipes"

ALGORITHMS = ("ppo", "a2c", "sac", "td3", "ddpg", "dqn")
ON_POLICY = ("ppo", "a2c")

#: Rules of :class:`rlrate.control.Action` that None switches off.
_OPTIONAL = ("start", "cap", "cut", "alarm", "patience", "short")


@dataclass(frozen=True)
class Recipe:
    """How a controller is trained.

    Attributes:
        name: What the controller's provenance calls it.
        algo: One of :data:`ALGORITHMS`, the Stable-Baselines3 algorithm.
        seed: Determines the networks, their data, and the policy's training.
        seeds: Trainings, from the seeds ``seed``, ``seed`` + 1 and so on; the controller is the mean of their policies.
        iterations: Number of rollouts; in each, every run is trained from beginning to end once.
        runs: Networks trained at once.
        draws: Populations among them, each with its own workload, optimizer and budget.
        action: "continuous" or "discrete".
        environment: Settings of the environment; see :class:`rlrate.envs.TrainingConfig`.
        cadence: Settings of :class:`rlrate.control.Cadence`.
        rules: Settings of :class:`rlrate.control.Action`; false switches a rule off, as None does there.
        signals: Names of the signals; empty for :data:`rlrate.control.USUAL`. In a training that begins with a
            controller: its own and further ones; then only what to make of the further ones is learned, but where the
            training has a refinement, which fits all.
        limits: Signals that are shown within narrower bounds, each with its lowest and highest value or false for none.
            Those of signals that are not seen have no part.
        policy: Hidden layer widths ("net"), "activation" (tanh or relu), "log_std_init".
        algorithm: Keyword arguments of the SB3 algorithm.
        relative_reward: Whether each run is paid relative to the mean of its population.
        siblings: How runs that share their seed (``environment.siblings``) teach by comparison: "hold", decisions for
            which exploration noise is held, "floor", in nats, and "branch", whether siblings part once instead; see
            :mod:`rlrate.agents.rollout`. Empty for SB3's own advantages. Only for PPO with continuous actions.
        anneal_learning_rate: Whether the policy's own learning rate goes linearly to zero.
        initial: Controller whose policy the training begins with, a bundled name or a file; empty for a fresh one.
            Its specification and its network are then those of the training.
        first: Entries of another recipe, whose training comes first and gives that controller; in a file the name of a
            bundled recipe, or a path seen from the file. Its seed is this recipe's; with several ``seeds`` it is the
            first of them, and the mean of their policies is what this training begins with. Empty for none.
        imitation: Settings of :class:`rlrate.agents.imitation.Imitation`, with which the policy begins by imitating the
            best open-loop schedules; empty for none.
        refinement: Settings of :class:`rlrate.agents.refinement.Refinement`, with which the training ends; empty for
            PPO throughout. Only where siblings part once.
        stopping: Settings of :class:`rlrate.agents.stopping.Stopping`, by which the controller learns when to stop once
            its policy is trained; empty for a controller that never does, or, where the training begins with one that
            does and sees what that sees, does as that.
    """

    name: str = "custom"
    algo: str = "ppo"
    seed: int = 0
    seeds: int = 1
    iterations: int = 50
    runs: int = 64
    draws: int = 4
    action: str = "continuous"
    environment: dict[str, Any] = field(default_factory=dict)
    cadence: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    signals: tuple[str, ...] = ()
    limits: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    algorithm: dict[str, Any] = field(default_factory=dict)
    relative_reward: bool = False
    siblings: dict[str, Any] = field(default_factory=dict)
    anneal_learning_rate: bool = True
    initial: str = ""
    first: dict[str, Any] = field(default_factory=dict)
    imitation: dict[str, Any] = field(default_factory=dict)
    refinement: dict[str, Any] = field(default_factory=dict)
    stopping: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.algo not in ALGORITHMS:
            raise ConfigError(unknown_name("algorithm", self.algo, ALGORITHMS))
        if self.algo == "dqn" and self.action != "discrete":
            raise ConfigError("dqn needs discrete actions; pass --action discrete")
        if self.algo in ("sac", "td3", "ddpg") and self.action != "continuous":
            raise ConfigError(f"{self.algo} needs continuous actions; pass --action continuous")
        for name in ("seeds", "iterations", "runs", "draws"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
        if self.first:
            self._check_first()
        if self.initial or self.first:
            self._check_beginning()
        if self.imitation:
            self._check_imitation()
        if self.siblings:
            self._check_siblings()
        if self.refinement:
            self._check_refinement()
        if self.stopping:
            self._check_stopping()
        if self.relative_reward and self.runs <= self.draws:
            raise ConfigError(
                f"relative_reward pays a run by how it does among the runs of its draw, but {self.runs} runs in "
                f"{self.draws} draws have no company; raise runs, lower draws, or set relative_reward = false"
            )

    def _check_siblings(self) -> None:
        count = self.environment.get("siblings", 1)
        if not isinstance(count, int) or count < 2 or self.runs // self.draws % count:
            raise ConfigError(
                f"siblings needs environment.siblings, a number that divides the {self.runs // self.draws} runs of a "
                f"draw and is at least 2, got {count!r}; change it, or runs ({self.runs}) or draws ({self.draws})"
            )
        unknown = sorted(set(self.siblings) - {"hold", "floor", "branch"})
        hold, floor = self.siblings.get("hold", 1), self.siblings.get("floor", 0.1)
        wrong = not isinstance(hold, int) or hold < 1 or not isinstance(floor, int | float) or floor <= 0
        if unknown or wrong or not isinstance(self.siblings.get("branch", False), bool):
            raise ConfigError(
                f"siblings takes hold, an integer >= 1, floor > 0 and branch, true or false, got {self.siblings!r}"
            )
        if self.algo != "ppo" or self.action != "continuous":
            raise ConfigError(
                "siblings teach PPO with continuous actions only; leave out siblings, or change the others"
            )

    def _check_first(self) -> None:
        if self.initial or self.imitation:
            raise ConfigError("a training has one beginning: leave out first, or initial and imitation")
        if "seed" in self.first:
            raise ConfigError("the training that comes first has the seed of the recipe; leave out first.seed")
        if self.first.get("algo", "ppo") not in ON_POLICY:
            raise ConfigError(f"only {' and '.join(ON_POLICY)} can come first, not {self.first['algo']}")

    def _check_beginning(self) -> None:
        if self.algo not in ON_POLICY:
            raise ConfigError(f"only {' and '.join(ON_POLICY)} can begin with a controller, not {self.algo}")
        beginning = self._beginning()
        if beginning is None or not (self.cadence or self.rules or self.limits or self.policy):
            return
        # What an extended recipe brings along may stand there, as long as it is what the controller has.
        _, spec, network = beginning
        other = {
            "cadence": any(getattr(spec.cadence, name, ...) != value for name, value in self.cadence.items()),
            "rules": any(getattr(spec.action, name, ...) != value for name, value in _or_none(self.rules).items()),
            "limits": any(limit not in spec.limits for limit in self._limits if limit[0] in spec.signals),
            **{name: self.policy.get(name, value) != value for name, value in network.items()},
        }
        if any(other.values()):
            raise ConfigError(
                f"a training that begins with a controller takes {', '.join(name for name in other if other[name])} "
                "from it; leave that out of the recipe"
            )

    def _check_imitation(self) -> None:
        if self.initial or self.algo not in ON_POLICY or self.action != "continuous":
            raise ConfigError(
                f"imitation begins a training by {' or '.join(ON_POLICY)} with continuous actions, and not one that "
                "begins with a controller; leave out imitation, or what does not go with it"
            )
        try:
            Imitation(**self.imitation)
        except TypeError as error:
            raise ConfigError(f"imitation: {error}") from None

    def _check_refinement(self) -> None:
        if not self.siblings.get("branch", False):
            raise ConfigError(
                "refinement learns from siblings that part once; set siblings.branch = true, or leave it out"
            )
        try:
            settings = Refinement(**self.refinement)
        except TypeError as error:
            raise ConfigError(f"refinement: {error}") from None
        rest = self.iterations - settings.after
        if rest < settings.every or rest % settings.every:
            raise ConfigError(
                f"refinement takes every = {settings.every} rollouts at a time, which must come out even with the "
                f"{max(rest, 0)} that are left after {settings.after} of {self.iterations}; change iterations, "
                "refinement.after or refinement.every"
            )

    def _check_stopping(self) -> None:
        try:
            Stopping(**self.stopping)
        except TypeError as error:
            raise ConfigError(f"stopping: {error}") from None

    @classmethod
    def load(cls, source: str | Path) -> Recipe:
        """Reads a recipe: a name of :func:`recipe_names` or the path of a TOML file.

        With ``extends = "default"`` (a name, or a path seen from the file), all that the file does not say is as in
        that recipe; of a table such as ``[algorithm]``, the entries that it does not name.

        Raises:
            ConfigError: when there is no such recipe, or it has an unknown or illegal entry.
        """
        return cls._load(Path(source) if Path(source).suffix == ".toml" else _bundled(str(source)), ())

    @classmethod
    def _load(cls, path: Path, above: tuple[Path, ...]) -> Recipe:
        """A file; ``above`` are those before which its training comes."""
        try:
            data = {"name": path.stem, **read_extending(path, _bundled)}
            if isinstance(data.get("first"), str):
                name = data["first"]
                other, above = (
                    path.parent / name if name.endswith(".toml") else _bundled(name),
                    (*above, path.resolve()),
                )
                if other.resolve() in above:
                    raise ConfigError(f"{path}: first = {name!r} leads back to the file itself")
                first = cls._load(other, above).to_dict()
                left_out = {"seed"} if first["seeds"] > 1 else {"seed", "seeds"}
                data["first"] = {key: value for key, value in first.items() if key not in left_out}
            return cls.from_dict(data)
        except OSError as error:
            raise ConfigError(f"cannot read the recipe {error.filename}: {error.strerror}") from None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """Builds a recipe from plain values; lists become tuples where a recipe holds tuples."""
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - names)
        if unknown:
            raise ConfigError(f"unknown recipe entries {unknown}; known: {', '.join(sorted(names))}; in a file extends")
        data = dict(data)
        data["signals"] = tuple(data.get("signals", ()))
        return cls(**data)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values; :meth:`from_dict` is the inverse."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))  # type: ignore[no-any-return]

    @property
    def digest(self) -> str:
        """SHA-256 of the recipe: two trainings with the same digest are the same training.

        Except for the order of a table that weights workloads, which decides what each draw has and is not told.
        """
        return digest_of(self.to_dict())

    @property
    def spec(self) -> ControlSpec:
        """Signals, cadence and action of the controller."""
        beginning = self._beginning()
        if beginning is not None:
            source, spec, _ = beginning
            own = len(spec.signals)
            if self.signals and self.signals[:own] != spec.signals:
                raise ConfigError(
                    f"a training that begins with {source} sees that controller's {own} signals, in their order, and "
                    "at most further ones after them; leave out signals, or add to those that `rlrate inspect` lists"
                )
            kind = "continuous" if spec.action.multipliers is None else "discrete"
            if self.action != kind:
                raise ConfigError(f"the controller {source} has {kind} actions; set action to {kind}")
            return dataclasses.replace(spec, signals=self.signals) if self.signals else spec
        rules = _or_none(self.rules)
        if self.action == "discrete":
            rules.setdefault("multipliers", MULTIPLIERS)
        elif self.action != "continuous":
            raise ConfigError(f"unknown action space {self.action!r}; known: continuous, discrete")
        try:
            cadence, action = Cadence(**self.cadence), Action(**rules)
        except TypeError as error:
            raise ConfigError(f"recipe {self.name!r}: {error}") from None
        signals = self.signals or USUAL
        return ControlSpec(signals, cadence, action, tuple(limit for limit in self._limits if limit[0] in signals))

    @property
    def _limits(self) -> Limits:
        unknown = next((name for name in self.limits if name not in SIGNALS), None)
        if unknown is not None:
            raise ConfigError(unknown_name("signal of limits", unknown, SIGNALS))
        return read_limits({name: pair for name, pair in self.limits.items() if pair is not False})

    @property
    def first_recipe(self) -> Recipe | None:
        """The recipe whose training comes first."""
        return Recipe.from_dict(self.first | {"seed": self.seed}) if self.first else None

    @property
    def rollouts(self) -> int:
        """Rollouts of the whole training, with those that come first, over all seeds."""
        first = self.first_recipe
        return self.seeds * (self.iterations + (first.rollouts if first else 0))

    @property
    def network(self) -> dict[str, Any]:
        """The policy's hidden widths and activation, as the entries "net" and "activation" of ``policy``."""
        beginning = self._beginning()
        if beginning is not None:
            # The mean of several policies has their hidden layers side by side.
            beside = int(self.first.get("seeds", 1))
            return {**beginning[2], "net": [beside * width for width in beginning[2]["net"]]}
        return {"net": list(self.policy.get("net", [64, 64])), "activation": self.policy.get("activation", "tanh")}

    def _beginning(self) -> tuple[str, ControlSpec, dict[str, Any]] | None:
        """Name, specification and network of the controller that the training begins with, or of one of its parts."""
        first = self.first_recipe
        if first:
            return f"that of the recipe {first.name}", first.spec, first.network
        if not self.initial:
            return None
        controller = without_stop(Controller.load(self.initial))
        net = [len(bias) for _, bias in controller.layers[:-1]]
        return self.initial, controller.spec, {"net": net, "activation": controller.activation}

    @property
    def episode_length(self) -> int:
        """Decisions of a run."""
        return self.spec.cadence.decisions - 1

    def make_env(self, workers: int = 1, backend: str = "local") -> TrainingVectorEnv:
        """The batched environment, its draws spread over ``workers`` processes of a backend.

        Raises:
            ConfigError: when a budget is too small for the full number of decisions.
        """
        settings: dict[str, Any] = {
            key: tuple(value) if key in ("steps", "start") and isinstance(value, list) else value
            for key, value in self.environment.items()
        }
        env = TrainingVectorEnv(self.runs, self.draws, workers=workers, backend=backend, spec=self.spec, **settings)
        steps = env.config.steps
        shortest = steps if isinstance(steps, int) else steps[0]
        needed = self.spec.cadence.decisions * self.spec.cadence.first
        if shortest < needed:
            raise ConfigError(
                f"training needs budgets of at least {needed} updates (decisions x first interval), "
                f"got {shortest}; raise environment.steps or lower cadence.decisions"
            )
        return env


def _or_none(rules: dict[str, Any]) -> dict[str, Any]:
    """Rules with None where they are switched off by false, as TOML has no None."""
    return {name: None if value is False and name in _OPTIONAL else value for name, value in rules.items()}


def _bundled(name: str) -> Path:
    if name not in recipe_names():
        raise ConfigError(unknown_name("recipe", name, recipe_names()))
    return _FOLDER / f"{name}.toml"


def digest_of(recipe: dict[str, Any]) -> str:
    """SHA-256 of a recipe's plain values, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))
