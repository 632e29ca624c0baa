"""Tables that fit the terminal: columns are dropped, and nothing that is shown is cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.util.streams import printable

UNBOUNDED = 100_000
"""Columns of output that has no width, such as a file."""
ASCII_BOX = box.Box(str(box.SIMPLE_HEAD).replace("─", "-"), ascii=True)


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
    unbounded = console.options.update(max_width=UNBOUNDED)
    ranks = sorted({column.drop for column in columns} - {0}, reverse=True)
    for lowest_dropped in (None, *ranks):
        shown = [
            i
            for i, column in enumerate(columns)
            if lowest_dropped is None or column.drop < lowest_dropped
        ]
        for wrap_names in (False, True):
            table = _make_table(console, columns, rows, shown=shown, wrap_names=wrap_names)
            if console.measure(table, options=unbounded).maximum <= console.width:
                console.print(table)
                dropped = [column.name for i, column in enumerate(columns) if i not in shown]
                _print_notes(console, note, dropped)
                return
    _print_lines(console, columns, rows)
    _print_notes(console, note, [])


def print_line(console: Console, text: str, style: str = "") -> None:
    """Print text that is wrapped between words, and never within one."""
    console.print(Text(text, style, overflow="ignore"), crop=False)


def _make_table(
    console: Console,
    columns: Sequence[Column],
    rows: Sequence[Row],
    *,
    shown: Sequence[int],
    wrap_names: bool,
) -> Table:
    table = Table(
        header_style="bold",
        box=ASCII_BOX if console.options.ascii_only else box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for i in shown:
        name = columns[i].name.replace(" ", "\n") if wrap_names else columns[i].name
        # Substitutes are made before widths are measured: they are longer than what they replace.
        header = Text(printable(name, console.encoding))
        table.add_column(header, justify="left" if columns[i].is_text else "right", no_wrap=True)
    for row in rows:
        cells = [Text(printable(row.cells[i], console.encoding)) for i in shown]
        table.add_row(*cells, style=row.style, end_section=row.ends_section)
    return table


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
