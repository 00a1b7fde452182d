"""The report of a comparison: a page that needs no network, its pictures as files, and a summary in Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlrate.errors import ResultsError
from rlrate.experiments.report_charts import ROLES, Chart
from rlrate.experiments.report_content import Content, content, losses, wins
from rlrate.experiments.report_svg import scene
from rlrate.experiments.report_tables import kinds_table, methods_table
from rlrate.experiments.scoring import Scores
from rlrate.experiments.store import load
from rlrate.storage import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, SUMMARY, PICTURES = "report.html", "report.md", "figures"


@dataclass(frozen=True)
class Written:
    """A report that was written.

    Attributes:
        page: The page.
        summary: Headline and table in Markdown.
        pictures: Every figure of the page, as SVG and PNG.
        figures: The numbers behind the headline and the table, ready for JSON.
    """

    page: Path
    summary: Path
    pictures: tuple[Path, ...]
    figures: dict[str, Any]


def write_report(folder: str | Path, out: str | Path | None = None) -> Written:
    """Writes the report of a comparison.

    Args:
        folder: Where the comparison is; finished or not.
        out: The page; by default ``report.html`` in the folder. The summary and the pictures go beside it.

    Raises:
        ResultsError: There is no comparison, it is damaged, or it has no run yet.
    """
    folder = Path(folder)
    page = folder / PAGE if out is None else Path(out)
    results = load(folder)
    if not results.rows:
        raise ResultsError(f"the comparison in {folder} has no finished run yet: go on with rlrate compare")
    scores = Scores(results)
    said = content(scores, _oracle(folder), str(folder))
    page.parent.mkdir(parents=True, exist_ok=True)
    summary = page.with_suffix(".md")
    write_atomically(page, render_page(said).encode())
    write_atomically(summary, render_summary(said, scores).encode())
    return Written(page, summary, tuple(_pictures(said, page.parent / PICTURES)), numbers(scores))


def render_page(said: Content) -> str:
    """The page: everything it needs is in it."""
    return _render("page.html.j2", said=said, draw=_draw, roles=ROLES)


def render_summary(said: Content, scores: Scores) -> str:
    """Headline and table in Markdown, to be embedded elsewhere."""
    table = methods_table(scores)
    shown = [name for name, _ in table.columns].index
    kept = [shown(name) for name in ("method", "trials", "loss ratio", "score", "worth trials", "on each", "diverged")]
    tables = [([table.columns[i][0] for i in kept], [[_escaped(v[i].text) for i in kept] for _, v in table.rows])]
    kinds = kinds_table(scores)
    if kinds.rows:
        names = [_escaped(name) for name, _ in kinds.columns]
        tables.append((names, [[_escaped(value.text) for value in values] for _, values in kinds.rows]))
    return _render("summary.md.j2", said=said, tables=tables)


def render_picture(chart: Chart) -> str:
    """A chart as an SVG file that stands alone, light or dark as the reader's system is."""
    style = _render("figure.css.j2", roles=ROLES)
    return _render("chart.svg.j2", **scene(chart), style=style)


def numbers(scores: Scores) -> dict[str, Any]:
    """The numbers behind headline and table."""
    suite = scores.suite
    return {
        "suite": suite["name"],
        "command": suite.get("command", ""),
        "missing": scores.results.missing,
        "problems": [problem.name for problem in scores.headline],
        "seeds": list(suite["seeds"]),
        "configurations": len(scores.search),
        "learned": scores.learned,
        "loses": losses(scores),
        "wins": wins(scores),
        "methods": [_named(asdict(score)) for score in scores.scores],
    }


def _named(score: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: trials that no search of the grid reaches are null, as is whatever is not defined."""
    for name in ("ratio", "middle", "wider", "foreseen"):
        if score[name] is not None:
            score[name] = dict(zip(("value", "low", "high"), score[name], strict=True))
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in score.items()}


def _draw(chart: Chart) -> dict[str, str]:
    drawn = scene(chart)
    return {"svg": _render("chart.svg.j2", **drawn), "data": drawn["data"]}


def _pictures(said: Content, folder: Path) -> list[Path]:
    from rlrate.experiments.report_png import save_chart

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for chart in said.charts:
        vector = folder / f"{chart.name}.svg"
        write_atomically(vector, render_picture(chart).encode())
        paths += [vector, save_chart(chart, folder / f"{chart.name}.png")]
    return paths


def _oracle(folder: Path) -> Mapping[str, Any] | None:
    path = folder / "oracle.json"
    try:
        oracle: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ResultsError(f"{path} is damaged ({error}): make it again, or delete it") from None
    return oracle


def _render(template: str, **names: Any) -> str:
    return _templates().get_template(template).render(**{"style": "", **names})


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("rlrate.experiments", "report_template"),
        autoescape=lambda name: name is not None and name.endswith((".html.j2", ".svg.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


__all__ = ["Written", "numbers", "render_page", "render_picture", "render_summary", "write_report"]
