"""One self-contained page of a run: `sweepcp report`, and what `sweepcp watch` serves."""

import base64
import hashlib
import json
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sweepcp.errors import InvalidInput
from sweepcp.report import charts, sections
from sweepcp.report.chart import COLOURS, MARKS, Chart, Series
from sweepcp.report.labels import choice_sentence
from sweepcp.report.plotly_figures import figure_without_title
from sweepcp.report.views import RunView
from sweepcp.util.files import write_text

BROKEN_SHOWN = 4
"""Broken and running trials whose curves are shown, of each as many; the tables have all."""
TEMPLATES = Environment(
    loader=PackageLoader("sweepcp.report", "web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Everything that a template prints is escaped, whatever it holds."""


def write_report(run: RunView, file: Path) -> None:
    """Write the page; `BadInput` when the file cannot be written."""
    try:
        write_text(file, render_page(run))
    except OSError as error:
        raise InvalidInput(
            file=file,
            key="--html",
            found=error.strerror,
            rule="a file that can be written",
            fix="name another file",
        ) from None


def render_page(run: RunView, stamp: str | None = None) -> str:
    """The page as HTML that asks nothing of any host; one with a stamp asks its own for what is newer than that."""
    scripts = [get_plotlyjs(), _read_asset("page.js")]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in scripts
    )
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    return TEMPLATES.get_template("page.html").render(
        policy=policy + ("; connect-src 'self'" if stamp else ""),
        scripts=[Markup(script) for script in scripts],  # they are part of the program
        style=Markup(_read_asset("page.css")),
        stamp=stamp,
        colours=COLOURS,
        marks=MARKS,
        **_page_content(run),
    )


def _read_asset(name: str) -> str:
    return (Path(__file__).parent / "web" / name).read_text(encoding="utf-8")


def _page_content(run: RunView) -> dict[str, Any]:
    """What the template shows."""
    sure = run.certainty
    scored, trials = run.chosen_or_nearest, sections.trial_table(run, sure)
    drawn = {
        "front": charts.front_chart(run, run.known),
        "plane": charts.recipe_chart(run, run.known),
        "tolerance": charts.tolerance_chart(run),
        "tradeoff": charts.tradeoff_chart(run, run.trend, run.known),
        "hypervolume": charts.hypervolume_chart(run),
        "curves": charts.training_chart(run, _trials_with_curves(run)),
    }
    return {
        "name": run.experiment.name,
        "question": sections.question_text(run),
        "progress": sections.progress_text(run),
        "answer": choice_sentence(run),
        "caution": sections.bound_warning(run, sure),
        "rule": str(run.rule),
        "chosen": run.chosen,
        "sure": sections.certainty_lines(run, sure),
        "untested": sections.untested_lines(run),
        "charts": drawn,
        "legends": {name: _legend_series(chart) for name, chart in drawn.items()},
        "numbers": Markup(_chart_json(drawn)),
        "front": sections.front_table(run, trials),
        "trials": trials,
        "members": sections.member_table(scored) if scored else None,
        "languages": sections.language_table(scored) if scored else None,
        "data": sections.data_table(run),
        "failures": sections.failure_table(run),
        "cost": sections.cost_lines(run),
        "versions": sections.version_lines(run),
        "experiment": sections.experiment_text(run),
        "folder": str(run.path.resolve()),
        "command": f"sweepcp search {shlex.quote(run.experiment.name + '.yaml')}",
    }


def _trials_with_curves(run: RunView) -> list[str]:
    """Trials whose steps the page shows: the ends of the front, the choice, those that run, some that broke."""
    broken = [t.id for t in run.trials if t.status != "done"][:BROKEN_SHOWN]
    ids = [
        *run.front.ids[:1],
        run.front.choice.id,
        *run.front.ids[-1:],
        *list(run.unfinished)[:BROKEN_SHOWN],
        *broken,
    ]
    return list(dict.fromkeys(i for i in ids if i is not None))


def _legend_series(chart: Chart) -> list[Series]:
    """A series of each name."""
    return list({s.name: s for panel in chart.panels for s in panel.series if s.name}.values())


def _chart_json(drawn: dict[str, Chart]) -> str:
    """The panels of all charts for the page's script, each hover text once, six digits a number.

    JSON in which no `<` can end the element that it stands in.
    """
    texts: dict[str, int] = {}
    figures = {}
    for name, chart in drawn.items():
        figures[name] = [
            _share_hover_texts(figure_without_title(panel), texts) for panel in chart.panels
        ]
    content = json.dumps(
        {"texts": list(texts), "charts": figures}, separators=(",", ":"), allow_nan=False
    )
    return content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _share_hover_texts(figure: dict[str, Any], texts: dict[str, int]) -> dict[str, Any]:
    """A figure whose traces name hover texts by their places in `texts`."""
    for trace in figure["data"]:
        if "hovertext" in trace:
            trace["customdata"] = [
                texts.setdefault(text, len(texts)) for text in trace.pop("hovertext")
            ]
    return {"data": _round_numbers(figure["data"]), "layout": figure["layout"]}


def _round_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _round_numbers(inner) for key, inner in value.items()}
    return [_round_numbers(inner) for inner in value] if isinstance(value, list) else value
