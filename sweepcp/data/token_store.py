r"""The token store of a source: tokenised once, kept in the cache, memory-mapped by every trial.

A store is a folder. `train.bin` and `train.idx` are an indexed data set of Megatron-LM (version 1
of its format), so Megatron-LM, and whatever reads its data, takes `<folder>/train` as a data path:

    train.bin   the tokens of the training documents, one after the other, uint16 or int32
    train.idx   b"MMIDIDX\0\0", u64 version 1, u8 type (8: uint16, 4: int32), u64 sequences,
                u64 documents + 1; then per sequence its length (i32), its offset in bytes (i64),
                and the first sequence of each document (i64). Little-endian; every document is one
                sequence

Each document is preceded by the tokenizer's BOS (or by its EOS if it has no BOS) and followed by
its EOS; the documents are in random order. `held_out.jsonl` has the text of the held-out documents,
which is tokenised when it is scored. `train.hashes` and `held_out.hashes` have the first 8 bytes of
the SHA-256 of each document's text, as sorted u64. `store.json` has the counts, per split also the
bytes that tokens cover, and the SHA-256 of the other files; it is written last.
"""

import hashlib
import heapq
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from sweepcp.errors import InvalidInput, located
from sweepcp.util.files import cache_dir
from sweepcp.util.json_values import digest
from sweepcp.util.records import Record, check_file, read_bytes, read_json_lines, read_record

FORMAT = 4
"""Version of the store; part of the folder's name, so a store of another version is rebuilt."""
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
CODES = {dtype: code for code, dtype in TYPES.items()}
CHUNK = 1 << 20
"""Documents whose index is read and written at once."""
SPLITS = ("train", "held_out")
HASH = np.dtype("<u8")
"""The first 8 bytes of the SHA-256 of a document's text."""
HASHED_FILES = ("train.bin", "train.idx", "held_out.jsonl")
"""Files whose SHA-256 is in `store.json`."""


