"""Charts as plotly figures."""

import math
import textwrap
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sweepcp.report.chart import COLOURS, MARKS, Axis, Chart, Panel, Series

SYMBOLS = {"triangle": "triangle-up"}
TICKS = [digit * 10.0**power for power in range(-9, 4) for digit in (1, 2, 5)]
"""Of logarithmic axes."""
HEIGHT = 420
"""Pixels of a row of panels."""
LAYOUT = {"hovermode": "closest", "hoverlabel": {"align": "left"}, "barmode": "group"}


def plotly_figure(chart: Chart) -> go.Figure:
    """The chart with its notes, for notebooks; hovering a point shows its text, which is never read as markup."""
    drawn = make_subplots(
        rows=chart.rows, cols=chart.columns, horizontal_spacing=0.12, vertical_spacing=0.16
    )
    named: set[str] = set()
    for index, panel in enumerate(chart.panels):
        place = {"row": index // chart.columns + 1, "col": index % chart.columns + 1}
        for series in panel.series:
            drawn.add_trace(
                _trace(series) | {"showlegend": bool(series.name) and series.name not in named},
                **place,
            )
            named.add(series.name)
        drawn.update_xaxes(_axis_layout(panel.x), **place)
        drawn.update_yaxes(_axis_layout(panel.y), **place)
    notes = textwrap.wrap(" ".join(chart.notes), 130)
    title: dict[str, Any] = {
        "text": escape(chart.title),
        "subtitle": {"text": "<br>".join(map(escape, notes))},
    }
    title |= {
        "x": 0,
        "xref": "paper",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "pad": {"t": 10},
    }
    top = 50 + 17 * len(notes)
    drawn.update_layout(
        LAYOUT,
        title=title,
        template="plotly_white",
        height=HEIGHT * chart.rows + top,
        margin={"l": 60, "r": 20, "t": top, "b": 90},
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "yref": "container"},
    )
    return drawn


def figure_without_title(panel: Panel) -> dict[str, Any]:
    """One panel as the plotly.js that a page draws: traces and layout, without title and legend."""
    margin = {"l": 60, "r": 20, "t": 20, "b": 50}
    layout = LAYOUT | {
        "xaxis": _axis_layout(panel.x),
        "yaxis": _axis_layout(panel.y),
        "margin": margin,
        "showlegend": False,
    }
    return {"data": [_trace(series) for series in panel.series], "layout": layout}


def _axis_layout(axis: Axis) -> dict[str, Any]:
    content: dict[str, Any] = {
        "title": {"text": escape(axis.title)},
        "zeroline": False,
        "automargin": True,
    }
    if axis.log:
        content |= {"type": "log", "tickvals": TICKS, "ticktext": [f"{tick:g}" for tick in TICKS]}
    if axis.ticks:
        values, names = zip(*axis.ticks, strict=True)
        content |= {
            "tickvals": list(values),
            "ticktext": [escape(name).replace("\n", "<br>") for name in names],
        }
        content["range"] = [values[0] - 0.5, values[-1] + 0.5]
    return content


def _trace(series: Series) -> dict[str, Any]:
    colour = COLOURS[series.colour]
    trace: dict[str, Any] = {
        "type": "bar" if series.draw == "bars" else "scatter",
        "name": escape(series.name),
        "legendgroup": series.name,
        "x": _json_numbers(series.x),
        "y": _json_numbers(series.y),
    }
    if series.hover:
        trace |= {
            "hovertext": [escape(t).replace("\n", "<br>") for t in series.hover],
            "hoverinfo": "text",
        }
    for key, error in (("error_x", series.x_error), ("error_y", series.y_error)):
        if error:
            trace[key] = {"array": list(error), "thickness": 1, "width": 0}
    if series.draw == "bars":
        return trace | {"marker": {"color": colour}}
    if series.draw == "points":
        mark = MARKS[series.mark]
        size = 14 if mark == "star" else 7 if series.faint else 9
        marker = {
            "color": colour,
            "symbol": SYMBOLS.get(mark, mark),
            "size": size,
            "line": {"width": 0},
        }
        return trace | {"mode": "markers", "marker": marker}
    line = {
        "color": colour,
        "width": 1 if series.faint else 1.5,
        "shape": "hv" if series.draw == "steps" else "linear",
    }
    return trace | {"mode": "lines", "line": line | ({"dash": "dash"} if series.dashed else {})}


def _json_numbers(values: Any) -> list[float | None]:
    """What plotly.js takes: a gap is null."""
    return [value if math.isfinite(value) else None for value in values]
