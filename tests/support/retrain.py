"""Trains what standard input says, in a process of its own, and prints the controllers' identities."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Reads a list of {"recipe", "out", "resume"} as JSON."""
    from rlrate import Controller
    from rlrate.agents import Recipe, train

    found = []
    for job in json.load(sys.stdin):
        path = train(Recipe.from_dict(job["recipe"]), job["out"], resume=job["resume"])
        found.append(Controller.load(path).identity)
    json.dump({"identities": found, "hash": hash("rlrate")}, sys.stdout)


if __name__ == "__main__":
    main()
