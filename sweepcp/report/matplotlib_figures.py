"""Charts as matplotlib figures, to be saved as PNG, SVG or PDF without a browser."""

import textwrap
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from sweepcp.errors import InvalidInput
from sweepcp.report.chart import COLOURS, MARKS, Axis, Chart, Panel, Series

SYMBOLS = {"circle": "o", "star": "*", "square": "s", "diamond": "D", "x": "X", "triangle": "^"}
SUFFIXES = (".png", ".svg", ".pdf")
CHARACTERS_PER_INCH = 13
"""Of the notes, at their font size."""
BAR_WIDTH = 0.8
"""Of all bars at one tick together; ticks are 1 apart."""


def matplotlib_figure(chart: Chart) -> Figure:
    """Return the chart as a figure for `savefig`, independent of pyplot and of any display."""
    width = 4.2 * chart.columns + 3.2
    figure = Figure(figsize=(width, 4.4 * chart.rows), layout="constrained")
    notes = textwrap.wrap(" ".join(chart.notes), int(CHARACTERS_PER_INCH * width))
    title = "\n".join(map(_escape_mathtext, [chart.title, *notes]))
    figure.suptitle(title, x=0.01, ha="left", fontsize=9)
    grid = figure.subplots(chart.rows, chart.columns, squeeze=False).flatten()
    for axes in grid[len(chart.panels) :]:
        axes.set_axis_off()
    legend: dict[str, Any] = {}
    for axes, panel in zip(grid, chart.panels, strict=False):
        for name, handle in _draw_panel(axes, panel):
            legend.setdefault(name, handle)
    if legend:
        figure.legend(
            list(legend.values()),
            [_escape_mathtext(name) for name in legend],
            loc="outside lower left",
            ncols=4,
            frameon=False,
            fontsize=9,
        )
    return figure


def save_image(chart: Chart, path: Path) -> None:
    """Write the chart in the format given by the file extension.

    Raises:
        InvalidInput: The extension is not one of `SUFFIXES`, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidInput(
            file=path,
            key="the image",
            found=path.suffix,
            rule=f"one of {', '.join(SUFFIXES)}",
            fix="change the file extension",
        )
    # Without a date and with a fixed salt for the element ids, a run always gives the same file.
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with mpl.rc_context({"svg.hashsalt": "sweepcp", "svg.fonttype": "path"}):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            matplotlib_figure(chart).savefig(path, dpi=160, metadata=metadata)
        except OSError as error:
            raise InvalidInput(
                file=path,
                key="the image",
                found=error.strerror,
                rule="a file that can be written",
                fix="name another file",
            ) from None


def _draw_panel(axes: Axes, panel: Panel) -> list[tuple[str, Any]]:
    """Draw a panel and return the names and handles of its legend."""
    legend = []
    bar_groups = sum(series.draw == "bars" for series in panel.series)
    for index, series in enumerate(panel.series):
        handle = _draw_series(axes, series, index=index, bar_groups=bar_groups)
        if series.name:
            legend.append((series.name, handle))
    _draw_axis(axes, panel.x, "x")
    _draw_axis(axes, panel.y, "y")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return legend


def _draw_series(axes: Axes, series: Series, *, index: int, bar_groups: int) -> Any:
    """Draw a series and return its handle.

    Args:
        axes: Where to draw.
        series: What to draw.
        index: The place of a series of bars among the bars at each tick.
        bar_groups: Number of series of bars in the panel.
    """
    colour = COLOURS[series.colour]
    if series.draw == "bars":
        width = BAR_WIDTH / bar_groups
        centres = [x + (index - (bar_groups - 1) / 2) * width for x in series.x]
        return axes.bar(centres, series.y, width, color=colour)
    if series.draw == "points":
        return axes.errorbar(
            series.x,
            series.y,
            series.y_error or None,
            series.x_error or None,
            fmt=SYMBOLS[MARKS[series.mark]],
            markersize=_marker_size(series),
            markeredgewidth=0,
            elinewidth=0.8,
            color=colour,
        )
    return axes.plot(
        series.x,
        series.y,
        "--" if series.dashed else "-",
        drawstyle="steps-post" if series.draw == "steps" else "default",
        color=colour,
        linewidth=0.8 if series.faint else 1.2,
    )[0]


def _marker_size(series: Series) -> int:
    if MARKS[series.mark] == "star":
        return 11
    return 4 if series.faint else 6


def _draw_axis(axes: Axes, axis: Axis, which: Literal["x", "y"]) -> None:
    drawn = axes.xaxis if which == "x" else axes.yaxis
    set_scale = axes.set_xscale if which == "x" else axes.set_yscale
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    drawn.set_label_text(_escape_mathtext(axis.title))
    if axis.log:
        set_scale("log")
        drawn.set_major_locator(LogLocator(subs=(1, 2, 5)))
        drawn.set_major_formatter("{x:g}")
        drawn.set_minor_formatter(NullFormatter())
    if axis.ticks:
        positions = [position for position, _ in axis.ticks]
        drawn.set_ticks(positions, [_escape_mathtext(label) for _, label in axis.ticks])
        set_limits(positions[0] - 0.5, positions[-1] + 0.5)


def _escape_mathtext(text: str) -> str:
    """Return text that matplotlib does not parse as a formula."""
    return text.replace("$", r"\$")
