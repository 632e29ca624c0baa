"""Build the token store of a source: shard by shard, on all cores, in bounded memory, resumable."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sweepcp.config.source import Source
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.encoding import Encoder
from sweepcp.data.join import DOCUMENT, SHARD_SUFFIXES, join_shards, shard_file
from sweepcp.data.near_duplicates import Signer
from sweepcp.data.records import split_into_shards
from sweepcp.data.shards import SourceShard
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.data.token_store import HASH, SPLITS, TokenStore, store_path, token_dtype
from sweepcp.errors import InvalidInput
from sweepcp.util.files import check_cache, naming_errors, write_json
from sweepcp.util.locks import waiting_lock
from sweepcp.util.parallel import parallel_map
from sweepcp.util.progress import Progress

BATCH_DOCUMENTS = 256
"""Documents tokenised at once, at most."""
BATCH_CHARACTERS = 1 << 20
"""Characters tokenised at once, at most, unless one document has more."""


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
    check_cache()
    # Another process may be building the same store.
    with waiting_lock(path.with_name(f".{path.name}.lock")):
        if not (path / "store.json").exists():
            work = path.with_name(f".building-{path.name}")
            encoder = make_encoder()
            with naming_errors(work):
                shards = _build_shards(
                    source, files, encoder, work, progress=progress, address=address
                )
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
            dtype = token_dtype(encoder.vocab_size)
            with naming_errors(work):
                join_shards(work, source, shards, dtype=dtype, origin=origin)
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
    missing = [shard for shard in shards if not shard_file(work, shard, "json").exists()]
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
    signer = Signer() if source.near_duplicates == "drop" else None
    with ExitStack() as stack:
        outputs: dict[str, BinaryIO] = {}
        for suffix in SHARD_SUFFIXES:
            file = shard_file(work, shard, suffix).open("wb")
            outputs[suffix] = stack.enter_context(file)
        for batch in _batches(read_documents(source, files, shard, counts)):
            if signer is not None:
                for document in batch:
                    outputs["signatures"].write(signer.sign(document.text).tobytes())
            splits = [split_of(source, shard, document) for document in batch]
            _write_batch(batch, splits, encoder, outputs)
    write_json(shard_file(work, shard, "json"), vars(counts))


def _write_batch(
    batch: list[Document], splits: list[int], encoder: Encoder, outputs: dict[str, BinaryIO]
) -> None:
    """Append documents to the files of a shard, by suffix."""
    dtype = token_dtype(encoder.vocab_size)
    # Held-out text is encoded, too, to know whether its tokens cover it.
    encoded = encoder.encode_text([document.text for document in batch])
    rows = []
    for document, split, token_ids in zip(batch, splits, encoded, strict=True):
        size = len(document.text.encode())
        covered = size - encoder.lost_bytes(document.text, token_ids)
        count = 0
        if SPLITS[split] == "train":
            marked = [*encoder.prefix, *token_ids, *encoder.suffix]
            outputs["tokens"].write(np.array(marked, dtype=dtype).tobytes())
            count = len(marked)
        else:
            outputs["held_out"].write(json.dumps(document.text).encode() + b"\n")
        document_hash = int.from_bytes(document.sha256[: HASH.itemsize], "little")
        rows.append((split, size, covered, document_hash, count))
    outputs["documents"].write(np.array(rows, dtype=DOCUMENT).tobytes())


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
