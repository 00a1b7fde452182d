"""``rlrate train`` and ``rlrate export``."""

from __future__ import annotations

import json
import os
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlrate.cli.terminal import Steps, clock, note, say, say_json, waiting
from rlrate.errors import ConfigError

if TYPE_CHECKING:
    from rlrate.agents import Recipe

DEFAULT_RECIPE = "demo"
_INTERRUPTED = 130


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; new or empty, unless --resume.")],
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="Bundled recipe or TOML file.", show_default=DEFAULT_RECIPE),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the training in --out.")] = False,
    algo: Annotated[str | None, typer.Option(help="ppo, a2c, sac, td3, ddpg or dqn.")] = None,
    seed: Annotated[int | None, typer.Option(help="Determines networks, data and the policy's training.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings, each from the next seed; the controller is their policies' mean.")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="Rollouts; in each, every run is trained from beginning to end.")
    ] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="What to train on: a name of `rlrate workloads`, or file.py:function. Repeatable."),
    ] = None,
    optimizer: Annotated[
        list[str] | None,
        typer.Option(help="One: with its default settings. Several: drawn, with random settings. Repeatable."),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="N|LOW,HIGH", help="Updates of a run: fixed, or drawn log-uniformly.")
    ] = None,
    action: Annotated[str | None, typer.Option(help="continuous or discrete.")] = None,
    initial: Annotated[
        str | None,
        typer.Option("--from", help="Begin with the policy of this controller: a file, or the name of a bundled one."),
    ] = None,
    runs: Annotated[int | None, typer.Option(help="Networks that are trained at once.")] = None,
    draws: Annotated[int | None, typer.Option(help="How many workloads they share; divides --runs.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes that train the networks; the result does not depend on it.", show_default="cores"),
    ] = None,
    backend: Annotated[
        str, typer.Option(help='Where the networks are trained: local, or ray for a Ray cluster ("rlrate[ray]").')
    ] = "local",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a controller by reinforcement learning, and export it.

    Example:  rlrate train --out runs/first

    Example:  rlrate train --out runs/mine --workload my_file.py:make --optimizer adam --steps 200,2000

    Example:  rlrate train --out runs/tuned --from default --workload my_file.py:make --steps 200,2000 --iterations 20

    Ctrl-C stops it; the same command with --resume continues it, and ends with the same controller.

    The other options replace entries of the recipe.
    """
    changes = _changes(
        algo=algo,
        seed=seed,
        seeds=seeds,
        iterations=iterations,
        runs=runs,
        draws=draws,
        action=action,
        initial=initial,
    ) | _environment_changes(workload=workload, optimizer=optimizer, steps=steps)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; --out names the folder to write")
    with waiting("loading Gymnasium and Stable-Baselines3"):
        from rlrate import agents
    chosen = _resumed(out, recipe, changes) if resume else _chosen(recipe, changes)
    began = time.monotonic()
    last: dict[str, float] = {}
    with Steps("rollout") as progress:

        def report(done: int, total: int, figures: dict[str, float]) -> None:
            beside = [name for name in figures if name in _BESIDE]
            if beside:
                progress.beside(done, total, _BESIDE[beside[0]], figures[beside[0]])
                return
            if done:
                last.update(figures)
            progress.line(done, total, _figures(figures))

        try:
            count = workers or os.cpu_count() or 1
            controller = agents.train(chosen, out, resume=resume, workers=count, backend=backend, progress=report)
        except KeyboardInterrupt:
            _say_how_to_resume(out, chosen)
            raise typer.Exit(_INTERRUPTED) from None
    seconds = time.monotonic() - began
    files = sorted(path for path in out.iterdir() if not path.name.startswith("."))
    if as_json:
        result = {"controller": controller, "files": files, "seconds": round(seconds, 3), "last": last}
        say_json(result | {"identity": _identity(controller)})
        return
    say(f"trained in {clock(seconds)}:")
    for path in files:
        say(f"  {path}{'/' if path.is_dir() else ''}")
    _say_next(controller)


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="Folder that `rlrate train --out` wrote, or a zip file of SB3.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write.", show_default="RUN_DIR/controller.safetensors"),
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Open a zip file, which can run code: your own only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the controller of a training, finished or not, as one file that needs torch only.

    Example:  rlrate export runs/first --out my-controller.safetensors
    """
    with waiting("loading Stable-Baselines3"):
        from rlrate import agents
    if out is not None and out.is_dir():
        raise ConfigError(f"{out} is a folder; name a file, such as --out {out / 'controller.safetensors'}")
    with warnings.catch_warnings():
        # The policy is rebuilt for a single run, for which the recipe's minibatches are too large.
        warnings.filterwarnings("ignore", "You have specified a mini-batch size", UserWarning)
        path = agents.export(run, out, trust=trust)
    if as_json:
        say_json({"controller": path, "identity": _identity(path)})
        return
    say(str(path))
    _say_next(path)


def parse_steps(text: str) -> int | list[int]:
    """Reads --steps: "400" is 400, and "200,2000" is [200, 2000].

    Raises:
        ConfigError: for anything else.
    """
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ConfigError(f"--steps is a number of updates or LOW,HIGH, such as 400 or 200,2000; got {text!r}")
    return numbers if len(numbers) == 2 else numbers[0]


