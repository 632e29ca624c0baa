"""Charts as plotly figures."""

import math
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepcp.report.chart import COLOURS, MARKS, Axis, Chart, Panel, Series

SYMBOLS = {"triangle": "triangle-up"}
"""Marks that plotly calls by other names."""
LOG_TICKS = [digit * 10.0**power for power in range(-9, 4) for digit in (1, 2, 5)]
PANEL_HEIGHT = 420
"""In pixels."""
NOTE_CHARACTERS = 130
"""Characters per line of the notes."""
LAYOUT = {"hovermode": "closest", "hoverlabel": {"align": "left"}, "barmode": "group"}


def plotly_figure(chart: Chart) -> go.Figure:
    """Return the chart with its notes, for notebooks. Hover texts are escaped: never markup."""
    figure = make_subplots(
        rows=chart.rows, cols=chart.columns, horizontal_spacing=0.12, vertical_spacing=0.16
    )
    in_legend: set[str] = set()
    for index, panel in enumerate(chart.panels):
        cell = {"row": index // chart.columns + 1, "col": index % chart.columns + 1}
        for series in panel.series:
            show = bool(series.name) and series.name not in in_legend
            figure.add_trace(_trace(series) | {"showlegend": show}, **cell)
            in_legend.add(series.name)
        figure.update_xaxes(_axis_layout(panel.x), **cell)
        figure.update_yaxes(_axis_layout(panel.y), **cell)
    notes = textwrap.wrap(" ".join(chart.notes), NOTE_CHARACTERS)
    top = 50 + 17 * len(notes)
    figure.update_layout(
        LAYOUT,
        title=_title_layout(chart.title, notes),
        template="plotly_white",
        height=PANEL_HEIGHT * chart.rows + top,
        margin={"l": 60, "r": 20, "t": top, "b": 90},
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container"},
    )
    return figure


def figure_without_title(panel: Panel) -> dict[str, Any]:
    """Return traces and layout of one panel for plotly.js, without title and legend."""
    layout = LAYOUT | {
        "xaxis": _axis_layout(panel.x),
        "yaxis": _axis_layout(panel.y),
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "showlegend": False,
    }
    return {"data": [_trace(series) for series in panel.series], "layout": layout}


def _title_layout(title: str, notes: Sequence[str]) -> dict[str, Any]:
    return {
        "text": escape(title),
        "subtitle": {"text": "<br>".join(map(escape, notes))},
        "x": 0,
        "xref": "paper",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 10},
    }


def _axis_layout(axis: Axis) -> dict[str, Any]:
    layout: dict[str, Any] = {
        "title": {"text": escape(axis.title)},
        "zeroline": False,
        "automargin": True,
    }
    if axis.log:
        labels = [f"{tick:g}" for tick in LOG_TICKS]
        layout |= {"type": "log", "tickvals": LOG_TICKS, "ticktext": labels}
    if axis.ticks:
        positions = [position for position, _ in axis.ticks]
        layout |= {
            "tickvals": positions,
            "ticktext": [_as_lines(label) for _, label in axis.ticks],
            "range": [positions[0] - 0.5, positions[-1] + 0.5],
        }
    return layout


def _trace(series: Series) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "bar" if series.draw == "bars" else "scatter",
        "name": escape(series.name),
        "legendgroup": series.name,
        "x": _json_numbers(series.x),
        "y": _json_numbers(series.y),
    }
    if series.hover:
        trace |= {"hovertext": [_as_lines(text) for text in series.hover], "hoverinfo": "text"}
    for key, error in (("error_x", series.x_error), ("error_y", series.y_error)):
        if error:
            trace[key] = {"array": list(error), "thickness": 1, "width": 0}
    return trace | _trace_style(series)


def _trace_style(series: Series) -> dict[str, Any]:
    colour = COLOURS[series.colour]
    if series.draw == "bars":
        return {"marker": {"color": colour}}
    if series.draw == "points":
        mark = MARKS[series.mark]
        marker = {
            "color": colour,
            "symbol": SYMBOLS.get(mark, mark),
            "size": _marker_size(series),
            "line": {"width": 0},
        }
        return {"mode": "markers", "marker": marker}
    line: dict[str, Any] = {
        "color": colour,
        "width": 1 if series.faint else 1.5,
        "shape": "hv" if series.draw == "steps" else "linear",
    }
    if series.dashed:
        line["dash"] = "dash"
    return {"mode": "lines", "line": line}


def _marker_size(series: Series) -> int:
    if MARKS[series.mark] == "star":
        return 14
    return 7 if series.faint else 9


def _as_lines(text: str) -> str:
    """Return plain text as plotly's markup, one line per line."""
    return escape(text).replace("\n", "<br>")


def _json_numbers(values: Sequence[float]) -> list[float | None]:
    """Return numbers as JSON has them: plotly.js draws null as a gap."""
    return [value if math.isfinite(value) else None for value in values]
