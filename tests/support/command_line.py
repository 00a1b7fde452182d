"""Running the command line in this process."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from rlrate.cli import app
from rlrate.cli.app import ERROR

WORKLOAD = """
import torch
from torch import nn
from rlrate.envs import Workload

def make():
    data = torch.randn(40, 3), torch.randn(40, 1)
    return Workload("mine", "user", lambda: nn.Linear(3, 1), data, data, nn.functional.mse_loss, 8)
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="rlrate")


def succeed(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fail(*arguments: object) -> str:
    """The message of a command that must end with one line on stderr and nothing on stdout."""
    result = run(*arguments)
    assert result.exit_code == ERROR, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line]
    assert lines[-1].startswith("error: "), lines
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    return lines[-1]
