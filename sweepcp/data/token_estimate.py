"""Estimate the tokens of a source from a sample of its text.

The sample consists of short spots, drawn evenly over the bytes of all files (or the rows of a data
set), so that a file is sampled in proportion to its size. Each spot stands for the same part of the
source; its tokens per byte are scaled to that part.
"""

import random
import tempfile
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from sweepcp.config.source import Source
from sweepcp.data.dataset_loading import load_hub
from sweepcp.data.documents import (
    Document,
    RecordCounts,
    check_bad_records,
    make_documents,
    read_documents,
)
from sweepcp.data.file_content import copy_start, file_size, guard_reading, line_start
from sweepcp.data.formats import DELIMITERS, PARQUET, file_format
from sweepcp.data.records import located_rows, split_into_shards
from sweepcp.data.shards import SourceShard, printable_path
from sweepcp.data.source_files import ResolvedSource
from sweepcp.data.text_records import is_json_array
from sweepcp.data.typed_records import ROWS_PER_BATCH, open_parquet, parquet_batches
from sweepcp.errors import InvalidInput
from sweepcp.util.temporary import temporary_folder

SPOTS = 128
MAX_SPOTS = 1024
"""Spots of a source of many files that are shorter than a spot."""
PYTHON_SPOTS = 32
"""Spots of Python modules, which are slow to parse."""
SPOT_BYTES = 16 << 10
"""Length of a spot in a file that need not be read whole."""
SPOT_CHARACTERS = 16 << 10
"""Characters of a spot whose tokens are counted, at most."""
PIECE_CHARACTERS = 8 << 10
"""A longer document is counted in chunks."""
KEPT_CHARACTERS = 128
"""How many times as many characters as are counted are kept in memory, at most."""
HUB_SHARDS = 2
"""Shards of a hub data set that are read."""
READ_BYTES = 256 << 20
"""Content that is read of all files that can only be read from their start, about."""
READ_BYTES_PER_FILE = 8 << 20
"""Content that is read of each of them at least."""
PARSING_COST = 8
"""How many times as long as reading it takes to parse content."""
ROW_KINDS = (".json", *DELIMITERS)
"""Kinds whose records may be longer than lines."""

CountTokens = Callable[[list[str]], float]


def estimate_tokens(source: Source, files: ResolvedSource, count_tokens: CountTokens) -> float:
    """Estimate the training tokens of a source before near-duplicates are dropped.

    Args:
        source: The source.
        files: Its files.
        count_tokens: Returns the number of tokens of some documents.

    Returns:
        The estimate, at least 1.

    Raises:
        InvalidInput: A file or a record of the sample cannot be used.
    """
    sampler = _Sampler(source, files, count_tokens)
    if source.hub is not None:
        tokens = sampler.hub_tokens()
    elif source.saved is not None:
        tokens = sampler.saved_tokens()
    else:
        tokens = sampler.file_tokens(files.paths)
        # For what is wrong with them; a plan counts no tokens of held-out text.
        sampler.file_tokens(files.held_out_paths)
    if sampler.is_whole:
        check_bad_records(source, sampler.counts)
        _check_not_empty(source, tokens)
    held_out = 0.0 if source.held_out_files else source.held_out
    return max(1.0, tokens * (1 - held_out))


def _check_not_empty(source: Source, tokens: float) -> None:
    if not tokens:
        raise InvalidInput(
            file=source.name,
            key=f"sources.{source.name}",
            found="no documents",
            rule="a source with text, which its filters keep",
            fix="add text to the source, or correct its filters",
        )


