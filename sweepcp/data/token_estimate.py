"""How many tokens a source will come to, from a sample of its text."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from sweepcp.config.source import Source
from sweepcp.data.documents import RecordCounts, read_documents
from sweepcp.data.records import SourceShard, split_into_shards
from sweepcp.data.source_files import JSONL, ResolvedSource

SAMPLED_FILES = 25
"""Files that are sampled, evenly spread."""
SPOTS_PER_FILE = 2
"""Places in a file that are sampled."""
SPOT_BYTES = 1 << 18
TEXT_BYTES = 1 << 20
"""Text that is read at a place at most."""
UNPACKED_BYTES = 4 << 20
"""Of a compressed file, to see how far it is compressed."""


def estimate_tokens(
    source: Source, found: ResolvedSource, count: Callable[[list[str]], float]
) -> float:
    """Training tokens of a source before near-duplicates are dropped; `count` gives the tokens of a few texts.

    Reads at most `FILES` files, of each a few hundred kilobytes of text, and scales by the files' sizes.
    """
    tokens = taken = 0.0
    with tempfile.TemporaryDirectory(prefix="sweepcp-") as folder:
        for part, weight in _sampled_shards(source, found, Path(folder)):
            texts: list[str] = []
            tally, size = RecordCounts(), 0
            for document in read_documents(source, found, part, tally):
                texts.append(document.text)
                size += len(document.text)
                if size > TEXT_BYTES:
                    break
            tokens += count(texts) if texts else 0
            taken += weight(tally.records)
    held_out = 0.0 if source.held_out_files else source.held_out
    return max(1.0, tokens / max(1.0, taken) * _source_size(source, found) * (1 - held_out))


def _source_size(source: Source, found: ResolvedSource) -> float:
    """The size of a source, in what the sample is weighed by: rows where they are counted, else bytes."""
    if source.hub is not None or source.saved is not None:
        return float(sum((p.stop or 0) - p.start for p in split_into_shards(source, found)))
    return float(sum(path.stat().st_size for path in found.paths))


def _sampled_shards(
    source: Source, found: ResolvedSource, folder: Path
) -> Iterator[tuple[SourceShard, Callable[[int], float]]]:
    """Parts to read, each with what it weighs when so many of its records were read."""
    if source.hub is not None or source.saved is not None:
        cut = split_into_shards(source, found)
        for part in cut[:: max(1, len(cut) // SPOTS_PER_FILE)]:
            yield part, float if source.hub is None else lambda records: 1.0
        return
    for path in found.paths[:: max(1, len(found.paths) // SAMPLED_FILES)]:
        size = path.stat().st_size
        if path.suffix == ".parquet":
            yield _parquet_shard(path)
        elif path.suffix in (".gz", ".zst"):
            yield _decompressed_shard(path, folder)
        elif size > SPOTS_PER_FILE * SPOT_BYTES and (
            path.name.endswith(JSONL) or source.unit == "line"
        ):
            for spot in range(SPOTS_PER_FILE):
                start = spot * size // SPOTS_PER_FILE
                yield (
                    SourceShard(0, (path,), start, start + SPOT_BYTES),
                    lambda records: float(SPOT_BYTES),
                )
        else:
            yield SourceShard(0, (path,)), lambda records, size=size: float(size)  # type: ignore[misc]


def _parquet_shard(path: Path) -> tuple[SourceShard, Callable[[int], float]]:
    from pyarrow.parquet import ParquetFile

    rows = ParquetFile(path).metadata.num_rows
    return SourceShard(0, (path,)), lambda records: path.stat().st_size * records / max(1, rows)


def _decompressed_shard(path: Path, folder: Path) -> tuple[SourceShard, Callable[[int], float]]:
    """The first lines of a compressed file as a plain one, which weighs what was read of the compressed one."""
    import pyarrow

    codec = "gzip" if path.suffix == ".gz" else "zstd"
    with (
        path.open("rb") as raw,
        pyarrow.CompressedInputStream(pyarrow.PythonFile(raw), codec) as stream,
    ):
        content = stream.read(UNPACKED_BYTES)
        packed = raw.tell() if len(content) == UNPACKED_BYTES else path.stat().st_size
    cut = content.rfind(b"\n", 0, TEXT_BYTES) + 1 or len(content)
    plain = folder / path.with_suffix("").name
    plain.write_bytes(content[:cut])
    return SourceShard(0, (plain,)), lambda records: packed * cut / len(content)
