"""Read the records of a source shard by shard: JSONL, Parquet, text and data sets of `datasets`."""

import functools
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sweepcp.config.source import Source
from sweepcp.data.dataset_loading import load_hub, load_saved
from sweepcp.data.problems import RecordProblem, too_long
from sweepcp.data.python_text import module_documents
from sweepcp.data.source_files import JSONL, ResolvedSource
from sweepcp.data.typed_records import (
    ROWS_PER_BATCH,
    open_parquet,
    parquet_batches,
    table_records,
)
from sweepcp.data.values import decode_utf8, parse_json
from sweepcp.errors import InvalidInput, located

SHARD_BYTES = 16 << 20
"""Approximate size of a shard, which one process reads, and which an interrupted build repeats."""
PYTHON_SHARD_BYTES = 2 << 20
"""Size of a shard of Python files, whose parsing makes them about forty times as slow to read."""
OTHER_FIELDS = 8
"""How many times as long as its document a line may be: it has other fields, and escapes."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHER_MARKS = {
    b"\xff\xfe": "UTF-16 or UTF-32",
    b"\xfe\xff": "UTF-16",
    b"\0\0\xfe\xff": "UTF-32",
}
"""How a file begins whose text is in another encoding than UTF-8."""
COPY_BYTES = 1 << 20
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True, kw_only=True)
class SourceShard:
    """What one process reads of a source: whole files, or a range of one file.

    The range is in bytes of a text file, in row groups of a Parquet file, in rows of a saved data
    set and in shards of a hub data set.
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
    """Where a record is; as text, its file and its line (or row, or paragraph)."""

    path: Path | str
    unit: str = ""
    """`line` or `row`; empty if the record is a whole file."""
    number: int = 0
    """Number of the record within the shard, from 0."""
    start: int = 0
    """Where the shard starts in the file: in bytes for lines, else in units."""

    def __str__(self) -> str:
        if not self.unit:
            return _printable(self.path)
        if self.unit == "line":
            # Counting the lines before the shard takes a pass over the file, so it is left until a
            # location is printed.
            line = _lines_before(Path(self.path), self.start) + self.number + 1
            return f"{_printable(self.path)}:{line}"
        return f"{_printable(self.path)}: {self.unit} {self.start + self.number + 1}"


LocatedRecord = tuple[RecordLocation, Any]
"""A record is a mapping, a text, or a `RecordProblem`."""


def split_into_shards(source: Source, files: ResolvedSource) -> list[SourceShard]:
    """Cut a source into shards, the held-out files first.

    The shards are a function of the files' sizes, so that an interrupted build finds the same ones
    when it resumes, on any machine.
    """
    if source.hub is not None:
        count = load_hub(source).num_shards
        return [SourceShard(number=n, start=n, stop=n + 1) for n in range(count)]
    if source.saved is not None:
        return _row_shards(source, files.paths[0])
    trained = None if source.held_out_files is None else False
    shards = [
        *_file_shards(source, files.held_out_paths, held_out=True),
        *_file_shards(source, files.paths, held_out=trained),
    ]
    return [replace(shard, number=number) for number, shard in enumerate(shards)]


def read_records(source: Source, shard: SourceShard) -> Iterator[LocatedRecord]:
    """Yield the records of a shard in order, each with its location.

    Raises:
        InvalidInput: A file is not in the format that its name gives, or is truncated or corrupt.
    """
    if source.hub is not None:
        yield from _read_hub(source, shard)
    elif source.saved is not None:
        yield from _read_saved(source, shard)
    else:
        for path in shard.paths:
            with located(path):
                yield from _read_file(source, shard, path)


def _file_shards(
    source: Source, paths: tuple[Path, ...], *, held_out: bool | None
) -> Iterator[SourceShard]:
    """Yield groups of small files, and ranges of large ones in formats that can be cut."""
    limit = PYTHON_SHARD_BYTES if source.python is not None else SHARD_BYTES
    group: list[Path] = []
    group_size = 0
    for path in paths:
        size = path.stat().st_size
        ranges = _cut_file(source, path, size) if size > limit else []
        if len(ranges) > 1:
            for start, stop in ranges:
                yield SourceShard(paths=(path,), start=start, stop=stop, held_out=held_out)
            continue
        if group and group_size + size > limit:
            yield SourceShard(paths=tuple(group), held_out=held_out)
            group, group_size = [], 0
        group.append(path)
        group_size += size
    if group:
        yield SourceShard(paths=tuple(group), held_out=held_out)


