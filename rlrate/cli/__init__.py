"""The command line: ``rlrate train | export | inspect | compare | report | workloads | bench``."""

from rlrate.cli.app import app, main

__all__ = ["app", "main"]
