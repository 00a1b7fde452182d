"""Training a controller with Stable-Baselines3."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, configure

from rlrate.agents.checkpoint import has_checkpoint, read_checkpoint, restore_state, write_checkpoint
from rlrate.agents.ensemble import FIRST, folder_of, gather_progress, mean_of, members, rollouts_done
from rlrate.agents.export import STOPPING, begin_with, controller_from, export, stopping
from rlrate.agents.imitation import Imitation, imitate
from rlrate.agents.metrics import RolloutMetrics, write_csv
from rlrate.agents.model import make_model
from rlrate.agents.recipe import ON_POLICY, Recipe
from rlrate.agents.record import config, provenance, recorded_recipe
from rlrate.agents.rollout import HeldNoisePolicy
from rlrate.agents.stopping import Stopping, teach_stop
from rlrate.agents.vecenv import PopulationVecEnv
from rlrate.controller import Controller
from rlrate.envs.env import to_unit
from rlrate.errors import ConfigError
from rlrate.storage import write_atomically

Progress = Callable[[int, int, dict[str, float]], None]


def train(
    recipe: Recipe | str = "default",
    out: str | Path = "runs/controller",
    *,
    resume: bool = False,
    workers: int = 1,
    backend: str = "local",
    progress: Progress | None = None,
) -> Path:
    """Trains a controller and writes it to ``out``.

    The folder receives ``controller.safetensors``, ``ppo.zip`` (named after the algorithm), ``progress.csv``,
    ``config.json`` (recipe, specification and versions), ``checkpoint.pt`` and, with TensorBoard installed,
    ``tensorboard/``. The same recipe on the same machine gives the same controller. A checkpoint is written after every
    rollout, so an interrupted training loses at most one. What comes ``first`` in the recipe is trained in the folder
    ``first``, which receives the same.

    A recipe of several ``seeds`` is trained once for each, in folders ``seed-0``, ``seed-1`` and so on that receive all
    of this; ``out`` itself then receives the mean of their policies as one controller, ``progress.csv`` with the rows
    of all, and ``config.json``.

    Args:
        recipe: A :class:`Recipe`, a bundled name, or a TOML file.
        out: Folder to write; must be new or empty unless ``resume``.
        resume: Continue the training in ``out``; ends with the controller of a training that was never stopped. Only
            for ppo and a2c.
        workers: Processes that train the networks; the controller does not depend on their number. With more than one,
            a script must guard its entry with ``if __name__ == "__main__"``.
        backend: "local" for processes of this machine, or "ray" for a Ray cluster: the one that the environment
            variable RAY_ADDRESS names, else one started on this machine. The controller does not depend on it.
        progress: Called after each rollout with (rollouts done, rollouts in all, figures), and before the first one at
            each tenth of the imitation, whose share is then the only figure, "imitation"; likewise "stopping" after the
            last.

    Returns:
        Path of the controller file.

    Raises:
        ConfigError: for an unusable recipe, folder or backend, or when there is nothing to resume.
        KeyboardInterrupt: passed on after the state was saved.
    """
    out = Path(out)
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    if resume:
        recipe = recorded_recipe(out)
        _refuse_off_policy(recipe)
    elif out.exists() and any(path.suffix != ".part" for path in out.iterdir()):  # left by a write that was killed
        raise ConfigError(f"{out} is not empty; choose another folder, or continue the training there with --resume")
    if recipe.seeds > 1:
        return _train_seeds(recipe, out, {out: recipe}, workers, backend, progress)
    return _train_one(recipe, out, {out: recipe}, resume, workers, backend, progress)


def _train_seeds(
    recipe: Recipe,
    out: Path,
    records: Mapping[Path, Recipe],
    workers: int,
    backend: str,
    progress: Progress | None,
) -> Path:
    controllers = []
    total = recipe.rollouts // recipe.seeds
    for index, member in enumerate(members(recipe)):
        folder = folder_of(out, member)

        def report(done: int, _: int, figures: dict[str, float], before: int = index * total) -> None:
            gather_progress(recipe, out)
            if progress is not None:
                progress(before + done, recipe.rollouts, figures)

        path = _train_part(member, folder, {**records, folder: member}, workers, backend, report)
        controllers.append(Controller.load(path))
    gather_progress(recipe, out)
    return mean_of(controllers, provenance(recipe)).save(out / "controller.safetensors")


def _train_part(
    recipe: Recipe,
    out: Path,
    records: Mapping[Path, Recipe],
    workers: int,
    backend: str,
    progress: Progress | None,
) -> Path:
    """A training that is part of another one: continued where it was stopped, and left alone where it is done."""
    if recipe.seeds > 1:
        return _train_seeds(recipe, out, records, workers, backend, progress)
    begun = (out / "config.json").exists()
    taught = not recipe.stopping or (out / STOPPING).exists()
    if begun and taught and has_checkpoint(out) and rollouts_done(out, recipe) >= recipe.rollouts:
        return export(out)
    return _train_one(recipe, out, records, begun, workers, backend, progress)


def _train_one(
    recipe: Recipe,
    out: Path,
    records: Mapping[Path, Recipe],
    resume: bool,
    workers: int,
    backend: str,
    progress: Progress | None,
) -> Path:
    """One training; ``records`` says what to note in which folder once it is certain that it can begin."""
    # A training that was stopped in its first rollout has no checkpoint yet, and begins again.
    state = read_checkpoint(out) if resume and has_checkpoint(out) else None
    initial = None
    first = recipe.first_recipe
    if first:
        before, total = first.rollouts, recipe.rollouts
        if state is None:
            # Made for its errors alone: what is wrong with a recipe is told before hours are spent on what comes first.
            make_model(recipe, PopulationVecEnv(recipe.make_env(), recipe.seed))
            folder = out / FIRST
            counted = _counted(progress, 0, total)
            path = _train_part(first, folder, {**records, folder: first}, workers, backend, counted)
            initial = Controller.load(path)
        progress = _counted(progress, before, total)
    env = PopulationVecEnv(recipe.make_env(workers, backend), recipe.seed, relative=recipe.relative_reward)
    threads = torch.get_num_threads()
    # The networks are small: threads that wait for each other cost more than they give, above all on a busy machine.
    torch.set_num_threads(1)
    try:
        model = make_model(recipe, env, initial)
        env.env.start()
        if not resume:  # only now, so that a recipe or a cluster that is refused leaves the folder free
            for folder, recorded in records.items():
                write_atomically(folder / "config.json", config(recorded))
        if recipe.imitation and state is None:
            begin_with(model, _first_policy(recipe, out, workers, progress))
        return _learn(recipe, out, model, env, state, workers, progress)
    finally:
        torch.set_num_threads(threads)
        env.close()


def _first_policy(recipe: Recipe, out: Path, workers: int, progress: Progress | None) -> Controller:
    """The policy of the recipe's imitation; kept, so that a resumed training need not repeat it."""
    path = out / "imitation.safetensors"
    if not path.exists():
        imitate(
            Imitation(**recipe.imitation),
            recipe.make_env().config,
            **recipe.network,
            seed=recipe.seed,
            workers=workers,
            progress=_tenths(progress, 0, recipe.iterations, "imitation"),
        ).save(path)
    return Controller.load(path)


