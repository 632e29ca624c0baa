"""Build the token store of a source: shard by shard, on all cores, in bounded memory, resumable."""

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sweepcp.config.source import Source
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.encoding import Encoder
from sweepcp.data.near_duplicates import MINIMA, SIGNATURE_BYTES, Signer, find_near_duplicates
from sweepcp.data.records import SourceShard, split_into_shards
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import CHUNK, FORMAT, TokenStore, store_path, token_dtype, write_index
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_json
from sweepcp.util.parallel import parallel_map
from sweepcp.util.progress import Progress

BATCH_DOCUMENTS = 256
"""Documents tokenised at once, at most."""
BATCH_CHARACTERS = 1 << 20
"""Characters tokenised at once, at most, unless one document has more."""
COPY_BYTES = 1 << 20
SPLITS = ("train", "held_out")
SHARD_SUFFIXES = ("tokens", "lengths", "sides", "sizes", "signatures", "held_out")
"""Files that a shard is built into.

Of training documents: `tokens` (token ids) and `lengths` (i32, tokens per document). Of held-out
documents: `held_out` (JSON strings, one per line). Of all documents: `sides` (u8, index into
`SPLITS`), `sizes` (i64, bytes of text) and `signatures` (MinHash).
"""
ARRAY_TYPES = {"lengths": "<i4", "sides": "u1", "sizes": "<i8"}
SIGNATURES_FILE = "signatures"
"""The signatures of all shards."""
LENGTHS_FILE = "lengths"
"""The lengths of all training documents in the store."""


def build_store(
    source: Source,
    files: ResolvedSource,
    *,
    tokenizer_id: str,
    make_encoder: Callable[[], Encoder],
    progress: Progress,
    address: str | None = None,
) -> TokenStore:
    """Return the token store of a source, from the cache or built; it is complete or absent.

    Processes read, tokenise and, if near-duplicates are dropped, sign the source shard by shard.
    One process then finds the near-duplicates and joins the shards. Until then the shards are kept
    in a folder beside the store, so an interrupted build resumes; while they are joined the cache
    holds the tokens twice.

    Args:
        source: The source.
        files: Its files.
        tokenizer_id: Identifies the tokenizer in the name of the store.
        make_encoder: Called if the store has to be built.
        progress: Receives the number of shards built, as task `sources`.
        address: A Ray cluster to build on; None for the cores of this machine.

    Raises:
        InvalidInput: Too many records cannot be used, or files change during the build.
    """
    fingerprint = source_fingerprint(source, files)
    path = store_path(fingerprint=fingerprint, tokenizer_id=tokenizer_id)
    with _build_lock(path):
        if not (path / "store.json").exists():
            work = path.with_name(f".building-{path.name}")
            encoder = make_encoder()
            shards = _build_shards(source, files, encoder, work, progress=progress, address=address)
            # Shards of two states of a file do not add up to a corpus.
            if source_fingerprint(source, files) != fingerprint:
                raise InvalidInput(
                    file=source.name,
                    key=f"sources.{source.name}",
                    found="its files changed",
                    rule="files that do not change while they are read",
                    fix="run the command again when the files are complete",
                )
            origin = {"fingerprint": fingerprint, "tokenizer": tokenizer_id}
            _join_shards(work, source, shards, dtype=token_dtype(encoder.vocab_size), origin=origin)
            # Renamed as a whole, so that no reader ever finds an incomplete store.
            work.replace(path)
    store = TokenStore(path, source.name)
    # `bad_records` is not part of the fingerprint: the store may have been built with a higher one.
    meta = store.meta
    counts = RecordCounts(meta["records"], bad=meta["bad"], examples=meta["examples"])
    check_bad_records(source, counts)
    return store


def is_held_out(sha256: bytes, share: float) -> bool:
    """Return whether a document is among the held-out share.

    Its hash decides, so that it stays in its split when the corpus grows, together with its copies.
    """
    return int.from_bytes(sha256[:8], "big") < share * 2**64


def split_of(source: Source, shard: SourceShard, document: Document) -> int:
    """Return the index into `SPLITS` of a document."""
    if shard.held_out is not None:
        return int(shard.held_out)
    return int(is_held_out(document.sha256, source.held_out))