@dataclass
class _Sampler:
    """Samples a source; the arguments of `estimate_tokens`."""

    source: Source
    files: ResolvedSource
    count_tokens: CountTokens
    counts: RecordCounts = field(default_factory=RecordCounts)
    """The records of the sample."""
    is_whole: bool = True
    """Whether the sample is all of the source."""

    def file_tokens(self, paths: Sequence[Path]) -> float:
        """Return the tokens of some files of the source."""
        if not paths:
            return 0.0
        sizes = [file_size(path) for path in paths]
        bounds = list(accumulate(sizes))
        short_spots = SPOTS * SPOT_BYTES * len(paths) // max(1, bounds[-1])
        count = max(SPOTS, min(MAX_SPOTS, short_spots))
        if self.source.python is not None:
            count = PYTHON_SPOTS
        spots: dict[int, list[int]] = defaultdict(list)
        for position in _draw_positions(bounds[-1], count):
            number = bisect_right(bounds, position)
            spots[number].append(position - (bounds[number] - sizes[number]))
        # Where every file can be sampled, each stands for itself.
        is_complete = len(paths) <= count
        for number, size in enumerate(sizes) if is_complete else ():
            if number not in spots:
                spots[number] = [size // 2]
        self.is_whole &= is_complete
        from_start = [number for number in spots if _is_read_from_start(paths[number])]
        limit = max(READ_BYTES_PER_FILE, READ_BYTES // max(1, len(from_start)))
        tokens = 0.0
        for number, positions in spots.items():
            part = sizes[number] if is_complete else bounds[-1] * len(positions) / count
            with guard_reading(paths[number]):
                tokens += part * self._tokens_per_byte(paths[number], positions, limit)
        return tokens

    def saved_tokens(self) -> float:
        """Return the tokens of a saved data set, from spots of rows."""
        shards = split_into_shards(self.source, self.files)
        folder, rows = self.files.paths[0], shards[-1].stop or 0 if shards else 0
        size = sum(map(file_size, folder.rglob("*.arrow")))
        rows_per_spot = _rows_per_spot(rows, size)
        tokens = 0.0
        for start in _spread_rows(_draw_positions(rows, SPOTS), rows, rows_per_spot):
            shard = SourceShard(paths=(folder,), start=start, stop=min(rows, start + rows_per_spot))
            tokens += self._shard_tokens(shard)
        sampled = self.counts.records
        self.is_whole &= sampled == rows
        return tokens / max(1, sampled) * rows

    def hub_tokens(self) -> float:
        """Return the tokens of a hub data set from a few of its shards.

        They are read whole, unless the hub knows the number of rows.
        """
        assert self.source.hub is not None
        splits = load_hub(self.source).info.splits or {}
        split = splits.get(self.source.hub.split)
        rows = int(split.num_examples or 0) if split is not None else 0
        shards = split_into_shards(self.source, self.files)
        stride = -(-len(shards) // HUB_SHARDS) or 1
        tokens = 0.0
        self.is_whole = False
        for shard in shards[::stride]:
            documents = read_documents(self.source, self.files, shard, self.counts)
            if rows:
                documents = _first_documents(documents)
            tokens += self._count(documents, SPOTS // HUB_SHARDS)
        if rows:
            return tokens / max(1, self.counts.records) * rows
        return tokens * len(shards) / max(1, len(shards[::stride]))

    def _tokens_per_byte(self, path: Path, positions: list[int], limit: int) -> float:
        """Return the tokens of a file per byte, from the spots at some positions.

        A file that can only be read from its start is read up to `limit` bytes of content.
        """
        size = file_size(path)
        kind, compression = file_format(path)
        if kind == PARQUET:
            return self._parquet_tokens(path, positions, limit) / max(1, size)
        if compression is not None:
            return self._decompressed_tokens(path, positions, limit)
        is_small = len(positions) * SPOT_BYTES >= size
        if is_small or not self._is_lines(path):
            stop = None if is_small or kind not in ROW_KINDS else limit // PARSING_COST
            shard = SourceShard(paths=(path,), stop=stop)
            self.is_whole &= stop is None or stop >= size
            return self._shard_tokens(shard, spots=len(positions)) / max(1, min(size, stop or size))
        self.is_whole = False
        ratios: list[float] = []
        for position in positions:
            # At least one line, however long it is; there is none after the start of the last.
            start = line_start(path, position)
            if start < size:
                stop = max(start + 1, min(position + SPOT_BYTES, size))
                tokens = self._shard_tokens(SourceShard(paths=(path,), start=start, stop=stop))
                ratios.append(tokens / (line_start(path, stop) - start))
        return sum(ratios) / max(1, len(ratios))

    def _is_lines(self, path: Path) -> bool:
        """Return whether the lines of a file can be read from the middle of it on."""
        kind = file_format(path).kind
        if kind == ".txt":
            return self.source.unit != "file"
        return kind == ".jsonl" or (kind == ".json" and not is_json_array(path))

    def _decompressed_tokens(self, path: Path, positions: list[int], limit: int) -> float:
        """Return the tokens of a compressed file per byte.

        Lines are sampled from a plain copy of the file's beginning.
        """
        is_lines = self._is_lines(path)
        size = file_size(path)
        with temporary_folder(Path(tempfile.gettempdir()), "sweepcp-plan") as folder:
            plain = folder / path.with_suffix("").name
            with plain.open("wb") as target:
                content_limit = limit if is_lines else limit // PARSING_COST
                read, written, whole_lines = copy_start(path, target, content_limit)
                # The beginning of a line would be a bad record.
                target.truncate(whole_lines)
            self.is_whole &= read == size
            if not is_lines:
                shard = SourceShard(paths=(path,), stop=written)
                return self._shard_tokens(shard, spots=len(positions)) / read
            scale = whole_lines / size
            try:
                per_byte = self._tokens_per_byte(plain, [int(p * scale) for p in positions], limit)
            except InvalidInput as error:
                place = error.file.replace(printable_path(plain), printable_path(path))
                raise InvalidInput(
                    file=place, key=error.key, found=error.found, rule=error.rule, fix=error.fix
                ) from None
        return per_byte * written / read

    def _parquet_tokens(self, path: Path, positions: list[int], limit: int) -> float:
        """Return the tokens of a Parquet file."""
        file = open_parquet(path)
        size, rows = file_size(path), int(file.metadata.num_rows)
        rows_per_spot = _rows_per_spot(rows, size)
        if len(positions) * rows_per_spot >= rows and _content_bytes(file) <= limit:
            return self._shard_tokens(SourceShard(paths=(path,)), spots=len(positions))
        tokens, counts = 0.0, RecordCounts()
        self.is_whole = False
        drawn = [position * rows // size for position in positions]
        wanted = _spread_rows(drawn, rows, rows_per_spot)
        batches = _wanted_batches(file, self.source, wanted, limit, rows_per_spot)
        for batch, row in batches:
            records = located_rows([batch], self.source, path, row)
            tokens += self._count(make_documents(self.source, self.files, records, counts))
        return tokens / max(1, counts.records) * rows

    def _shard_tokens(self, shard: SourceShard, spots: int = 1) -> float:
        documents = read_documents(self.source, self.files, shard, self.counts)
        return self._count(documents, spots)

    def _count(self, documents: Iterable[Document], spots: int = 1) -> float:
        """Return the tokens of the documents of some spots, counted on a part if they are long."""
        limit = spots * SPOT_CHARACTERS
        kept: list[str] = []
        stride = 1
        total = size = 0
        for number, document in enumerate(documents):
            total += len(document.text)
            if number % stride == 0:
                kept.append(document.text)
                size += len(document.text)
            if size > KEPT_CHARACTERS * SPOT_CHARACTERS and len(kept) > 1:
                # Every second of those that are kept, so that they stay evenly spread.
                kept, stride = kept[::2], 2 * stride
                size = sum(map(len, kept))
        pieces = _pieces(kept, limit)
        counted = sum(map(len, pieces))
        return self.count_tokens(pieces) * total / counted if counted else 0.0


def _is_read_from_start(path: Path) -> bool:
    kind, compression = file_format(path)
    return compression is not None or kind in (PARQUET, *ROW_KINDS)


def _draw_positions(length: int, count: int) -> list[int]:
    """Return a position in each of `count` equal parts of a length, the same ones every time."""
    # Not at equal distances: files may alternate in kind.
    rng = random.Random(0)
    return [int((part + rng.random()) * length / count) for part in range(count)] if length else []


def _rows_per_spot(rows: int, size: int) -> int:
    return max(1, min(ROWS_PER_BATCH, SPOT_BYTES * rows // max(1, size)))


def _spread_rows(drawn: list[int], rows: int, rows_per_spot: int) -> list[int]:
    """Return the first rows of the spots, in order: as drawn, or one after the other if few."""
    if len(drawn) * rows_per_spot >= rows:
        return list(range(0, rows, rows_per_spot))
    return sorted(set(drawn))


def _content_bytes(file: Any) -> int:
    """Return the size of a Parquet file's columns before compression."""
    groups = (file.metadata.row_group(number) for number in range(file.num_row_groups))
    return sum(group.total_byte_size for group in groups)


def _first_documents(documents: Iterator[Document]) -> Iterator[Document]:
    characters = 0
    for document in documents:
        yield document
        characters += len(document.text)
        if characters > SPOTS * SPOT_CHARACTERS // HUB_SHARDS:
            return


def _pieces(texts: list[str], limit: int) -> list[str]:
    """Return about `limit` characters of some texts at most, in chunks spread over them."""
    pieces: list[str] = []
    for text in texts:
        starts = range(0, len(text), PIECE_CHARACTERS)
        pieces += [text[start : start + PIECE_CHARACTERS] for start in starts]
    stride = -(-sum(map(len, pieces)) // limit)
    return pieces[:: max(1, stride)]


def _wanted_batches(
    file: Any, source: Source, wanted: list[int], limit: int, rows_per_batch: int
) -> Iterator[tuple[Any, int]]:
    """Yield the batches of a Parquet file that begin at or before some rows, with their first row.

    Args:
        file: The file.
        source: The source, which decides on the columns.
        wanted: Numbers of rows, in order.
        limit: Bytes to read of the file, about.
        rows_per_batch: Rows of a batch, at most.
    """
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    first_rows = [0, *accumulate(group.num_rows for group in groups)]
    by_group: dict[int, list[int]] = defaultdict(list)
    for row in wanted:
        number = bisect_right(first_rows, row) - 1
        by_group[number].append(row - first_rows[number])
    for number, rows in by_group.items():
        # A batch can only be reached through those before it.
        reach = min(1.0, limit / len(by_group) / max(1, groups[number].total_byte_size))
        targets = [int(row * reach) for row in rows]
        start = 0
        for batch in parquet_batches(file, source, range(number, number + 1), rows_per_batch):
            if start > targets[-1]:
                break
            if any(start <= target < start + len(batch) for target in targets):
                yield batch, first_rows[number] + start
            start += len(batch)
