"""Estimate the tokens of a source from a sample of its text."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sweepcp.config.source import Source
from sweepcp.data.documents import RecordCounts, read_documents
from sweepcp.data.records import SourceShard, split_into_shards
from sweepcp.data.source_files import JSONL, ResolvedSource

SAMPLED_FILES = 25
"""Approximate number of files that are sampled, evenly spread."""
SPOTS_PER_FILE = 2
"""Ranges that are sampled in a large file; also shards that are sampled of a data set."""
SPOT_BYTES = 1 << 18
"""Length of a sampled range."""
TEXT_CHARACTERS = 1 << 20
"""Text read of a range, at most."""
DECOMPRESSED_BYTES = 4 << 20
"""Content read of a compressed file, to measure its compression."""

SampledSize = Callable[[int], float]
"""Records read of a shard → the size of what was read, in the unit of `_source_size`."""


def estimate_tokens(
    source: Source, files: ResolvedSource, count_tokens: Callable[[list[str]], float]
) -> float:
    """Estimate the training tokens of a source before near-duplicates are dropped.

    Tokens per byte (or per row, or per shard) of a sample are scaled to the size of the source. At
    most a few dozen files are read, and of each a few hundred kilobytes of text.

    Args:
        source: The source.
        files: Its files.
        count_tokens: Returns the number of tokens of some documents.

    Returns:
        The estimate, at least 1.
    """
    tokens = sampled = 0.0
    with tempfile.TemporaryDirectory(prefix="sweepcp-") as folder:
        for shard, sampled_size in _sampled_shards(source, files, Path(folder)):
            documents: list[str] = []
            counts, length = RecordCounts(), 0
            for document in read_documents(source, files, shard, counts):
                documents.append(document.text)
                length += len(document.text)
                if length > TEXT_CHARACTERS:
                    break
            tokens += count_tokens(documents) if documents else 0
            sampled += sampled_size(counts.records)
    held_out = 0.0 if source.held_out_files else source.held_out
    return max(1.0, tokens / max(1.0, sampled) * _source_size(source, files) * (1 - held_out))


def _source_size(source: Source, files: ResolvedSource) -> float:
    """Return the size of a source: in rows of a saved data set, shards of a hub one, else bytes."""
    if source.hub is not None or source.saved is not None:
        shards = split_into_shards(source, files)
        return float(sum((shard.stop or 0) - shard.start for shard in shards))
    return float(sum(path.stat().st_size for path in files.paths))


def _sampled_shards(
    source: Source, files: ResolvedSource, folder: Path
) -> Iterator[tuple[SourceShard, SampledSize]]:
    """Yield the shards to sample; `folder` is for temporary files."""
    if source.hub is not None or source.saved is not None:
        shards = split_into_shards(source, files)
        sampled_size: SampledSize = float if source.hub is None else _constant(1)
        for shard in shards[:: max(1, len(shards) // SPOTS_PER_FILE)]:
            yield shard, sampled_size
        return
    for path in files.paths[:: max(1, len(files.paths) // SAMPLED_FILES)]:
        size = path.stat().st_size
        is_lines = path.name.endswith(JSONL) or source.unit == "line"
        if path.suffix == ".parquet":
            yield _parquet_shard(path)
        elif path.suffix in (".gz", ".zst"):
            yield _decompressed_shard(path, folder)
        elif size > SPOTS_PER_FILE * SPOT_BYTES and is_lines:
            for spot in range(SPOTS_PER_FILE):
                start = spot * size // SPOTS_PER_FILE
                shard = SourceShard(paths=(path,), start=start, stop=start + SPOT_BYTES)
                yield shard, _constant(SPOT_BYTES)
        else:
            yield SourceShard(paths=(path,)), _constant(size)


def _constant(size: int) -> SampledSize:
    """Return the size of a shard that is sampled whole."""
    return lambda _: float(size)


def _parquet_shard(path: Path) -> tuple[SourceShard, SampledSize]:
    """Return a Parquet file; the size of what was read of it is in proportion to its rows."""
    from pyarrow.parquet import ParquetFile

    rows = ParquetFile(path).metadata.num_rows
    size = path.stat().st_size
    return SourceShard(paths=(path,)), lambda records: size * records / max(1, rows)


def _decompressed_shard(path: Path, folder: Path) -> tuple[SourceShard, SampledSize]:
    """Return the first lines of a compressed file as a plain file in `folder`.

    Its size is that of the compressed bytes that they were read from.
    """
    import pyarrow

    codec = "gzip" if path.suffix == ".gz" else "zstd"
    with (
        path.open("rb") as compressed,
        pyarrow.CompressedInputStream(pyarrow.PythonFile(compressed), codec) as stream,
    ):
        content = stream.read(DECOMPRESSED_BYTES)
        read_to_end = len(content) < DECOMPRESSED_BYTES
        compressed_size = path.stat().st_size if read_to_end else compressed.tell()
    length = content.rfind(b"\n", 0, TEXT_CHARACTERS) + 1 or len(content)
    plain = folder / path.with_suffix("").name
    plain.write_bytes(content[:length])
    return SourceShard(paths=(plain,)), lambda _: compressed_size * length / len(content)