@dataclass(frozen=True)
class IndexedTokens:
    """The training tokens of a store, memory-mapped."""

    tokens: np.ndarray
    """Shape (tokens,)."""
    offsets: np.ndarray
    """Where each document starts, in bytes; shape (documents,)."""

    def document_starts(self, first: int, *, length: int) -> list[int]:
        """Return where documents start among `length` tokens from `first` on, relative to it."""
        size = self.tokens.itemsize
        low = bisect_left(self.offsets, first * size)
        # No document is empty, so at most `length` of them start in the range.
        high = min(len(self.offsets), low + length)
        high = bisect_left(self.offsets, (first + length) * size, low, high)
        return [int(offset) // size - first for offset in self.offsets[low:high]]


NonNegativeInt = Annotated[int, Field(ge=0)]


class SplitCounts(Record):
    """What a split of a store holds."""

    documents: NonNegativeInt
    """Number of documents."""
    bytes: NonNegativeInt
    """UTF-8 bytes of their text."""
    covered: NonNegativeInt
    """Those of the bytes that have tokens."""


class TrainCounts(SplitCounts):
    """What the training split holds."""

    tokens: NonNegativeInt
    """Number of tokens, with those around each document."""


class StoreRecord(Record):
    """`store.json`."""

    format: Literal[4]
    """Version of the store."""
    fingerprint: str
    """Of the files of the source, and of how they are read."""
    tokenizer: str
    """Id of the tokenizer."""
    records: NonNegativeInt
    """Records that were read."""
    left_out: dict[str, int]
    """Reason → documents left out by the filters."""
    bad: NonNegativeInt
    """Records that cannot be used."""
    examples: list[str]
    """The first of them, with their locations."""
    used_keys: dict[str, int]
    """Key of the template → records that have it."""
    near_duplicates: NonNegativeInt
    """Documents left out because they repeat another one."""
    train: TrainCounts
    """The training split."""
    held_out: SplitCounts
    """The held-out split."""
    sha256: dict[str, str]
    """File → SHA-256."""

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        if set(self.sha256) != set(HASHED_FILES):
            raise ValueError(f"the SHA-256 of {', '.join(HASHED_FILES)}")
        return self


@dataclass(frozen=True)
class TokenStore:
    """The tokens of one source on disk, or a random fraction of them."""

    path: Path
    source: str
    fraction: float = 1.0
    """Fraction of the training sequences that a run may read.

    Below 1 it makes a short run repeat the source as often as a longer run would.
    """

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The content of `store.json`: a `StoreRecord` as JSON.

        Raises:
            InvalidInput: The file is missing or corrupt.
        """
        return read_record(StoreRecord, self.path / "store.json", fix=self._fix).model_dump()

    @property
    def _fix(self) -> str:
        return _rebuild(self.path)

    @property
    def tokens(self) -> int:
        """Number of training tokens in the whole store."""
        return int(self.meta["train"]["tokens"])

    def train(self) -> IndexedTokens:
        """Memory-map the training tokens.

        Raises:
            InvalidInput: They are missing or truncated, or are not as many as `store.json` states.
        """
        indexed = read_indexed_tokens(self.path / "train")
        if indexed.tokens.size != self.tokens:
            raise InvalidInput(
                file=self.path / "store.json",
                key="train.tokens",
                found=self.tokens,
                rule=f"the {indexed.tokens.size} tokens of train.bin",
                fix=self._fix,
            )
        return indexed

    def document_hashes(self, split: str) -> np.ndarray:
        """Return the hashes of the documents of a split, sorted, uint64.

        Raises:
            InvalidInput: They are missing, or are not as many as `store.json` states.
        """
        path = self.path / f"{split}.hashes"
        content = read_bytes(path, fix=self._fix)
        expected = self.meta[split]["documents"] * HASH.itemsize
        if len(content) != expected:
            rule = f"{expected} bytes, for the documents that store.json states"
            raise InvalidInput(
                file=path, key="the length", found=len(content), rule=rule, fix=self._fix
            )
        return np.frombuffer(content, HASH)

    def held_out_documents(self) -> Iterator[str]:
        """Yield the text of the held-out documents, in the order of the store.

        Raises:
            InvalidInput: The file is missing or corrupt.
        """
        for place, _, text in read_json_lines(self.path / "held_out.jsonl", fix=self._fix):
            if not isinstance(text, str):
                rule = "the text of a document, as a JSON string"
                raise InvalidInput(file=place, key="the line", found=text, rule=rule, fix=self._fix)
            yield text

    def sample_held_out(self, count: int | None) -> list[str]:
        """Return a sample of the held-out documents that is the same in every run.

        Args:
            count: Size of the sample; None for all documents, in the order of the store.

        Returns:
            The text of the documents with the smallest SHA-256, in ascending order of it; fewer
            than `count` if the store has fewer.
        """
        documents = list(self.held_out_documents())
        if count is None:
            return documents
        return heapq.nsmallest(count, documents, key=_sha256)


def store_path(*, fingerprint: str, tokenizer_id: str) -> Path:
    """Return the folder of a source's store in the cache, whether or not it has been built."""
    return cache_dir() / "stores" / digest([FORMAT, fingerprint, tokenizer_id])


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest type for token ids below `vocab_size`; the format has no uint32."""
    return TYPES[8] if vocab_size <= 1 << 16 else TYPES[4]


def read_indexed_tokens(prefix: Path) -> IndexedTokens:
    """Memory-map the indexed data set `<prefix>.bin` and `<prefix>.idx`.

    Raises:
        InvalidInput: The files are missing, of another format, truncated or corrupt.
    """
    index, content = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
    fix = _rebuild(prefix.parent)
    for path in (index, content):
        check_file(path, fix=fix)
    with located(index):
        dtype, sequences = _read_header(index, fix)
    if not sequences:
        return IndexedTokens(np.zeros(0, dtype), np.zeros(0, "<i8"))
    lengths = np.memmap(index, "<i4", "r", HEADER.size, (sequences,))
    offsets = np.asarray(np.memmap(index, "<i8", "r", HEADER.size + 4 * sequences, (sequences,)))
    end = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize
    size = content.stat().st_size
    if size != end:
        rule = f"{end} bytes, as {index.name} states"
        raise InvalidInput(file=content, key="the length", found=size, rule=rule, fix=fix)
    # Slicing a plain array is several times as fast as slicing a np.memmap.
    return IndexedTokens(np.asarray(np.memmap(content, dtype, "r")), offsets)


def write_index(
    file: BinaryIO, dtype: np.dtype[Any], count: int, lengths: Callable[[], Iterable[np.ndarray]]
) -> None:
    """Write the index of an indexed data set.

    Args:
        file: The `.idx` file.
        dtype: Type of the tokens in the `.bin` file.
        count: Number of documents.
        lengths: Called twice; yields the documents' lengths in tokens, in arrays of any size.
    """
    file.write(HEADER.pack(MAGIC, 1, CODES[dtype], count, count + 1))
    for chunk in lengths():
        file.write(chunk.astype("<i4").tobytes())
    offset = 0
    for chunk in lengths():
        ends = offset + np.cumsum(chunk, dtype=np.int64) * dtype.itemsize
        starts = ends - chunk.astype(np.int64) * dtype.itemsize
        file.write(starts.astype("<i8").tobytes())
        if len(ends):
            offset = int(ends[-1])
    for first in range(0, count + 1, CHUNK):
        last = min(first + CHUNK, count + 1)
        file.write(np.arange(first, last, dtype="<i8").tobytes())


def _read_header(index: Path, fix: str) -> tuple[np.dtype[Any], int]:
    """Return the token type and the number of sequences of an index whose size fits them."""
    with index.open("rb") as file:
        head = file.read(HEADER.size)
    magic, version, code, sequences, documents = HEADER.unpack(head.ljust(HEADER.size, b"\0"))
    if magic != MAGIC or version != 1 or code not in TYPES:
        rule = "an index of Megatron-LM, version 1, uint16 or int32"
        raise InvalidInput(key="the header", found=head[:9], rule=rule, fix=fix)
    size = index.stat().st_size
    if documents != sequences + 1 or size != HEADER.size + 20 * sequences + 8:
        rule = f"an index of {sequences} documents"
        raise InvalidInput(key="the length", found=size, rule=rule, fix=fix)
    return TYPES[code], sequences


def _rebuild(store: Path) -> str:
    return f"remove {store}; the next command that needs the store rebuilds it"


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
