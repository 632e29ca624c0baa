"""The report of a run as one self-contained HTML page."""

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from sweepcp.errors import InvalidInput
from sweepcp.report import page_tables, sections
from sweepcp.report.chart import COLOURS, MARKS, Chart, Series
from sweepcp.report.front_charts import front_chart, tolerance_chart
from sweepcp.report.labels import choice_sentence
from sweepcp.report.plotly_figures import figure_without_title
from sweepcp.report.progress_charts import hypervolume_chart, training_chart
from sweepcp.report.recipe_charts import recipe_chart, tradeoff_chart
from sweepcp.report.views import RunView
from sweepcp.util.files import write_text

CURVES_SHOWN = 4
"""Trials without a score, and unfinished trials, whose curves are shown; the tables list all."""
TEMPLATES = Environment(
    loader=PackageLoader("sweepcp.report", "web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Templates escape all values, so that text from a run cannot become markup."""


def write_report(run: RunView, file: Path) -> None:
    """Write the page.

    Raises:
        InvalidInput: The file cannot be written.
    """
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
    """Return the page as HTML that makes no request to any host.

    Args:
        run: The run to report.
        stamp: The version of the page, if `sweepcp watch` serves it: the page then asks its own
            server for a newer version.
    """
    scripts = [get_plotlyjs(), _read_asset("page.js")]
    return TEMPLATES.get_template("page.html").render(
        policy=_security_policy(scripts, served=stamp is not None),
        # The scripts are part of the program and must not be escaped.
        scripts=[Markup(script) for script in scripts],
        style=Markup(_read_asset("page.css")),
        stamp=stamp,
        colours=COLOURS,
        marks=MARKS,
        **_page_content(run),
    )


def _read_asset(name: str) -> str:
    return (Path(__file__).parent / "web" / name).read_text(encoding="utf-8")


def _security_policy(scripts: list[str], *, served: bool) -> str:
    """Return a content security policy under which only these scripts run."""
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:"
    return policy + ("; connect-src 'self'" if served else "")


def _page_content(run: RunView) -> dict[str, Any]:
    """Return the values of the template's variables."""
    certainty = run.certainty
    scored = run.chosen_or_nearest
    trials = page_tables.trial_table(run, certainty)
    charts = {
        "front": front_chart(run, run.labels),
        "plane": recipe_chart(run, run.labels),
        "tolerance": tolerance_chart(run),
        "tradeoff": tradeoff_chart(run, run.trend, run.labels),
        "hypervolume": hypervolume_chart(run),
        "curves": training_chart(run, _trials_with_curves(run)),
    }
    return {
        "name": run.experiment.name,
        "question": sections.question_text(run),
        "progress": sections.progress_text(run),
        "answer": choice_sentence(run),
        "warning": sections.bound_warning(run, certainty),
        "rule": str(run.rule),
        "chosen": run.chosen,
        "certainty": sections.certainty_lines(run, certainty),
        "untested": sections.untested_lines(run),
        "charts": charts,
        "legends": {name: _legend_series(chart) for name, chart in charts.items()},
        "numbers": Markup(_chart_json(charts)),
        "front": page_tables.front_table(run, trials),
        "trials": trials,
        "members": page_tables.member_table(scored) if scored else None,
        "languages": page_tables.language_table(scored) if scored else None,
        "data": page_tables.data_table(run),
        "failures": page_tables.failure_table(run),
        "cost": sections.cost_lines(run),
        "versions": sections.version_lines(run),
        "experiment": sections.experiment_text(run),
        "folder": str(run.path.resolve()),
        "command": f"sweepcp search {shlex.quote(run.experiment.name + '.yaml')}",
    }


def _trials_with_curves(run: RunView) -> list[str]:
    """Return the ends of the front, the choice, and some unfinished and some unscored trials."""
    unscored = [trial.id for trial in run.trials if trial.status != "done"]
    ids = [
        *run.front.ids[:1],
        run.front.choice.id,
        *run.front.ids[-1:],
        *list(run.unfinished)[:CURVES_SHOWN],
        *unscored[:CURVES_SHOWN],
    ]
    return list(dict.fromkeys(trial_id for trial_id in ids if trial_id is not None))


def _legend_series(chart: Chart) -> list[Series]:
    """Return one series of each name."""
    by_name: dict[str, Series] = {}
    for panel in chart.panels:
        by_name |= {series.name: series for series in panel.series if series.name}
    return list(by_name.values())


def _chart_json(charts: Mapping[str, Chart]) -> str:
    """Return the panels of all charts as JSON for the page's script.

    Hover texts are listed once, because most charts have those of all trials; numbers have six
    digits. `<`, `>` and `&` are escaped, so that no text can end the script element.
    """
    text_index: dict[str, int] = {}
    figures = {}
    for name, chart in charts.items():
        figures[name] = [
            _share_hover_texts(figure_without_title(panel), text_index) for panel in chart.panels
        ]
    content = json.dumps(
        {"texts": list(text_index), "charts": figures}, separators=(",", ":"), allow_nan=False
    )
    return content.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _share_hover_texts(figure: dict[str, Any], text_index: dict[str, int]) -> dict[str, Any]:
    """Replace the hover texts of a figure by their indices, and add new texts to the index."""
    for trace in figure["data"]:
        if "hovertext" in trace:
            trace["customdata"] = [
                text_index.setdefault(text, len(text_index)) for text in trace.pop("hovertext")
            ]
    return {"data": _round_numbers(figure["data"]), "layout": figure["layout"]}


def _round_numbers(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _round_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_round_numbers(inner) for inner in value]
    return value