def _changes(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _environment_changes(
    workload: list[str] | None, optimizer: list[str] | None, steps: str | None
) -> dict[str, dict[str, Any]]:
    changes: dict[str, Any] = {}
    for name, values in (("workload", workload), ("optimizer", optimizer)):
        if values:
            changes[name] = values[0] if len(values) == 1 else values
    if steps is not None:
        changes["steps"] = parse_steps(steps)
    return {"environment": changes} if changes else {}


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with some entries replaced."""
    from rlrate.agents import Recipe

    data = recipe.to_dict()
    if changes.get("algo", recipe.algo) != recipe.algo:
        # Other algorithms do not know these settings, or mean something else by them.
        data["algorithm"] = {}
        data |= {"siblings": {}, "refinement": {}, "first": {}}
        data["policy"] = {name: value for name, value in data["policy"].items() if name in ("net", "activation")}
    if "runs" in changes and "batch_size" in data["algorithm"]:
        # As many minibatches as the recipe has, so that all are full.
        share = data["algorithm"]["batch_size"] / recipe.runs
        data["algorithm"]["batch_size"] = max(2, round(share * changes["runs"]))
    if changes.get("initial"):
        # What the controller brings with it.
        data |= {"cadence": {}, "rules": {}, "signals": [], "imitation": {}, "first": {}}
        data["policy"] = {name: value for name, value in data["policy"].items() if name not in ("net", "activation")}
    if data["first"]:
        data["first"] |= {"environment": data["first"].get("environment", {}) | changes.get("environment", {})}
    if "workload" in changes.get("environment", {}):
        data["stopping"] = {name: value for name, value in data["stopping"].items() if name != "workload"}
    environment = data["environment"] | changes.get("environment", {})
    changed = Recipe.from_dict(data | changes | {"environment": environment})
    if recipe.algorithm and not changed.algorithm:
        note(f"the recipe's settings of {recipe.algo} do not apply to {changed.algo}, which trains with its defaults")
    return changed


def _chosen(name: str | None, changes: dict[str, Any]) -> Recipe:
    """The recipe to train, checked as far as that is possible before the folder is touched."""
    from rlrate.agents import Recipe
    from rlrate.envs import get_workload, make_optimizer

    recipe = _changed(Recipe.load(name or DEFAULT_RECIPE), changes)
    for entry, look_up in (("workload", get_workload), ("optimizer", make_optimizer)):
        value = recipe.environment.get(entry)
        for choice in value if isinstance(value, list | dict) else [] if value is None else [value]:
            look_up(choice)
    if recipe.runs % recipe.draws:
        raise ConfigError(f"--draws must divide --runs, but {recipe.draws} does not divide {recipe.runs}")
    recipe.make_env()
    return recipe


def _resumed(out: Path, name: str | None, changes: dict[str, Any]) -> Recipe:
    """The recipe of the training in ``out``, which options may repeat but not change."""
    from rlrate.agents import Recipe

    try:
        recorded = Recipe.from_dict(json.loads((out / "config.json").read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return Recipe()  # train() says what is wrong with the folder
    asked = _changed(Recipe.load(name) if name else recorded, changes)
    before, after = recorded.to_dict(), asked.to_dict()
    differing = [entry for entry in before if before[entry] != after[entry]]
    if differing:
        entry = differing[0]
        raise ConfigError(
            f"--resume continues the training in {out} as it was begun, with {entry} {before[entry]!r} and not "
            f"{after[entry]!r}; leave that option out, or train anew in another folder"
        )
    return recorded


#: What a training does beside its rollouts, by the only figure that is told of it: the share that is done.
_BESIDE = {"imitation": "imitating schedules", "stopping": "learning when to stop"}


def _figures(figures: dict[str, float]) -> str:
    text = f"return {figures['return_mean']:+.3f}"
    diverged = int(figures.get("diverged", 0))
    return text + (f"  {diverged} diverged" if diverged else "")


def _say_how_to_resume(out: Path, recipe: Recipe) -> None:
    from rlrate.agents.ensemble import rollouts_done
    from rlrate.agents.recipe import ON_POLICY

    if recipe.algo not in ON_POLICY:
        note(f"stopped; a training with {recipe.algo} cannot be resumed (with {' and '.join(ON_POLICY)} it can)")
        return
    if not (out / "config.json").exists():
        note("stopped before the first rollout")
        return
    folder = shlex.quote(str(out))
    try:
        note(f"stopped; saved after rollout {rollouts_done(out, recipe)}")
        saved = True
    except ConfigError:
        note("stopped in the first rollout")
        saved = False
    note(f"continue it:     rlrate train --out {folder} --resume")
    if saved:
        note(f"use it as it is: rlrate export {folder}")


def _say_next(controller: Path) -> None:
    path = shlex.quote(str(controller))
    say("next:")
    say(f"  rlrate inspect {path}")
    say(f"  rlrate compare --controller {path} {_comparable(controller)}")
    say(f'  in Python: rlrate.LearnedLR(optimizer, total_steps=..., controller="{controller}")')


def _comparable(controller: Path) -> str:
    """The options that compare a controller on the workload that it was trained on, if that is the user's own."""
    from rlrate import Controller
    from rlrate.envs.optimizers import OPTIMIZERS

    # A zip file of SB3 has no recipe.
    environment = Controller.load(controller).provenance.get("recipe", {}).get("environment", {})
    workload, optimizer = environment.get("workload"), environment.get("optimizer")
    own = isinstance(workload, str) and ":" in workload
    known = isinstance(optimizer, str) and optimizer in OPTIMIZERS
    return f"--workload {shlex.quote(workload) if own else 'digits-cnn'} --optimizer {optimizer if known else 'adam'}"


def _identity(path: Path) -> str:
    from rlrate import Controller

    return Controller.load(path).identity
