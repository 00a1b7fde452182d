"""``rlrate report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rlrate.cli.terminal import note, say, say_json, waiting


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of rlrate compare.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page.", show_default="report.html in DIR")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers behind headline and table.")] = False,
) -> None:
    """Turn the results of a comparison into one page that works offline, with its pictures and a Markdown summary.

    Example:  rlrate report runs/held-out

    A comparison that is still running, or was stopped, is reported as far as it is.
    """
    with waiting("writing the report"):
        from rlrate.experiments.report import write_report

        written = write_report(folder, out)
    if as_json:
        say_json(written.figures | {"files": [written.page, written.summary, *written.pictures]})
        return
    if written.figures["missing"]:
        note(f"unfinished: {written.figures['missing']} runs are still to be made")
    say(f"{written.page} ({written.page.stat().st_size / 1e6:.1f} MB)")
    say(f"{written.summary}")
    say(f"{written.pictures[0].parent if written.pictures else 'no pictures'}: {len(written.pictures)} pictures")
