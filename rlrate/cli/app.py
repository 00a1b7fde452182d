"""The application: its commands, and how an error reaches the user."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import rlrate
from rlrate.cli.comparing import bench, compare
from rlrate.cli.describing import inspect, workloads
from rlrate.cli.reporting import report
from rlrate.cli.terminal import note, say
from rlrate.cli.training import export, train
from rlrate.errors import RlrateError

#: Exit codes: an error that the user can mend, and Ctrl-C.
ERROR, INTERRUPTED = 2, 130

#: Modules that the base installation lacks, and the extra that brings them.
_EXTRAS = {
    "gymnasium": "train",
    "stable_baselines3": "train",
    "sklearn": "train",
    "tensorboard": "train",
    "tqdm": "train",
    "jinja2": "compare",
    "matplotlib": "compare",
    "optuna": "compare",
    "scipy": "compare",
    "dadaptation": "compare",
    "prodigyopt": "compare",
    "pytorch_optimizer": "compare",
    "schedulefree": "compare",
    "ray": "ray",
}


class _Group(TyperGroup):
    """Turns rlrate's errors, missing extras and Ctrl-C into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("stopped")
            raise typer.Exit(INTERRUPTED) from None
        except (RlrateError, ModuleNotFoundError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            message = _message(error)
            if message is None:
                raise
            note(f"error: {message}", style="red")
            raise typer.Exit(ERROR) from None


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        say(f"rlrate {rlrate.__version__}")
        raise typer.Exit


@app.callback()
def _rlrate(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Learned learning rates for torch: train, look at and compare the controllers that set them.

    Begin with:  rlrate inspect default  or  rlrate train --out runs/first
    """


for command in (train, export, inspect, compare, report, workloads, bench):
    app.command()(command)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; never returns."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # Whoever meets an error adds --debug at the end of the command.
    options = ["--debug"] if "--debug" in given else []
    app(options + [argument for argument in given if argument != "--debug"], prog_name="rlrate")


def _message(error: Exception) -> str | None:
    """One line for the user, or None for an error that is ours."""
    if isinstance(error, RlrateError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    module = (getattr(error, "name", None) or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    return f'this command needs {module}, which is not installed: pip install "rlrate[{_EXTRAS[module]}]"'
