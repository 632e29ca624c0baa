"""Join the shards of a token store: without near-duplicates, in random order, in bounded memory.

Training documents are shuffled, or a block of the source would hold what stood together in the
corpus: one author, one site, one year. Their order depends on their numbers in the source alone,
so any number of processes, shards and interruptions gives the same store.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sweepcp.config.source import Source
from sweepcp.data.documents import RecordCounts, check_bad_records
from sweepcp.data.near_duplicates import MINIMA, SIGNATURE_BYTES, find_near_duplicates
from sweepcp.data.shards import SourceShard
from sweepcp.data.shuffle import random_keys
from sweepcp.data.token_store import CHUNK, FORMAT, HASH, HASHED_FILES, SPLITS, write_index
from sweepcp.errors import InvalidInput
from sweepcp.util.files import file_sha256, write_json

SHARD_SUFFIXES = ("tokens", "held_out", "documents", "signatures")
"""Files that a shard is built into.

`tokens` has the token ids of training documents, `held_out` the text of held-out documents (JSON
strings, one per line), `documents` a `DOCUMENT` of every document and `signatures` its MinHash.
"""
DOCUMENT = np.dtype(
    [("split", "u1"), ("bytes", "<i8"), ("covered", "<i8"), ("hash", HASH), ("tokens", "<i4")]
)
"""Index into `SPLITS`, bytes of text, how many of them have tokens, hash, tokens in the shard."""
SIGNATURES_FILE = "signatures"
"""The signatures of all shards."""
LENGTHS_FILE = "lengths"
"""The lengths of all training documents in the store, in tokens (i32)."""
BUCKET_BYTES = 1 << 28
"""Tokens that are shuffled in memory at once, unless `MAX_BUCKETS` would be exceeded."""
MAX_BUCKETS = 256
"""Each is two open files, of which systems allow 1,024."""
BUCKET_ENTRY = np.dtype([("key", "<u8"), ("tokens", "<i4")])
COPY_BYTES = 1 << 20


def shard_file(work: Path, shard: SourceShard, suffix: str) -> Path:
    """Return the path of a file of a shard."""
    return work / f"{shard.number:08}.{suffix}"


def join_shards(
    work: Path,
    source: Source,
    shards: list[SourceShard],
    *,
    dtype: np.dtype[Any],
    origin: dict[str, str],
) -> None:
    """Join the shards into the files of a store, and remove them.

    Args:
        work: The folder of the shards, which becomes the store.
        source: The source.
        shards: All its shards, in order.
        dtype: Type of the tokens.
        origin: What the store was built from, for `store.json`.
    """
    counts = RecordCounts()
    for shard in shards:
        counts.add(RecordCounts.read(shard_file(work, shard, "json")))
    check_bad_records(source, counts)
    # A document may repeat one of another shard, so this waits for all of them. The held-out files
    # are the first shards: if a document is in both kinds of files, its training copy is dropped.
    is_duplicate = None
    if source.near_duplicates == "drop":
        is_duplicate = _find_near_duplicates(work, shards)
    buckets = _bucket_count(work, shards)
    totals, dropped = _distribute(work, shards, is_duplicate, buckets=buckets, dtype=dtype)
    _write_train(work, buckets, dtype)
    with (work / "train.idx").open("wb") as index_file:
        lengths = partial(_read_lengths, work / LENGTHS_FILE)
        write_index(index_file, dtype, totals["train"]["documents"], lengths)
    for split in SPLITS:
        np.sort(np.fromfile(work / f"{split}.hashes", HASH)).tofile(work / f"{split}.hashes")
    totals["train"]["tokens"] = (work / "train.bin").stat().st_size // dtype.itemsize
    sha256 = {name: file_sha256(work / name) for name in HASHED_FILES}
    record = {"format": FORMAT, **origin, **vars(counts), "near_duplicates": dropped, **totals}
    write_json(work / "store.json", record | {"sha256": sha256})
    _remove_shards(work, shards)


def _find_near_duplicates(work: Path, shards: list[SourceShard]) -> np.ndarray:
    """Return which documents of all shards are near-duplicates, shape (documents,), bool."""
    joined = work / SIGNATURES_FILE
    with joined.open("wb") as target:
        for shard in shards:
            with shard_file(work, shard, "signatures").open("rb") as signatures:
                shutil.copyfileobj(signatures, target, COPY_BYTES)
    count = joined.stat().st_size // SIGNATURE_BYTES
    # An empty file cannot be mapped.
    if not count:
        return np.zeros(0, dtype=bool)
    return find_near_duplicates(np.memmap(joined, "<u4", "r", shape=(count, MINIMA)))


def _bucket_count(work: Path, shards: list[SourceShard]) -> int:
    size = sum(shard_file(work, shard, "tokens").stat().st_size for shard in shards)
    return min(MAX_BUCKETS, size // BUCKET_BYTES + 1)


def _bucket_file(work: Path, bucket: int, suffix: str) -> Path:
    return work / f"bucket-{bucket:03}.{suffix}"


def _distribute(
    work: Path,
    shards: list[SourceShard],
    is_duplicate: np.ndarray | None,
    *,
    buckets: int,
    dtype: np.dtype[Any],
) -> tuple[dict[str, Counter[str]], int]:
    """Write held-out documents and all hashes in order, and training documents into buckets.

    Args:
        work: The folder of the shards.
        shards: All its shards, in order.
        is_duplicate: Which of all documents to leave out; None for none.
        buckets: Number of buckets; each takes a random part of the documents.
        dtype: Type of the tokens.

    Returns:
        The counts of each split, and the number of documents that were left out.
    """
    totals = {split: Counter(documents=0, bytes=0, covered=0) for split in SPLITS}
    first = dropped = 0
    with ExitStack() as stack:

        def create(path: Path) -> BinaryIO:
            return stack.enter_context(path.open("wb"))

        held_out = create(work / "held_out.jsonl")
        hashes = [create(work / f"{split}.hashes") for split in SPLITS]
        tokens = [create(_bucket_file(work, bucket, "tokens")) for bucket in range(buckets)]
        entries = [create(_bucket_file(work, bucket, "entries")) for bucket in range(buckets)]
        for shard in shards:
            documents = _read_shard(work, shard, dtype)
            # Documents are numbered through all shards, in the order in which they were signed.
            keys = random_keys(first, len(documents))
            keep = np.ones(len(documents), dtype=bool)
            if is_duplicate is not None:
                keep = ~is_duplicate[first : first + len(documents)]
            first += len(documents)
            dropped += int((~keep).sum())
            for index, split in enumerate(SPLITS):
                kept = documents[keep & (documents["split"] == index)]
                hashes[index].write(kept["hash"].tobytes())
                sizes = {name: int(kept[name].sum()) for name in ("bytes", "covered")}
                totals[split].update(documents=len(kept), **sizes)
            _copy_held_out(work, shard, keep[documents["split"] == 1], held_out)
            trained = keep & (documents["split"] == 0)
            content = _document_tokens(
                shard_file(work, shard, "tokens"), documents["tokens"], dtype
            )
            # Buckets are ranges of keys, in order.
            chosen = (keys >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)
            for bucket in range(buckets):
                members = np.flatnonzero(trained & (chosen == bucket))
                entry = np.empty(len(members), BUCKET_ENTRY)
                entry["key"], entry["tokens"] = keys[members], documents["tokens"][members]
                entries[bucket].write(entry.tobytes())
                tokens[bucket].writelines(content(members))
    return totals, dropped


def _read_shard(work: Path, shard: SourceShard, dtype: np.dtype[Any]) -> np.ndarray:
    """Return the documents of a shard, after a check that its other files belong to them.

    A machine that crashed may have kept the marker of completeness and lost what was written
    before it.
    """
    documents = np.fromfile(shard_file(work, shard, "documents"), DOCUMENT)
    expected = {
        "documents": len(documents) * DOCUMENT.itemsize,
        "tokens": int(documents["tokens"].sum(dtype=np.int64)) * dtype.itemsize,
    }
    for suffix, size in expected.items():
        file = shard_file(work, shard, suffix)
        found = file.stat().st_size
        if found != size:
            raise _damaged_shard(file, f"{found} bytes", f"{size} bytes")
    file = shard_file(work, shard, "held_out")
    held_out = int((documents["split"] == 1).sum())
    with file.open("rb") as content:
        lines = sum(1 for line in content)
    if lines != held_out:
        raise _damaged_shard(file, f"{lines} lines", f"{held_out} lines")
    return documents


def _damaged_shard(file: Path, found: str, expected: str) -> InvalidInput:
    return InvalidInput(
        file=file,
        key="the length",
        found=found,
        rule=f"{expected}, for the documents of the shard",
        fix=f"remove {file.parent}, which is built again",
    )


def _write_train(work: Path, buckets: int, dtype: np.dtype[Any]) -> None:
    """Write the documents of all buckets in the order of their keys, and their lengths."""
    with (work / "train.bin").open("wb") as train, (work / LENGTHS_FILE).open("wb") as lengths:
        for bucket in range(buckets):
            tokens, index = (_bucket_file(work, bucket, name) for name in ("tokens", "entries"))
            entries = np.fromfile(index, BUCKET_ENTRY)
            order = np.argsort(entries["key"])
            train.writelines(_document_tokens(tokens, entries["tokens"], dtype)(order))
            lengths.write(entries["tokens"][order].tobytes())
            # Shards, buckets and the store never take more room than the tokens twice.
            tokens.unlink()
            index.unlink()


def _document_tokens(
    path: Path, lengths: np.ndarray, dtype: np.dtype[Any]
) -> Callable[[np.ndarray], Iterator[memoryview]]:
    """Read a file of tokens; return a function from documents, by their index, to their tokens."""
    content = memoryview(path.read_bytes())
    sizes = lengths.astype(np.int64) * dtype.itemsize
    ends = np.cumsum(sizes)

    def select(documents: np.ndarray) -> Iterator[memoryview]:
        starts = (ends - sizes)[documents].tolist()
        for start, end in zip(starts, ends[documents].tolist(), strict=True):
            yield content[start:end]

    return select


def _copy_held_out(work: Path, shard: SourceShard, keep: np.ndarray, held_out: BinaryIO) -> None:
    """Append the held-out documents to keep."""
    with shard_file(work, shard, "held_out").open("rb") as lines:
        for line, is_kept in zip(lines, keep, strict=True):
            if is_kept:
                held_out.write(line)


def _read_lengths(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while len(chunk := np.fromfile(file, "<i4", CHUNK)):
            yield chunk


def _remove_shards(work: Path, shards: list[SourceShard]) -> None:
    for shard in shards:
        # The marker of completeness goes first: a build that is interrupted here builds the shard
        # again, where it would otherwise miss its files.
        for suffix in ("json", *SHARD_SUFFIXES):
            shard_file(work, shard, suffix).unlink(missing_ok=True)
    (work / LENGTHS_FILE).unlink(missing_ok=True)
    (work / SIGNATURES_FILE).unlink(missing_ok=True)
