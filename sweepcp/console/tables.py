"""Tables that fit the terminal: columns are dropped, and nothing that is shown is cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text

from sweepcp.util.streams import printable

UNBOUNDED = 100_000
"""Columns of output that has no width, such as a file."""
GAP = "  "
"""Between the columns of a table."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table."""

    name: str
    is_text: bool = False
    """Text is aligned to the left, numbers to the right."""
    drop: int = 0
    """Where the terminal is too narrow, columns of the highest number are dropped first; those of 0
    are always shown."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table, with a cell for each column."""

    cells: Sequence[str]
    style: str = ""
    ends_section: bool = False
    """Whether there is a gap below."""


def print_table(
    console: Console,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    note: str = "",
) -> None:
    """Print a table with the columns for which the terminal has room, else a line per cell.

    Columns are dropped by their `drop`, and named below the table. If those that are always shown
    have no room, either, all cells are printed one below the other.

    Args:
        console: Where to print.
        title: A line above.
        columns: All columns, from left to right.
        rows: All rows.
        note: A line below; none if empty.
    """
    print_line(console, f"\n{title}", "italic")
    # Substitutes are made before widths are measured: they are longer than what they replace.
    cells = [[printable(cell, console.encoding) for cell in row.cells] for row in rows]
    names = [printable(column.name, console.encoding) for column in columns]
    ranks = sorted({column.drop for column in columns} - {0}, reverse=True)
    for lowest_dropped in (None, *ranks):
        shown = [
            i
            for i, column in enumerate(columns)
            if lowest_dropped is None or column.drop < lowest_dropped
        ]
        for header in (names, _wrapped_names(names, shown)):
            widths = {i: _column_width([header[i], *(row[i] for row in cells)]) for i in shown}
            if sum(widths.values()) + len(GAP) * (len(shown) - 1) <= console.width:
                _print_rows(console, columns, rows, [header, *cells], widths)
                dropped = [column.name for i, column in enumerate(columns) if i not in shown]
                _print_notes(console, note, dropped)
                return
    _print_lines(console, columns, rows)
    _print_notes(console, note, [])


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text that is wrapped between words, and never within one."""
    console.print(Text(text, style, overflow="ignore"), crop=False)


def _wrapped_names(names: Sequence[str], shown: Sequence[int]) -> list[str]:
    """Return names with a line per word. Those of fewer words begin with empty lines."""
    height = max((names[i].count(" ") for i in shown), default=0)
    return ["\n" * (height - name.count(" ")) + name.replace(" ", "\n") for name in names]


def _column_width(cells: Sequence[str]) -> int:
    """Return the width of a column in characters of the terminal: that of its longest line."""
    return max(1, *(cell_len(line) for cell in cells for line in cell.split("\n")))


def _print_rows(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Row],
    cells: Sequence[Sequence[str]],
    widths: Mapping[int, int],
) -> None:
    """Print the rows of a table.

    Tables of Rich do the same, and take a millisecond per row.

    Args:
        console: Where to print.
        columns: All columns.
        rows: All rows, for their styles.
        cells: The header and the cells of all rows, as the console can print them.
        widths: The columns to print → their widths.
    """
    width = sum(widths.values()) + len(GAP) * (len(widths) - 1)
    lines = [(line, "bold") for line in _row_lines(columns, cells[0], widths)]
    lines.append((("-" if console.options.ascii_only else "─") * width, ""))
    for number, row in enumerate(rows, start=1):
        lines += [(line, row.style) for line in _row_lines(columns, cells[number], widths)]
        if row.ends_section and number < len(rows):
            lines.append((" " * width, ""))
    styles = {style: console.get_style(style) if style else None for _, style in lines}
    segments = [Segment(line, styles[style]) for line, style in lines]
    console.print(Segments(segments, new_lines=True), crop=False, end="")


def _row_lines(
    columns: Sequence[Column], cells: Sequence[str], widths: Mapping[int, int]
) -> list[str]:
    """Return the lines of a row: one, or as many as its highest cell has."""
    stacks = [cells[i].split("\n") for i in widths]
    lines = []
    for texts in zip_longest(*stacks, fillvalue=""):
        padded = []
        for text, (i, width) in zip(texts, widths.items(), strict=True):
            padding = " " * (width - cell_len(text))
            padded.append(text + padding if columns[i].is_text else padding + text)
        lines.append(GAP.join(padded))
    return lines


def _print_lines(console: Console, columns: Sequence[Column], rows: Sequence[Row]) -> None:
    for row in rows:
        for column, cell in zip(columns, row.cells, strict=True):
            line = f"{column.name}: {cell}" if column.name else cell
            if len(line) > console.width:
                line = line.replace(": ", ":\n  ", 1)
            if cell:
                console.print(Text(line, row.style), soft_wrap=True)
        console.print()


def _print_notes(console: Console, note: str, dropped: Sequence[str]) -> None:
    if note:
        print_line(console, note, "dim")
    if dropped:
        line = f"without columns for which the terminal is too narrow: {', '.join(dropped)}"
        print_line(console, line, "dim")
