"""Charts as plotly figures."""

import math
import textwrap
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepcp.report.chart import COLOURS, MARKS, Axis, Chart, Series

SYMBOLS = {"triangle": "triangle-up"}
HEIGHT = 420
"""Pixels of a row of panels."""


def figure(chart: Chart) -> go.Figure:
    """The chart with its notes, for notebooks; hovering a point shows its text, which is never read as markup."""
    drawn = panels(chart)
    notes = textwrap.wrap(" ".join(chart.notes), 130)
    title: dict[str, Any] = {"text": escape(chart.title), "subtitle": {"text": "<br>".join(map(escape, notes))}}
    title |= {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 10}}
    top = 50 + 17 * len(notes)
    drawn.update_layout(title=title, height=HEIGHT * chart.rows + top, margin={"t": top})
    return drawn


def panels(chart: Chart) -> go.Figure:
    """The chart's panels without title and notes."""
    drawn = make_subplots(rows=chart.rows, cols=chart.columns, horizontal_spacing=0.12, vertical_spacing=0.16)
    named: set[str] = set()
    for index, panel in enumerate(chart.panels):
        row, column = index // chart.columns + 1, index % chart.columns + 1
        for series in panel.series:
            drawn.add_trace(_trace(series, series.name not in named and bool(series.name)), row, column)
            named.add(series.name)
        drawn.update_xaxes(_axis(panel.x), row=row, col=column)
        drawn.update_yaxes(_axis(panel.y), row=row, col=column)
    drawn.update_layout(
        template="plotly_white",
        height=HEIGHT * chart.rows,
        margin={"l": 60, "r": 20, "t": 20, "b": 90},
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container"},
        hovermode="closest",
        hoverlabel={"align": "left"},
        barmode="group",
    )
    return drawn


def _axis(axis: Axis) -> dict[str, Any]:
    content: dict[str, Any] = {"title": {"text": escape(axis.title)}, "zeroline": False, "automargin": True}
    if axis.log:
        content |= {"type": "log", "dtick": "D2"}
    if axis.ticks:
        values, names = zip(*axis.ticks, strict=True)
        content |= {"tickvals": list(values), "ticktext": [escape(name) for name in names]}
    return content


def _trace(series: Series, in_legend: bool) -> go.Bar | go.Scatter:
    colour = COLOURS[series.colour]
    shared: dict[str, Any] = {
        "name": escape(series.name),
        "legendgroup": series.name,
        "showlegend": in_legend,
        "x": list(series.x),
        "y": [None if math.isnan(y) else y for y in series.y],
        "opacity": 0.7 if series.faint else 1.0,
    }
    if series.hover:
        shared |= {"hovertext": [escape(t).replace("\n", "<br>") for t in series.hover], "hoverinfo": "text"}
    if series.draw == "bars":
        return go.Bar(shared | {"marker": {"color": colour}})
    for key, error in (("error_x", series.x_error), ("error_y", series.y_error)):
        if error:
            shared[key] = {"array": list(error), "thickness": 1, "width": 0}
    if series.draw == "points":
        mark = MARKS[series.mark]
        size = 14 if mark == "star" else 7 if series.faint else 9
        marker = {"color": colour, "symbol": SYMBOLS.get(mark, mark), "size": size, "line": {"width": 0}}
        return go.Scatter(shared | {"mode": "markers", "marker": marker})
    line = {"color": colour, "width": 1.5, "shape": "hv" if series.draw == "steps" else "linear"}
    return go.Scatter(shared | {"mode": "lines", "line": line | ({"dash": "dash"} if series.dashed else {})})
