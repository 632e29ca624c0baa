"""Description of a chart by numbers and texts, independent of how it is drawn.

A chart has panels, a panel has series. `plotly_figures` and `matplotlib_figures` draw charts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Draw = Literal["points", "line", "steps", "bars"]
COLOURS = {
    "front": "#2563eb",
    "other": "#7d8590",
    "chosen": "#db2777",
    "possible": "#b45309",
    "base": "#16a34a",
    "bad": "#dc2626",
    "second": "#9333ea",
}
"""Each has a contrast of 3:1 or more against white and against the page's dark background."""
MARKS = {
    "front": "circle",
    "other": "circle",
    "chosen": "star",
    "anchor": "square",
    "base": "diamond",
    "bad": "x",
    "second": "triangle",
}


@dataclass(frozen=True)
class Series:
    """Numbers drawn in one style. `colour` and `mark` are keys of `COLOURS` and `MARKS`."""

    name: str
    """Entry in the legend; a series without a name has none."""
    x: Sequence[float]
    y: Sequence[float]
    """NaN interrupts a line."""
    draw: Draw = "points"
    colour: str = "other"
    mark: str = "other"
    hover: Sequence[str] = ()
    """Hover text of each point: lines of plain text."""
    x_error: Sequence[float] = ()
    y_error: Sequence[float] = ()
    """Standard errors, drawn to both sides."""
    dashed: bool = False
    faint: bool = False
    """Smaller points and thinner lines.

    They are opaque: a browser takes ten times as long to draw thousands of translucent points.
    """


@dataclass(frozen=True)
class Axis:
    """An axis, with its unit in the title."""

    title: str
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()
    """Position and label of each tick, 1 apart, where an axis has names instead of numbers."""


@dataclass(frozen=True)
class Panel:
    """One coordinate system."""

    x: Axis
    y: Axis
    series: Sequence[Series]


@dataclass(frozen=True)
class Chart:
    """Panels in one row, or four in two rows. `notes` explain the chart and name what it omits."""

    title: str
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def empty(self) -> bool:
        """Whether no series has a point."""
        return not any(len(series.x) for panel in self.panels for series in panel.series)

    @property
    def columns(self) -> int:
        """Number of panels per row."""
        return 2 if len(self.panels) == 4 else len(self.panels)

    @property
    def rows(self) -> int:
        """Number of rows of panels."""
        return -(-len(self.panels) // self.columns)
