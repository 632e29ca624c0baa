"""What a chart shows, without how it is drawn: panels of series of numbers. Drawn by `interactive` and `image`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Draw = Literal["points", "line", "steps", "bars"]
COLOURS = {
    "front": "#2563eb",
    "other": "#7d8590",
    "chosen": "#db2777",
    "maybe": "#b45309",
    "base": "#16a34a",
    "bad": "#dc2626",
    "second": "#9333ea",
}
"""Each has a contrast of 3:1 and more against white and against the page's dark background."""
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
    """Numbers that are drawn alike. `colour` and `mark` are keys of `COLOURS` and `MARKS`."""

    name: str
    """In the legend; series without one are not in it."""
    x: Sequence[float]
    y: Sequence[float]
    """NaN breaks a line."""
    draw: Draw = "points"
    colour: str = "other"
    mark: str = "other"
    hover: Sequence[str] = ()
    """What each point says, lines of plain text."""
    x_error: Sequence[float] = ()
    y_error: Sequence[float] = ()
    """Standard errors; drawn to both sides."""
    dashed: bool = False
    faint: bool = False
    """Smaller points, thinner lines. Not translucent: a browser takes tenfold the time to draw thousands of those."""


@dataclass(frozen=True)
class Axis:
    """An axis, with its unit in the title."""

    title: str
    log: bool = False
    ticks: Sequence[tuple[float, str]] = ()
    """Where there are names instead of numbers, one apart."""


@dataclass(frozen=True)
class Panel:
    """One coordinate system."""

    x: Axis
    y: Axis
    series: Sequence[Series]


@dataclass(frozen=True)
class Chart:
    """Panels side by side, four in rows of two; `notes` say how to read it and what it leaves out."""

    title: str
    panels: Sequence[Panel]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def empty(self) -> bool:
        return not any(len(series.x) for panel in self.panels for series in panel.series)

    @property
    def columns(self) -> int:
        return 2 if len(self.panels) == 4 else len(self.panels)

    @property
    def rows(self) -> int:
        return -(-len(self.panels) // self.columns)
