"""From files to records, a part at a time: JSONL, Parquet, text, data sets on disk and of the hub."""

import functools
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from sweepcp.config.source import Source
from sweepcp.config.template import template_keys
from sweepcp.data.python_text import module_documents
from sweepcp.data.source_files import JSONL, ResolvedSource
from sweepcp.errors import InvalidInput

SHARD_BYTES = 16 << 20
"""A part of a source holds about so much: it is read by one process, and is what a killed build has to do again."""
PYTHON_SHARD_BYTES = 2 << 20
"""Parsing makes Python files forty times as slow to read."""
OTHER_FIELDS = 8
"""A line may be so many times as long as its document may be: it has other fields, and escapes."""


@dataclass(frozen=True)
class SourceShard:
    """What one process reads of a source: whole files, or from `start` to `stop` in one (bytes, row groups, rows)."""

    number: int
    paths: tuple[Path, ...]
    start: int = 0
    stop: int | None = None
    held_out: bool | None = None
    """Which side all its documents are on, where files decide."""


class RecordLocation(NamedTuple):
    """Where a document stands; as text, its file and line (or row, or paragraph)."""

    path: Path | str
    unit: str = ""
    number: int = 0
    """From 0, within the part."""
    start: int = 0
    """Bytes of the file, or units of it, before the part."""

    def __str__(self) -> str:
        if self.unit == "line":
            return f"{self.path}:{_lines_before(Path(self.path), self.start) + self.number + 1}"
        return (
            f"{self.path}: {self.unit} {self.start + self.number + 1}"
            if self.unit
            else str(self.path)
        )


class RecordProblem(NamedTuple):
    """Why a record cannot be used, and what its owner can do."""

    key: str
    found: str
    rule: str
    fix: str


def split_into_shards(source: Source, found: ResolvedSource) -> list[SourceShard]:
    """Cut a source into parts, the held-out files first; the same parts on every machine."""
    if source.hub is not None:
        shards = _load_hub(source).num_shards
        return [SourceShard(n, (), n, n + 1) for n in range(shards)]
    if source.saved is not None:
        return _row_shards(
            found.paths[0], _load_saved(source, found.paths[0]).num_rows, _disk_size(found.paths[0])
        )
    side = None if source.held_out_files is None else False
    cut = [
        *_shards_of_files(source, found.held_out, True),
        *_shards_of_files(source, found.paths, side),
    ]
    return [SourceShard(n, p.paths, p.start, p.stop, p.held_out) for n, p in enumerate(cut)]


def _shards_of_files(
    source: Source, paths: tuple[Path, ...], held_out: bool | None
) -> Iterator[SourceShard]:
    """Small files together, large ones in pieces; a compressed one cannot be cut."""
    together: list[Path] = []
    size, room = 0, PYTHON_SHARD_BYTES if source.python is not None else SHARD_BYTES
    for path in paths:
        length = path.stat().st_size
        pieces = [(0, None)] if length <= room else _split_file(source, path, length)
        if len(pieces) > 1:
            yield from (SourceShard(0, (path,), start, stop, held_out) for start, stop in pieces)
            continue
        if together and size + length > room:
            yield SourceShard(0, tuple(together), held_out=held_out)
            together, size = [], 0
        together.append(path)
        size += length
    if together:
        yield SourceShard(0, tuple(together), held_out=held_out)


