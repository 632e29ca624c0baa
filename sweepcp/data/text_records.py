"""Records of formats of text: JSONL, JSON arrays, CSV, TSV and plain text."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sweepcp.config.source import Source
from sweepcp.data.columns import needed_columns
from sweepcp.data.file_content import open_content, read_line, skip_line
from sweepcp.data.formats import DELIMITERS, file_format
from sweepcp.data.json_array import is_array, split_array
from sweepcp.data.problems import RecordProblem, too_long
from sweepcp.data.shards import LocatedRecord, RecordLocation, SourceShard
from sweepcp.data.values import decode_utf8, describe_kind, parse_written_json
from sweepcp.errors import InvalidInput

OTHER_FIELDS = 8
"""How many times as long as its document a record may be: it has other fields, and escapes."""


def read_text_file(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    """Yield the records of a file of text that start in a shard's range of its content.

    Raises:
        InvalidInput: The file is in another format, or what follows cannot be told.
        OSError: The file cannot be read to its end.
    """
    kind = file_format(path).kind
    if kind == ".txt":
        reader = {"line": _read_text_lines, "paragraph": _read_paragraphs, "file": _read_whole}[
            source.unit
        ]
    elif kind in DELIMITERS:
        reader = _read_delimited
    elif is_json_array(path):
        reader = _read_array
    else:
        reader = _read_jsonl
    yield from reader(path, shard, source)


def is_json_array(path: Path) -> bool:
    """Return whether a file holds one JSON array: by its content, for `.json` is JSONL as often."""
    if file_format(path).kind != ".json":
        return False
    with open_content(path) as file:
        return is_array(file)


def can_be_cut(path: Path, source: Source) -> bool:
    """Return whether the records of a file can be found from the middle of it on."""
    kind, compression = file_format(path)
    if compression is not None:
        return False
    if kind == ".txt":
        return source.unit == "line"
    return kind == ".jsonl" or (kind == ".json" and not is_json_array(path))


def _record_limit(source: Source) -> int:
    return OTHER_FIELDS * source.max_document_bytes


def _read_jsonl(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    for location, line in _read_lines(path, shard, source):
        if isinstance(line, RecordProblem):
            yield location, line
        elif line.strip():
            yield location, _parse_json(line)


def _read_array(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    limit = _record_limit(source)
    with open_content(path) as file:
        for number, (start, content) in enumerate(split_array(file, limit)):
            if shard.stop is not None and start >= shard.stop:
                return
            location = RecordLocation(path, "element", number)
            if content is None:
                yield location, too_long(f"an element of over {limit:,} bytes", source)
            else:
                yield location, _parse_json(content)


def _parse_json(content: bytes) -> dict[str, Any] | RecordProblem:
    text = _decode(content)
    if isinstance(text, RecordProblem):
        return text
    try:
        value = parse_written_json(text)
    except (ValueError, RecursionError) as error:
        return _no_object(str(error))
    return value if isinstance(value, dict) else _no_object(describe_kind(value))


def _no_object(found: str) -> RecordProblem:
    return RecordProblem(
        key="the record",
        found=found,
        rule="one JSON object per line, or per element of an array",
        fix="correct or remove it",
    )


def _read_delimited(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    """Yield the rows after the header, with the cells of the columns that are needed."""
    with open_content(path) as file:
        rows = _Rows(file, path, source)
        header: list[str] = []
        needed: list[str] = []
        while (row := rows.next_row()) is not None:
            location, cells = row
            if shard.stop is not None and rows.start >= shard.stop:
                return
            if isinstance(cells, RecordProblem):
                if not header:
                    raise InvalidInput(**cells._asdict()).within(location)
                yield location, cells
            elif not header:
                header = cells
                needed = needed_columns(source, header)
            elif len(cells) != len(header):
                yield location, _ragged(cells, header)
            else:
                values = dict(zip(header, cells, strict=True))
                yield location, {name: values[name] for name in needed}


def _ragged(cells: list[str], header: list[str]) -> RecordProblem:
    return RecordProblem(
        key="the row",
        found=f"{len(cells)} cells",
        rule=f"as many cells as the header has, {len(header)}",
        fix="correct the row; a cell with a delimiter, quote or end of line in it is quoted",
    )


class _Rows:
    """The rows of a CSV or TSV file, whose cells may hold ends of lines."""

    def __init__(self, file: BinaryIO, path: Path, source: Source) -> None:
        self._file, self._path = file, path
        self._limit = _record_limit(source)
        # The limit of the module holds for all readers, and is far below that of documents.
        csv.field_size_limit(max(csv.field_size_limit(), self._limit))
        delimiter = DELIMITERS[file_format(path).kind]
        self._reader = csv.reader(self._lines(), delimiter=delimiter, strict=True)
        self.start = 0
        """Where the current row begins in the content."""
        self._location = RecordLocation(path)
        self._position = 0
        self._has_ended = False
        self._problem: RecordProblem | None = None

    def next_row(self) -> tuple[RecordLocation, list[str] | RecordProblem] | None:
        """Return the next row that is not blank, or what is wrong with it; None after the last.

        Raises:
            InvalidInput: A quoted cell does not end.
        """
        while True:
            location = RecordLocation(self._path, "line", self._reader.line_num)
            self.start, self._location, self._problem = self._position, location, None
            try:
                cells = next(self._reader, None)
            except csv.Error as error:
                if self._has_ended:
                    raise self._open_quote() from None
                return location, self._problem or _quoting(error)
            if cells is None:
                return None
            if self._problem is not None:
                return location, self._problem
            if any(map(str.strip, cells)) or len(cells) > 1:
                return location, cells

    def _lines(self) -> Iterator[str]:
        while True:
            limit = self._limit - (self._position - self.start)
            line = read_line(self._file, limit)
            if not line:
                self._has_ended = True
                return
            self._position += len(line)
            if len(line) > limit:
                raise self._open_quote()
            text = _decode(line)
            if isinstance(text, RecordProblem):
                self._problem = text
                text = line.decode("utf-8", "replace")
            yield text

    def _open_quote(self) -> InvalidInput:
        return InvalidInput(
            file=self._location,
            key="the row",
            found="a row without an end",
            rule=f"quotes come in pairs, and a row has at most {self._limit:,} bytes",
            fix="close the quoted cell, or raise max_document_bytes",
        )


def _quoting(error: csv.Error) -> RecordProblem:
    return RecordProblem(
        key="the row",
        found=str(error),
        rule='quotes are around a whole cell, and doubled ("") inside of it',
        fix="correct the row",
    )


def _read_text_lines(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    for location, line in _read_lines(path, shard, source):
        if isinstance(line, RecordProblem):
            yield location, line
        elif line.strip():
            text = _decode(line)
            yield location, text if isinstance(text, RecordProblem) else text.rstrip("\r\n")


def _read_paragraphs(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    """Yield the runs of lines between blank lines, each with the location of its first line.

    A run with a line that cannot be used is a bad record as a whole.
    """
    limit = source.max_document_bytes
    lines: list[str] = []
    first = RecordLocation(path)
    problem: RecordProblem | None = None
    size = 0
    for location, line in _read_lines(path, shard, source):
        text = _decode(line)
        if isinstance(text, str) and not text.strip():
            if lines or problem:
                yield first, problem or "".join(lines).strip()
            lines, problem, size = [], None, 0
            continue
        if not (lines or problem):
            first = location
        if isinstance(text, RecordProblem):
            problem = problem or text
        else:
            size += len(text)
            lines.append(text)
        if size > limit:
            problem = problem or too_long(f"a paragraph of over {limit:,} bytes", source)
        if problem:
            lines.clear()
    if lines or problem:
        yield first, problem or "".join(lines).strip()


def _read_whole(path: Path, _: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    limit = source.max_document_bytes
    with open_content(path) as file:
        content = file.read(limit + 1)
    text = _decode(content) if len(content) <= limit else too_long(f"over {limit:,} bytes", source)
    yield RecordLocation(path), text


def _read_lines(
    path: Path, shard: SourceShard, source: Source
) -> Iterator[tuple[RecordLocation, bytes | RecordProblem]]:
    """Yield the lines that start in the shard's range; a line that is far too long is skipped."""
    limit = _record_limit(source)
    with open_content(path) as file:
        if shard.start:
            # A line that starts before the range belongs to the shard before. Reading from the byte
            # before the range tells whether one starts exactly at the range: that byte is then the
            # end of a line, and only it is skipped.
            file.seek(shard.start - 1)
            skip_line(file, limit)
        position = file.tell() if shard.stop is not None else 0
        first, number = position, 0
        while shard.stop is None or position < shard.stop:
            line = read_line(file, limit)
            if not line:
                return
            position += len(line)
            location = RecordLocation(path, "line", number, first)
            if len(line) > limit:
                if not line.endswith(b"\n"):
                    position += skip_line(file, limit)
                yield location, too_long(f"a line of over {limit:,} bytes", source)
            else:
                yield location, line
            number += 1


def _decode(content: bytes | RecordProblem) -> str | RecordProblem:
    if isinstance(content, RecordProblem):
        return content
    try:
        return decode_utf8(content)
    except InvalidInput as error:
        return RecordProblem.from_error(error, "the text")