def _tenths(progress: Progress | None, rollouts: int, total: int, name: str) -> Callable[[int, int], None]:
    """Tells what is done apart from rollouts, at each tenth of it."""
    tenths = 0

    def report(done: int, draws: int) -> None:
        nonlocal tenths
        if progress is not None and done * 10 // draws > tenths:
            tenths = done * 10 // draws
            progress(rollouts, total, {name: done / draws})

    return report


def _counted(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Tells rollouts of a part as rollouts of the whole."""
    if progress is None:
        return None
    return lambda done, _, figures: progress(before + done, total, figures)


def _learn(
    recipe: Recipe,
    out: Path,
    model: BaseAlgorithm,
    env: PopulationVecEnv,
    state: dict[str, Any] | None,
    workers: int,
    progress: Progress | None,
) -> Path:
    model.set_logger(_logger(out))
    callback = _Recorder(recipe, out, progress)
    if state is not None:
        callback.rows = restore_state(model, env, state)
    per_rollout = recipe.runs * recipe.episode_length
    remaining = recipe.iterations * per_rollout - model.num_timesteps
    if remaining > 0:
        model.learn(remaining, callback, reset_num_timesteps=state is None)
        callback.save()
    model.save(out / f"{recipe.algo}.zip")
    controller = controller_from(model, recipe.spec, provenance(recipe))
    if recipe.stopping:
        _teach_stop(recipe, out, controller, workers, progress)
    return stopping(recipe, out, controller).save(out / "controller.safetensors")


def _teach_stop(recipe: Recipe, out: Path, controller: Controller, workers: int, progress: Progress | None) -> None:
    """Adds to the folder a controller that knows when to stop, from which others of the folder take that."""
    report = _tenths(progress, recipe.iterations, recipe.iterations, "stopping")
    config = recipe.make_env().config
    settings = Stopping(**recipe.stopping)
    teach_stop(controller, settings, config, seed=recipe.seed, workers=workers, progress=report).save(out / STOPPING)


def _refuse_off_policy(recipe: Recipe) -> None:
    if recipe.algo not in ON_POLICY:
        raise ConfigError(
            f"--resume works for {' and '.join(ON_POLICY)}; {recipe.algo} keeps a replay buffer that is not saved. "
            "Train it anew in another folder"
        )


def restore(out: Path) -> tuple[BaseAlgorithm, Recipe, dict[str, Any]]:
    """Model, recipe and provenance of the last checkpoint in a training folder."""
    state = read_checkpoint(out)
    recipe = recorded_recipe(out)
    # No population is built before the environment is reset, which the policy alone does not need.
    model = make_model(recipe, PopulationVecEnv(recipe.make_env(), recipe.seed))
    model.policy.load_state_dict(state["policy"])
    return model, recipe, provenance(recipe)


class _Recorder(BaseCallback):
    """Gathers the figures of each rollout and checkpoints between rollouts."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress | None) -> None:
        super().__init__()
        self.recipe = recipe
        self.out = out
        self.progress = progress
        self.rows: list[dict[str, Any]] = []
        self._metrics = RolloutMetrics()
        self._families: list[str] = []

    def _on_rollout_start(self) -> None:
        self._note_families()
        if isinstance(self.model.policy, HeldNoisePolicy):
            done = self.num_timesteps / (self.recipe.iterations * self.recipe.runs * self.recipe.episode_length)
            self.model.policy.begin_rollout(1.0 - done)
        # Off-policy algorithms call this after every step; whole episodes are what counts.
        if self.recipe.algo in ON_POLICY and self.num_timesteps > 0:
            self.save()

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        actions = self.locals["clipped_actions" if "clipped_actions" in self.locals else "actions"]
        rule = self.recipe.spec.action
        self._metrics.add(self._env.env, to_unit(actions, rule, self._env.num_envs))
        self._metrics.finish(self._families, infos)
        if any("terminal_observation" in info for info in infos):
            self._note_families()
        per_rollout = self.recipe.runs * self.recipe.episode_length
        done = self.num_timesteps // per_rollout
        if done > len(self.rows):
            self._end_of_episode(done)
        return True

    def _end_of_episode(self, done: int) -> None:
        row = {"iteration": done, "timesteps": self.num_timesteps, **self._metrics.row()}
        self._metrics = RolloutMetrics()
        self.rows.append(row)
        write_csv(self.out / "progress.csv", self.rows)
        for name, value in row.items():
            self.logger.record(f"rlrate/{name}", value)
        self.logger.dump(self.num_timesteps)
        if self.progress is not None:
            self.progress(done, self.recipe.iterations, row)

    def _note_families(self) -> None:
        names = [state.family for state in self._env.env.states]
        self._families = [name for name in names for _ in range(self._env.env.per_draw)]

    @property
    def _env(self) -> PopulationVecEnv:
        env = self.training_env
        assert isinstance(env, PopulationVecEnv)
        return env

    def save(self) -> None:
        """Writes the checkpoint."""
        write_checkpoint(self.out, self.model, self._env, self.rows, self.recipe.digest)


def _logger(out: Path) -> Logger:
    formats = ["tensorboard"] if importlib.util.find_spec("tensorboard") else []
    return configure(str(out / "tensorboard"), formats)
