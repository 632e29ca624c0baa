"""Cut a source into shards, and read their records: files, and data sets of `datasets`."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweepcp.config.source import Source
from sweepcp.data.dataset_loading import load_hub, load_saved
from sweepcp.data.file_content import file_size, guard_reading
from sweepcp.data.formats import PARQUET, file_format
from sweepcp.data.python_text import module_documents
from sweepcp.data.shards import LocatedRecord, RecordLocation, SourceShard
from sweepcp.data.source_files import ResolvedSource
from sweepcp.data.text_records import can_be_cut, read_text_file
from sweepcp.data.typed_records import (
    PARQUET_FILE,
    ROWS_PER_BATCH,
    guard_arrow,
    guard_tables,
    open_parquet,
    parquet_batches,
    table_records,
)
from sweepcp.errors import located

SHARD_BYTES = 16 << 20
"""Approximate size of a shard, which one process reads, and which an interrupted build repeats."""
PYTHON_SHARD_BYTES = 2 << 20
"""Size of a shard of Python files, whose parsing makes them about forty times as slow to read."""
DATA_SET = "a data set"


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
            with guard_reading(path):
                yield from _read_file(source, shard, path)


def located_rows(
    tables: Iterable[Any], source: Source, path: Path | str, start: int = 0
) -> Iterator[LocatedRecord]:
    """Yield the rows of Arrow tables; the first of them is row `start` of `path`."""
    number = 0
    for table in tables:
        for record in table_records(table, source):
            yield RecordLocation(path, "row", number, start), record
            number += 1


def _file_shards(
    source: Source, paths: tuple[Path, ...], *, held_out: bool | None
) -> Iterator[SourceShard]:
    """Yield groups of small files, and ranges of large ones in formats that can be cut."""
    limit = PYTHON_SHARD_BYTES if source.python is not None else SHARD_BYTES
    group: list[Path] = []
    group_size = 0
    for path in paths:
        size = file_size(path)
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
    with guard_reading(path):
        if file_format(path).kind == PARQUET:
            groups = open_parquet(path).num_row_groups
            return _cut_range(groups, step=max(1, groups * SHARD_BYTES // size))
        # Text is cut at arbitrary bytes, which needs no pass over the file: a reader takes the
        # lines that start in its range, and reads the last of them beyond its end.
        return _cut_range(size, step=SHARD_BYTES) if can_be_cut(path, source) else []


def _cut_range(length: int, *, step: int) -> list[tuple[int, int]]:
    return [(start, min(start + step, length)) for start in range(0, length, step)]


def _row_shards(source: Source, folder: Path) -> list[SourceShard]:
    rows = load_saved(source, folder).num_rows
    size = sum(map(file_size, folder.rglob("*.arrow")))
    ranges = _cut_range(rows, step=max(1, rows * SHARD_BYTES // max(1, size)))
    shards = []
    for number, (start, stop) in enumerate(ranges):
        shards.append(SourceShard(number=number, paths=(folder,), start=start, stop=stop))
    return shards


def _read_hub(source: Source, shard: SourceShard) -> Iterator[LocatedRecord]:
    assert source.hub is not None
    dataset = load_hub(source)
    name = f"{source.hub.id}@{source.hub.revision[:8]}, shard {shard.start}"
    with located(name):
        with guard_arrow(DATA_SET):
            rows = dataset.shard(num_shards=dataset.num_shards, index=shard.start)
            tables = rows.with_format("arrow").iter(ROWS_PER_BATCH)
        yield from located_rows(guard_tables(tables, DATA_SET), source, name)


def _read_saved(source: Source, shard: SourceShard) -> Iterator[LocatedRecord]:
    folder = shard.paths[0]
    dataset = load_saved(source, folder)
    with located(folder):
        with guard_arrow(DATA_SET):
            rows = dataset.select(range(shard.start, shard.stop or 0))
            tables = rows.with_format("arrow").iter(ROWS_PER_BATCH)
        yield from located_rows(guard_tables(tables, DATA_SET), source, folder, shard.start)


def _read_file(source: Source, shard: SourceShard, path: Path) -> Iterator[LocatedRecord]:
    if source.python is not None:
        for text in module_documents(source.python, path):
            yield RecordLocation(path), text
    elif file_format(path).kind == PARQUET:
        yield from _read_parquet(path, shard, source)
    else:
        yield from read_text_file(path, shard, source)


def _read_parquet(path: Path, shard: SourceShard, source: Source) -> Iterator[LocatedRecord]:
    file = open_parquet(path)
    with guard_arrow(PARQUET_FILE):
        stop = file.num_row_groups if shard.stop is None else shard.stop
        rows_before = sum(file.metadata.row_group(n).num_rows for n in range(shard.start))
    batches = parquet_batches(file, source, range(shard.start, stop))
    yield from located_rows(batches, source, path, rows_before)
