"""Charts as matplotlib figures: PNG, SVG or PDF without a browser."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sweepcp.errors import InvalidInput
from sweepcp.report.chart import COLOURS, MARKS, Axis, Chart, Series

SYMBOLS = {"circle": "o", "star": "*", "square": "s", "diamond": "D", "x": "X", "triangle": "^"}
SUFFIXES = (".png", ".svg", ".pdf")


def matplotlib_figure(chart: Chart) -> Figure:
    """The chart for `savefig`; independent of pyplot and of any display."""
    width = 4.2 * chart.columns + 3.2
    figure = Figure(figsize=(width, 4.4 * chart.rows), layout="constrained")
    notes = textwrap.wrap(" ".join(chart.notes), int(13 * width))
    figure.suptitle(
        "\n".join(map(_escape_mathtext, [chart.title, *notes])), x=0.01, ha="left", fontsize=9
    )
    grid = figure.subplots(chart.rows, chart.columns, squeeze=False).flatten()
    for axes in grid[len(chart.panels) :]:
        axes.set_axis_off()
    named: dict[str, Any] = {}
    for axes, panel in zip(grid, chart.panels, strict=False):
        bars = sum(s.draw == "bars" for s in panel.series)
        for index, series in enumerate(panel.series):
            handle = _draw_series(axes, series, index, bars)
            if series.name:
                named.setdefault(series.name, handle)
        _draw_axis(axes, panel.x, "x")
        _draw_axis(axes, panel.y, "y")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if named:
        names = [_escape_mathtext(name) for name in named]
        figure.legend(
            list(named.values()),
            names,
            loc="outside lower left",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
    return figure


def save_image(chart: Chart, path: Path) -> None:
    """Write the chart as the file's ending says; `BadInput` for another ending, or a file that cannot be written."""
    if path.suffix not in SUFFIXES:
        raise InvalidInput(
            file=path,
            key="the image",
            found=path.suffix,
            rule=f"one of {', '.join(SUFFIXES)}",
            fix="change the file's ending",
        )
    still = {"Date": None} if path.suffix == ".svg" else None  # the same run gives the same file
    with mpl.rc_context({"svg.hashsalt": "sweepcp", "svg.fonttype": "path"}):
        try:
            matplotlib_figure(chart).savefig(path, dpi=160, metadata=still)
        except OSError as error:
            raise InvalidInput(
                file=path,
                key="the image",
                found=error.strerror,
                rule="a file that can be written",
                fix="check its folder",
            ) from None


def _draw_series(axes: Axes, series: Series, index: int, bars: int) -> Any:
    colour = COLOURS[series.colour]
    if series.draw == "bars":
        width = 0.8 / bars
        return axes.bar(
            [x + (index - (bars - 1) / 2) * width for x in series.x], series.y, width, color=colour
        )
    if series.draw == "points":
        mark = SYMBOLS[MARKS[series.mark]]
        size = 11 if mark == "*" else 4 if series.faint else 6
        return axes.errorbar(
            series.x,
            series.y,
            series.y_error or None,
            series.x_error or None,
            fmt=mark,
            markersize=size,
            markeredgewidth=0,
            elinewidth=0.8,
            color=colour,
        )
    style = "steps-post" if series.draw == "steps" else "default"
    dash = "--" if series.dashed else "-"
    return axes.plot(
        series.x,
        series.y,
        dash,
        drawstyle=style,
        color=colour,
        linewidth=0.8 if series.faint else 1.2,
    )[0]


def _draw_axis(axes: Axes, axis: Axis, which: str) -> None:
    own = axes.xaxis if which == "x" else axes.yaxis
    own.set_label_text(_escape_mathtext(axis.title))
    if axis.log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        own.set_major_locator(LogLocator(subs=(1, 2, 5)))
        own.set_major_formatter("{x:g}")
        own.set_minor_formatter(NullFormatter())
    if axis.ticks:
        own.set_ticks(
            [value for value, _ in axis.ticks], [_escape_mathtext(name) for _, name in axis.ticks]
        )
        (axes.set_xlim if which == "x" else axes.set_ylim)(
            axis.ticks[0][0] - 0.5, axis.ticks[-1][0] + 0.5
        )


def _escape_mathtext(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