@contextmanager
def _build_lock(path: Path) -> Iterator[None]:
    """Wait until no other process builds this store, and keep others waiting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _shard_file(work: Path, shard: SourceShard, suffix: str) -> Path:
    return work / f"{shard.number:08}.{suffix}"


def _build_shards(
    source: Source,
    files: ResolvedSource,
    encoder: Encoder,
    work: Path,
    *,
    progress: Progress,
    address: str | None,
) -> list[SourceShard]:
    """Build the shards that an earlier build has not completed; return all shards in order."""
    work.mkdir(parents=True, exist_ok=True)
    shards = split_into_shards(source, files)
    missing = [shard for shard in shards if not _shard_file(work, shard, "json").exists()]
    total, done = len(shards), len(shards) - len(missing)
    detail = f"reading {source.name}"
    progress.update("sources", done=done, total=total, detail=detail)
    build_shard = partial(_build_shard, source, files, encoder, work)
    for _ in parallel_map(build_shard, missing, address):
        done += 1
        progress.update("sources", done=done, total=total, detail=detail)
    return shards


def _build_shard(
    source: Source, files: ResolvedSource, encoder: Encoder, work: Path, shard: SourceShard
) -> None:
    """Write the files of a shard; its `.json`, written last, marks it as complete."""
    counts = RecordCounts()
    dtype = token_dtype(encoder.vocab_size)
    signer = Signer() if source.near_duplicates == "drop" else None
    with ExitStack() as stack:
        outputs: dict[str, BinaryIO] = {}
        for suffix in SHARD_SUFFIXES:
            file = _shard_file(work, shard, suffix).open("wb")
            outputs[suffix] = stack.enter_context(file)
        for batch in _batches(read_documents(source, files, shard, counts)):
            splits = [split_of(source, shard, document) for document in batch]
            sizes = [len(document.text.encode()) for document in batch]
            outputs["sides"].write(bytes(splits))
            outputs["sizes"].write(np.array(sizes, dtype="<i8").tobytes())
            trained: list[str] = []
            for document, split in zip(batch, splits, strict=True):
                if signer is not None:
                    outputs["signatures"].write(signer.sign(document.text).tobytes())
                if SPLITS[split] == "train":
                    trained.append(document.text)
                else:
                    outputs["held_out"].write(json.dumps(document.text).encode() + b"\n")
            encoded = encoder.encode(trained)
            lengths = [len(token_ids) for token_ids in encoded]
            outputs["lengths"].write(np.array(lengths, dtype="<i4").tobytes())
            for token_ids in encoded:
                outputs["tokens"].write(np.array(token_ids, dtype=dtype).tobytes())
    write_json(_shard_file(work, shard, "json"), vars(counts))


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        is_full = len(batch) == BATCH_DOCUMENTS or size + len(document.text) > BATCH_CHARACTERS
        if batch and is_full:
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch


def _join_shards(
    work: Path,
    source: Source,
    shards: list[SourceShard],
    *,
    dtype: np.dtype[Any],
    origin: dict[str, str],
) -> None:
    """Join the shards, without near-duplicates, into the files of a store, and remove them.

    Args:
        work: The folder of the shards, which becomes the store.
        source: The source.
        shards: All its shards, in order.
        dtype: Type of the tokens.
        origin: What the store was built from, for `store.json`.
    """
    counts = RecordCounts()
    for shard in shards:
        counts.add(RecordCounts.from_json(json.loads(_shard_file(work, shard, "json").read_text())))
    check_bad_records(source, counts)
    # A document may repeat one of another shard, so this waits for all of them. The held-out files
    # are the first shards: if a document is in both kinds of files, its training copy is dropped.
    is_duplicate = None
    if source.near_duplicates == "drop":
        is_duplicate = _find_near_duplicates(work, shards)
    totals = {split: Counter(documents=0, bytes=0) for split in SPLITS}
    first = dropped = 0
    with (
        (work / "train.bin").open("wb") as tokens,
        (work / LENGTHS_FILE).open("wb") as lengths,
        (work / "held_out.jsonl").open("wb") as held_out,
    ):
        for shard in shards:
            splits, sizes = _read_array(work, shard, "sides"), _read_array(work, shard, "sizes")
            # Documents are numbered through all shards, in the order in which they were signed.
            last = first + len(splits)
            keep = np.ones(len(splits), dtype=bool)
            if is_duplicate is not None:
                keep = ~is_duplicate[first:last]
            first = last
            dropped += int((~keep).sum())
            for index, split in enumerate(SPLITS):
                kept = keep & (splits == index)
                totals[split].update(documents=int(kept.sum()), bytes=int(sizes[kept].sum()))
            # The other files have entries for the documents of one split only.
            _copy_train(work, shard, keep[splits == 0], tokens=tokens, lengths=lengths, dtype=dtype)
            _copy_held_out(work, shard, keep[splits == 1], held_out)
    documents = totals["train"]["documents"]
    with (work / "train.idx").open("wb") as index_file:
        write_index(index_file, dtype, documents, partial(_read_lengths, work / LENGTHS_FILE))
    totals["train"]["tokens"] = (work / "train.bin").stat().st_size // dtype.itemsize
    record = {"format": FORMAT, **origin, **vars(counts), "near_duplicates": dropped, **totals}
    write_json(work / "store.json", record)
    _remove_shards(work, shards)


def _find_near_duplicates(work: Path, shards: list[SourceShard]) -> np.ndarray:
    """Return which documents of all shards are near-duplicates, shape (documents,), bool."""
    joined = work / SIGNATURES_FILE
    with joined.open("wb") as target:
        for shard in shards:
            with _shard_file(work, shard, "signatures").open("rb") as signatures:
                shutil.copyfileobj(signatures, target, COPY_BYTES)
    count = joined.stat().st_size // SIGNATURE_BYTES
    # An empty file cannot be mapped.
    if not count:
        return np.zeros(0, dtype=bool)
    return find_near_duplicates(np.memmap(joined, "<u4", "r", shape=(count, MINIMA)))


def _copy_train(
    work: Path,
    shard: SourceShard,
    keep: np.ndarray,
    *,
    tokens: BinaryIO,
    lengths: BinaryIO,
    dtype: np.dtype[Any],
) -> None:
    """Append the tokens and lengths of the training documents to keep."""
    shard_lengths = _read_array(work, shard, "lengths")
    lengths.write(shard_lengths[keep].tobytes())
    sizes = shard_lengths.astype(np.int64) * dtype.itemsize
    ends = np.cumsum(sizes)
    # Neighbouring documents to keep are copied as one run; runs begin and end where `keep` changes.
    edges = np.flatnonzero(np.diff(keep, prepend=False, append=False))
    with _shard_file(work, shard, "tokens").open("rb") as content:
        for first, last in edges.reshape(-1, 2):
            begin = int(ends[first] - sizes[first])
            content.seek(begin)
            left = int(ends[last - 1]) - begin
            while left:
                left -= tokens.write(content.read(min(left, COPY_BYTES)))


def _copy_held_out(work: Path, shard: SourceShard, keep: np.ndarray, held_out: BinaryIO) -> None:
    """Append the held-out documents to keep."""
    with _shard_file(work, shard, "held_out").open("rb") as lines:
        for line, is_kept in zip(lines, keep, strict=True):
            if is_kept:
                held_out.write(line)


def _read_array(work: Path, shard: SourceShard, suffix: str) -> np.ndarray:
    return np.fromfile(_shard_file(work, shard, suffix), ARRAY_TYPES[suffix])


def _read_lengths(path: Path) -> Iterator[np.ndarray]:
    with path.open("rb") as file:
        while len(chunk := np.fromfile(file, "<i4", CHUNK)):
            yield chunk


def _remove_shards(work: Path, shards: list[SourceShard]) -> None:
    for shard in shards:
        # The marker of completeness goes first: a build that is interrupted here builds the shard
        # again, where it would otherwise miss its files.
        for suffix in ("json", *SHARD_SUFFIXES):
            _shard_file(work, shard, suffix).unlink(missing_ok=True)
    (work / LENGTHS_FILE).unlink(missing_ok=True)
    (work / SIGNATURES_FILE).unlink(missing_ok=True)
