"""The shards of a source, and where its records are."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sweepcp.data.file_content import CHUNK_BYTES, guard_reading


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """What one process reads of a source: whole files, or a range of one file.

    The range is in bytes of the content of a text file, in row groups of a Parquet file, in rows of
    a saved data set and in shards of a hub data set.
    """

    number: int = 0
    """Position among the shards of the source."""
    paths: tuple[Path, ...] = ()
    start: int = 0
    stop: int | None = None
    """End of the range, exclusive; None for whole files."""
    held_out: bool | None = None
    """Whether all documents are held out; None if the hash of each document decides."""


class RecordLocation(NamedTuple):
    """Where a record is; as text, its file and its line (or row, or element)."""

    path: Path | str
    unit: str = ""
    """`line`, `row` or `element`; empty if the record is a whole file."""
    number: int = 0
    """Number of the record within the shard, from 0."""
    start: int = 0
    """Where the shard starts in the file: in bytes for lines, else in units."""

    def __str__(self) -> str:
        if not self.unit:
            return printable_path(self.path)
        if self.unit == "line":
            # Counting the lines before the shard takes a pass over the file, so it is left until a
            # location is printed.
            line = _lines_before(Path(self.path), self.start) + self.number + 1
            return f"{printable_path(self.path)}:{line}"
        return f"{printable_path(self.path)}: {self.unit} {self.start + self.number + 1}"


LocatedRecord = tuple[RecordLocation, Any]
"""A record is a mapping, a text, or a `RecordProblem`."""


def printable_path(path: Path | str) -> str:
    """Return a path as text that can be written; a name need not be UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


@functools.lru_cache(maxsize=64)
def _lines_before(path: Path, start: int) -> int:
    """Count the lines of a file that end before byte `start`."""
    lines = 0
    if start:
        with guard_reading(path), path.open("rb") as file:
            while (left := start - file.tell()) > 0:
                lines += file.read(min(left, CHUNK_BYTES)).count(b"\n")
    return lines