def _split_file(source: Source, path: Path, length: int) -> list[tuple[int, int | None]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        groups = _open_parquet(path, pyarrow.parquet.ParquetFile).num_row_groups
        step = max(1, groups * SHARD_BYTES // length)
        return [(start, min(start + step, groups)) for start in range(0, groups, step)]
    if path.suffix == ".jsonl" or (path.suffix == ".txt" and source.unit == "line"):
        return [
            (start, min(start + SHARD_BYTES, length)) for start in range(0, length, SHARD_BYTES)
        ]
    return [(0, None)]


def _row_shards(path: Path, rows: int, size: int) -> list[SourceShard]:
    step = max(1, rows * SHARD_BYTES // max(1, size))
    return [
        SourceShard(n, (path,), start, min(start + step, rows))
        for n, start in enumerate(range(0, rows, step))
    ]


def _disk_size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.arrow"))


def too_long(found: str, source: Source) -> RecordProblem:
    """A document, or a line, over the source's `max_document_bytes`."""
    rule = f"a document has at most max_document_bytes, {source.max_document_bytes:,}"
    return RecordProblem(
        "the text", found, rule, "cut it into documents (`unit: paragraph` for .txt), or raise it"
    )


def read_records(source: Source, part: SourceShard) -> Iterator[tuple[RecordLocation, Any]]:
    """The records of a part as they stand: a mapping, a text, or a problem."""
    if source.hub is not None:
        shard = _load_hub(source).shard(num_shards=_load_hub(source).num_shards, index=part.start)
        name = f"{source.hub.id}@{source.hub.revision[:8]}, shard {part.start}"
        yield from ((RecordLocation(name, "row", n), row) for n, row in enumerate(shard))
    elif source.saved is not None:
        rows = _load_saved(source, part.paths[0]).select(range(part.start, part.stop or 0))
        yield from (
            (RecordLocation(part.paths[0], "row", n, part.start), row) for n, row in enumerate(rows)
        )
    else:
        for path in part.paths:
            yield from _file_records(source, part, path)


def _file_records(
    source: Source, part: SourceShard, path: Path
) -> Iterator[tuple[RecordLocation, Any]]:
    if source.python is not None:
        yield from ((RecordLocation(path), text) for text in module_documents(source.python, path))
    elif path.name.endswith(JSONL):
        for place, line in _read_lines(path, part, source):
            if isinstance(line, RecordProblem) or line.strip():
                yield place, _parse_json(line) if isinstance(line, bytes) else line
    elif path.suffix == ".parquet":
        yield from _read_parquet(path, part, source)
    elif source.unit == "file":
        yield RecordLocation(path), _decode(_read_whole(path, source))
    elif source.unit == "line":
        for place, line in _read_lines(path, part, source):
            if isinstance(line, RecordProblem) or line.strip():
                text = _decode(line)
                yield place, text.rstrip("\r\n") if isinstance(text, str) else text
    else:
        yield from _read_paragraphs(path, part, source)


def _read_paragraphs(
    path: Path, part: SourceShard, source: Source
) -> Iterator[tuple[RecordLocation, Any]]:
    """Lines between empty lines, each paragraph at its first line."""
    begun: tuple[RecordLocation, list[str]] | None = None
    for place, line in _read_lines(path, part, source):
        text = _decode(line)
        if isinstance(text, RecordProblem):
            yield place, text
        elif text.strip():
            begun = begun or (place, [])
            begun[1].append(text)
        elif begun:
            yield begun[0], "".join(begun[1]).strip()
            begun = None
    if begun:
        yield begun[0], "".join(begun[1]).strip()


def _read_whole(path: Path, source: Source) -> bytes | RecordProblem:
    size = path.stat().st_size
    return (
        path.read_bytes()
        if size <= source.max_document_bytes
        else too_long(f"{size:,} bytes", source)
    )


def _decode(content: bytes | RecordProblem) -> str | RecordProblem:
    if isinstance(content, RecordProblem):
        return content
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        return RecordProblem("the text", str(error), "text is UTF-8", "convert the file")


def _parse_json(line: bytes) -> Any:
    text = _decode(line)
    if isinstance(text, RecordProblem):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return RecordProblem(
            "the record", str(error), "one JSON object a line", "mend or remove the line"
        )


def _read_lines(
    path: Path, part: SourceShard, source: Source
) -> Iterator[tuple[RecordLocation, bytes | RecordProblem]]:
    """The lines that begin in the part; one that is far too long is passed over unread."""
    longest = OTHER_FIELDS * source.max_document_bytes
    with _open_file(path) as file:
        if part.start:
            file.seek(part.start - 1)
            while (rest := file.readline(longest)) and not rest.endswith(b"\n"):
                pass
        position = file.tell() if part.stop is not None else 0
        begin, index = position, -1
        while part.stop is None or position < part.stop:
            line = _readline(file, longest, path)
            if not line:
                return
            index += 1
            position += len(line)
            place = RecordLocation(path, "line", index, begin)
            if len(line) > longest:
                while not line.endswith(b"\n") and (line := _readline(file, longest, path)):
                    position += len(line)
                yield place, too_long(f"a line of over {longest:,} bytes", source)
            else:
                yield place, line.removeprefix(b"\xef\xbb\xbf") if begin == index == 0 else line


def _readline(file: BinaryIO, longest: int, path: Path) -> bytes:
    try:
        return file.readline(longest + 1)
    except OSError as error:
        rule = "a compressed file that can be read to its end"
        raise InvalidInput(
            file=path, key="the file", found=str(error), rule=rule, fix="fetch or compress it anew"
        ) from None


def _open_file(path: Path) -> BinaryIO:
    if path.suffix not in (".gz", ".zst"):
        return path.open("rb")
    import pyarrow

    codec = "gzip" if path.suffix == ".gz" else "zstd"
    stream: BinaryIO = io.BufferedReader(pyarrow.input_stream(str(path), compression=codec))
    return stream


def _read_parquet(
    path: Path, part: SourceShard, source: Source
) -> Iterator[tuple[RecordLocation, Any]]:
    import pyarrow.parquet

    file = _open_parquet(path, pyarrow.parquet.ParquetFile)
    keys = (
        {key.split(".")[0] for key in template_keys(source.template)}
        if source.template
        else {source.field}
    )
    columns = [name for name in file.schema_arrow.names if name in keys]
    if not columns:
        have = ", ".join(file.schema_arrow.names)
        raise InvalidInput(
            file=path,
            key="the columns",
            found=have,
            rule=f"one of {', '.join(sorted(keys))}",
            fix="set `field:` or `template:`",
        )
    groups = range(part.start, file.num_row_groups if part.stop is None else part.stop)
    before = sum(file.metadata.row_group(n).num_rows for n in range(part.start))
    index = 0
    for batch in file.iter_batches(256, row_groups=list(groups), columns=columns):
        for row in batch.to_pylist():
            yield RecordLocation(path, "row", index, before), row
            index += 1


def _open_parquet(path: Path, open_file: Any) -> Any:
    try:
        return open_file(path)
    except (OSError, ValueError) as error:
        first = str(error).split("\n")[0]
        raise InvalidInput(
            file=path,
            key="the file",
            found=first,
            rule="a Parquet file",
            fix="fetch or write it anew",
        ) from None


@functools.cache
def _load_saved(source: Source, path: Path) -> Any:
    from datasets import DatasetDict, load_from_disk

    assert source.saved is not None
    key = f"sources.{source.name}.saved"
    try:
        content = load_from_disk(str(path))
    except (OSError, ValueError) as error:
        rule = "a folder that `save_to_disk` of datasets wrote"
        raise InvalidInput(
            file=path, key=key, found=str(error).split("\n")[0], rule=rule, fix="name such a folder"
        ) from None
    if not isinstance(content, DatasetDict):
        return content
    if source.saved.split not in content:
        rule = f"the folder holds several splits: {', '.join(map(str, content))}"
        raise InvalidInput(
            file=path,
            key=f"{key}.split",
            found=source.saved.split,
            rule=rule,
            fix="name one of them",
        )
    return content[source.saved.split]


@functools.cache
def _load_hub(source: Source) -> Any:
    from datasets import load_dataset

    assert source.hub is not None
    hub = source.hub
    try:
        return load_dataset(
            hub.id, hub.subset, revision=hub.revision, split=hub.split, streaming=True
        )
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        rule = f"a data set of the hub with split {hub.split} ({first})"
        fix = "check id, revision, subset and split, and that the hub can be reached"
        raise InvalidInput(
            file=source.name, key=f"sources.{source.name}.hub", found=hub.id, rule=rule, fix=fix
        ) from None


@functools.lru_cache(maxsize=64)
def _lines_before(path: Path, start: int) -> int:
    """Lines of a file that end before byte `start`; read only to name a place."""
    lines = 0
    if start:
        with path.open("rb") as file:
            while (left := start - file.tell()) > 0:
                lines += file.read(min(left, 1 << 20)).count(b"\n")
    return lines
