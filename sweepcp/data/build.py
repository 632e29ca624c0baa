"""From a source to its token store: part by part on all cores, in bounded memory, resumable after any stop."""

import fcntl
import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sweepcp.config.source import Source
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.encoding import Encoder
from sweepcp.data.near_duplicates import DISK_BYTES, MINIMA, Signer, near_duplicates
from sweepcp.data.records import SourceShard, split_into_shards
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import CHUNK, FORMAT, TokenStore, store_path, token_dtype, write_index
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_json
from sweepcp.util.parallel import parallel_map

BATCH_DOCUMENTS, BATCH_BYTES = 256, 1 << 20
"""Documents are tokenised in batches of so many, or of so much text."""
SPLITS = ("train", "held_out")
SHARD_SUFFIXES = ("tokens", "lengths", "sides", "sizes", "signatures", "held_out")
"""Files of a part: token ids, tokens a training document; side and bytes a document; signatures; held-out texts."""
SIGNATURES_FILE = "signatures"


def build_store(
    source: Source,
    found: ResolvedSource,
    tokenizer_id: str,
    make_encoder: Callable[[], Encoder],
    address: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> TokenStore:
    """The store of a source, from the cache or built; complete or absent, never half.

    Every part of the source is read, tokenised and, where near-duplicates are dropped, signed by one process; then one
    process finds the near-duplicates and joins the parts. Until then the parts stand beside the store, so that a build
    that was killed goes on, and the cache holds the tokens twice for a while. `progress` hears of parts.
    """
    stamp = source_fingerprint(source, found)
    path = store_path(stamp, tokenizer_id)
    with _build_lock(path):
        if not (path / "store.json").exists():
            work = path.with_name(f".building-{path.name}")
            work.mkdir(parents=True, exist_ok=True)
            cut = split_into_shards(source, found)
            left = [part for part in cut if not _shard_file(work, part, "json").exists()]
            progress(len(cut) - len(left), len(cut))
            encoder = make_encoder()
            todo = partial(_build_shard, source, found, encoder, work)
            for done, _ in enumerate(
                parallel_map(todo, left, address), start=len(cut) - len(left) + 1
            ):
                progress(done, len(cut))
            if source_fingerprint(source, found) != stamp:
                rule = "a corpus stays as it is while it is read"
                raise InvalidInput(
                    file=source.name,
                    key=f"sources.{source.name}",
                    found="its files changed",
                    rule=rule,
                    fix="run it again",
                )
            _join_shards(
                work,
                source,
                cut,
                token_dtype(encoder.size),
                {"fingerprint": stamp, "tokenizer": tokenizer_id},
            )
            os.replace(work, path)
    store = TokenStore(path, source.name)
    check_bad_records(
        source,
        RecordCounts(store.meta["records"], bad=store.meta["bad"], examples=store.meta["examples"]),
    )
    return store


@contextmanager
def _build_lock(path: Path) -> Iterator[None]:
    """Wait until no other process builds this store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_held_out(key: bytes, share: float) -> bool:
    """Whether a document is held out: its hash decides, so it keeps its side when the corpus grows."""
    return int.from_bytes(key[:8], "big") < share * 2**64


def split_of(source: Source, part: SourceShard, document: Document) -> int:
    """0: trained on, 1: held out."""
    held_out = (
        is_held_out(document.key, source.held_out) if part.held_out is None else part.held_out
    )
    return int(held_out)


def _shard_file(work: Path, part: SourceShard, ending: str) -> Path:
    return work / f"{part.number:08}.{ending}"


def _build_shard(
    source: Source, found: ResolvedSource, encoder: Encoder, work: Path, part: SourceShard
) -> None:
    """Write what a part comes to; its .json last, which says that it is whole."""
    tally = RecordCounts()
    dtype = token_dtype(encoder.size)
    signer = Signer() if source.near_duplicates == "drop" else None
    files = {ending: _shard_file(work, part, ending).open("wb") for ending in SHARD_SUFFIXES}
    try:
        for batch in _batches(read_documents(source, found, part, tally)):
            sides = [split_of(source, part, document) for document in batch]
            files["sides"].write(bytes(sides))
            files["sizes"].write(
                np.array([len(d.text.encode()) for d in batch], dtype="<i8").tobytes()
            )
            for document, is_out in zip(batch, sides, strict=True):
                if is_out:
                    files["held_out"].write(json.dumps(document.text).encode() + b"\n")
                if signer is not None:
                    files["signatures"].write(signer.sign(document.text).tobytes())
            ids = encoder.encode(
                [d.text for d, is_out in zip(batch, sides, strict=True) if not is_out]
            )
            files["lengths"].write(np.array([len(i) for i in ids], dtype="<i4").tobytes())
            for document_ids in ids:
                files["tokens"].write(array(dtype.char, document_ids).tobytes())
    finally:
        for file in files.values():
            file.close()
    write_json(_shard_file(work, part, "json"), vars(tally))


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        if batch and (len(batch) == BATCH_DOCUMENTS or size + len(document.text) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch


def _join_shards(
    work: Path, source: Source, cut: list[SourceShard], dtype: np.dtype[Any], origin: dict[str, str]
) -> None:
    """Join the parts, without the near-duplicates, into the files of a store, and clear them away."""
    tally = RecordCounts()
    for part in cut:
        record = json.loads(_shard_file(work, part, "json").read_text())
        tally.add(
            RecordCounts(
                **record | {name: Counter(record[name]) for name in ("left_out", "used_keys")}
            )
        )
    check_bad_records(source, tally)
    repeated = _find_near_duplicates(work, cut) if source.near_duplicates == "drop" else None
    counts = {name: Counter(documents=0, bytes=0) for name in SPLITS}
    seen = dropped = 0
    with (
        (work / "train.bin").open("wb") as tokens,
        (work / "lengths").open("wb") as lengths,
        (work / "held_out.jsonl").open("wb") as held_out,
    ):
        for part in cut:
            sides, sizes, own = (
                _read_array(work, part, ending) for ending in ("sides", "sizes", "lengths")
            )
            keep = (
                np.ones(len(sides), dtype=bool)
                if repeated is None
                else ~repeated[seen : seen + len(sides)]
            )
            seen, dropped = seen + len(sides), dropped + int((~keep).sum())
            for number, name in enumerate(SPLITS):
                mine = keep & (sides == number)
                counts[name].update(documents=int(mine.sum()), bytes=int(sizes[mine].sum()))
            _copy_documents(
                _shard_file(work, part, "tokens"),
                tokens,
                own.astype(np.int64) * dtype.itemsize,
                keep[sides == 0],
            )
            lengths.write(own[keep[sides == 0]].tobytes())
            with _shard_file(work, part, "held_out").open("rb") as lines:
                held_out.writelines(
                    line for line, wanted in zip(lines, keep[sides == 1], strict=True) if wanted
                )
    with (work / "train.idx").open("wb") as index:
        write_index(
            index, dtype, counts["train"]["documents"], partial(_read_lengths, work / "lengths")
        )
    total = (work / "train.bin").stat().st_size // dtype.itemsize
    counts["train"]["tokens"] = total
    write_json(
        work / "store.json",
        {"format": FORMAT, **origin, **vars(tally), "near_duplicates": dropped, **counts},
    )
    own_files = [
        _shard_file(work, part, ending) for part in cut for ending in (*SHARD_SUFFIXES, "json")
    ]
    for file in (*own_files, work / "lengths", work / SIGNATURES_FILE):
        file.unlink(missing_ok=True)


def _read_array(work: Path, part: SourceShard, ending: str) -> np.ndarray:
    return np.fromfile(
        _shard_file(work, part, ending), {"sides": "u1", "sizes": "<i8", "lengths": "<i4"}[ending]
    )


def _find_near_duplicates(work: Path, cut: list[SourceShard]) -> np.ndarray:
    with (work / SIGNATURES_FILE).open("wb") as together:
        for part in cut:
            with _shard_file(work, part, "signatures").open("rb") as signatures:
                shutil.copyfileobj(signatures, together, 1 << 20)
    count = (work / SIGNATURES_FILE).stat().st_size // DISK_BYTES
    if not count:
        return np.zeros(0, dtype=bool)
    return near_duplicates(np.memmap(work / SIGNATURES_FILE, "<u4", "r", shape=(count, MINIMA)))


def _copy_documents(source: Path, target: BinaryIO, lengths: np.ndarray, keep: np.ndarray) -> None:
    """Append the documents to keep, of `lengths` bytes each, to `target`; neighbours at once."""
    ends = np.cumsum(lengths)
    edges = np.flatnonzero(
        np.diff(keep, prepend=False, append=False)
    )  # where runs of documents to keep begin and end
    with source.open("rb") as content:
        for first, last in edges.reshape(-1, 2):
            begin = int(ends[first] - lengths[first])
            content.seek(begin)
            left = int(ends[last - 1]) - begin
            while left:
                left -= target.write(content.read(min(left, 1 << 20)))


def _read_lengths(lengths: Path) -> Iterator[np.ndarray]:
    with lengths.open("rb") as file:
        while len(piece := np.fromfile(file, "<i4", CHUNK)):
            yield piece