def _cut_file(source: Source, path: Path, size: int) -> list[tuple[int, int]]:
    """Cut a file into ranges; none for a format that can only be read from its start."""
    if path.suffix == ".parquet":
        with located(path):
            groups = open_parquet(path).num_row_groups
        return _cut_range(groups, step=max(1, groups * SHARD_BYTES // size))
    # Text is cut at arbitrary bytes, which needs no pass over the file: a reader takes the lines
    # that start in its range, and reads the last of them beyond its end (see `_read_lines`).
    if path.suffix == ".jsonl" or (path.suffix == ".txt" and source.unit == "line"):
        return _cut_range(size, step=SHARD_BYTES)
    return []


def _cut_range(length: int, *, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _row_shards(source: Source, folder: Path) -> list[SourceShard]:
    rows = load_saved(source, folder).num_rows
    size = sum(path.stat().st_size for path in folder.rglob("*.arrow"))
    ranges = _cut_range(rows, step=max(1, rows * SHARD_BYTES // max(1, size)))
    shards = []
    for number, (start, stop) in enumerate(ranges):
        shards.append(SourceShard(number=number, paths=(folder,), start=start, stop=stop))
    return shards


def _read_hub(source: Source, shard: SourceShard) -> Iterator[LocatedRecord]:
    assert source.hub is not None
    dataset = load_hub(source)
    rows = dataset.shard(num_shards=dataset.num_shards, index=shard.start)
    name = f"{source.hub.id}@{source.hub.revision[:8]}, shard {shard.start}"
    with located(name):
        tables = rows.with_format("arrow").iter(ROWS_PER_BATCH)
        yield from located_rows(tables, source, name)


def _read_saved(source: Source, shard: SourceShard) -> Iterator[LocatedRecord]:
    folder = shard.paths[0]
    rows = load_saved(source, folder).select(range(shard.start, shard.stop or 0))
    with located(folder):
        tables = rows.with_format("arrow").iter(ROWS_PER_BATCH)
        yield from located_rows(tables, source, folder, shard.start)


def located_rows(
    tables: Iterable[Any], source: Source, path: Path | str, start: int = 0
) -> Iterator[LocatedRecord]:
    """Yield the rows of Arrow tables; the first of them is row `start` of `path`."""
    number = 0
    for table in tables:
        for record in table_records(table, source):
            yield RecordLocation(path, "row", number, start), record
            number += 1


def _read_file(source: Source, shard: SourceShard, path: Path) -> Iterator[LocatedRecord]:
    if source.python is not None:
        for text in module_documents(source.python, path):
            yield RecordLocation(path), text
    elif path.name.endswith(JSONL):
        yield from _read_jsonl(path, shard, source)
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, shard, source)
    elif source.unit == "file":
        yield RecordLocation(path), _read_whole(path, source)
    elif source.unit == "line":
        yield from _read_text_lines(path, shard, source)
    else:
        yield from _read_paragraphs(path, shard, source)


def _read_jsonl(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    for location, line in _read_lines(path, shard, source):
        if isinstance(line, RecordProblem):
            yield location, line
        elif line.strip():
            yield location, _parse_json(line)


def _read_text_lines(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    for location, line in _read_lines(path, shard, source):
        if isinstance(line, RecordProblem):
            yield location, line
        elif line.strip():
            text = _decode(line)
            yield location, text if isinstance(text, RecordProblem) else text.rstrip("\r\n")


def _read_paragraphs(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    """Yield the runs of lines between blank lines, each with the location of its first line."""
    lines: list[str] = []
    first = RecordLocation(path)
    for location, line in _read_lines(path, shard, source):
        text = _decode(line)
        if isinstance(text, RecordProblem):
            yield location, text
        elif text.strip():
            if not lines:
                first = location
            lines.append(text)
        elif lines:
            yield first, "".join(lines).strip()
            lines = []
    if lines:
        yield first, "".join(lines).strip()


def _read_whole(path: Path, source: Source) -> str | RecordProblem:
    size = path.stat().st_size
    if size > source.max_document_bytes:
        return too_long(f"{size:,} bytes", source)
    return _decode(_without_mark(path.read_bytes()))


def _decode(content: bytes | RecordProblem) -> str | RecordProblem:
    if isinstance(content, RecordProblem):
        return content
    try:
        return decode_utf8(content)
    except InvalidInput as error:
        return RecordProblem.from_error(error, "the text")


def _without_mark(start: bytes) -> bytes:
    """Return the start of a file without its byte order mark.

    Raises:
        InvalidInput: The mark is that of another encoding.
    """
    for mark, encoding in OTHER_MARKS.items():
        if start.startswith(mark):
            raise InvalidInput(
                key="the file",
                found=f"{encoding}, by its byte order mark",
                rule="UTF-8 text",
                fix="convert the file to UTF-8",
            )
    return start.removeprefix(BYTE_ORDER_MARK)


def _parse_json(line: bytes) -> Any:
    text = _decode(line)
    if isinstance(text, RecordProblem):
        return text
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        return RecordProblem(
            key="the record",
            found=str(error),
            rule="one JSON object per line",
            fix="correct or remove the line",
        )


def _read_lines(
    path: Path, shard: SourceShard, source: Source
) -> Iterator[tuple[RecordLocation, bytes | RecordProblem]]:
    """Yield the lines that start in the shard's range; a line that is far too long is skipped."""
    limit = OTHER_FIELDS * source.max_document_bytes
    with _open_file(path) as file:
        if shard.start:
            # A line that starts before the range belongs to the shard before. Reading from the byte
            # before the range tells whether one starts exactly at the range: that byte is then the
            # end of a line, and only it is skipped.
            file.seek(shard.start - 1)
            _skip_line(file, limit)
        position = file.tell() if shard.stop is not None else 0
        first, number = position, 0
        while shard.stop is None or position < shard.stop:
            line = _read_line(file, limit)
            if not line:
                return
            position += len(line)
            location = RecordLocation(path, "line", number, first)
            if len(line) > limit:
                if not line.endswith(b"\n"):
                    position += _skip_line(file, limit)
                yield location, too_long(f"a line of over {limit:,} bytes", source)
            elif first == number == 0:
                yield location, _without_mark(line)
            else:
                yield location, line
            number += 1


def _read_line(file: BinaryIO, limit: int) -> bytes:
    """Read a line, or `limit + 1` bytes of a longer one."""
    try:
        return file.readline(limit + 1)
    except OSError as error:
        raise damaged_archive(error) from None


def _skip_line(file: BinaryIO, limit: int) -> int:
    """Read past the next end of line; return the number of bytes read."""
    skipped = 0
    while chunk := _read_line(file, limit):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped


def _open_file(path: Path) -> BinaryIO:
    if path.suffix not in COMPRESSION:
        return path.open("rb")
    stream: BinaryIO = io.BufferedReader(decompress(path, path.open("rb")))
    return stream


def decompress(path: Path, file: BinaryIO) -> Any:
    """Return a stream of the content of a compressed file, which may raise `OSError`."""
    import pyarrow

    return pyarrow.input_stream(file, compression=COMPRESSION[path.suffix])


def damaged_archive(error: OSError) -> InvalidInput:
    """Return what to raise if a file cannot be decompressed."""
    rule = "a compressed file that can be read to its end"
    fix = "fetch or compress the file again"
    return InvalidInput(key="the file", found=str(error), rule=rule, fix=fix)


def line_start(path: Path, position: int) -> int:
    """Return where the first line at or after a byte of a text file begins."""
    with path.open("rb") as file:
        if position:
            file.seek(position - 1)
            _skip_line(file, COPY_BYTES)
        return file.tell()


def _read_parquet(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    file = open_parquet(path)
    stop = file.num_row_groups if shard.stop is None else shard.stop
    rows_before = sum(file.metadata.row_group(n).num_rows for n in range(shard.start))
    batches = parquet_batches(file, source, range(shard.start, stop))
    yield from located_rows(batches, source, path, rows_before)


def _printable(path: Path | str) -> str:
    """Return a path as text that can be written; a name need not be UTF-8."""
    return str(path).encode("utf-8", "backslashreplace").decode()


@functools.lru_cache(maxsize=64)
def _lines_before(path: Path, start: int) -> int:
    """Count the lines of a file that end before byte `start`."""
    lines = 0
    if start:
        with path.open("rb") as file:
            while (left := start - file.tell()) > 0:
                lines += file.read(min(left, COPY_BYTES)).count(b"\n")
    return lines
