"""The token store of a source: tokenised once, kept in the cache, memory-mapped by every trial.

A store is a folder. `train.bin` and `train.idx` are an indexed data set of Megatron-LM (version 1 of its format), so
that Megatron-LM, and what reads its data, takes `<folder>/train` as a data path:

    train.bin   the tokens of the training documents in a row, uint16 or int32
    train.idx   b"MMIDIDX\0\0", u64 version 1, u8 type (8: uint16, 4: int32), u64 sequences, u64 documents + 1; then
                per sequence its length (i32), its offset in bytes (i64), and the first sequence of each document (i64).
                Little-endian; every document is one sequence

Each document stands between the tokenizer's BOS (or EOS, where it has no BOS) and its EOS. `held_out.jsonl` has the
held-out texts, which are tokenised when they are scored. `store.json` has the counts; it is written last.
"""

import json
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sweepcp.errors import InvalidInput
from sweepcp.util.files import cache_dir
from sweepcp.util.json_values import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


FORMAT = 3
MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
TYPES: dict[int, np.dtype[Any]] = {8: np.dtype("<u2"), 4: np.dtype("<i4")}
CODES = {dtype: code for code, dtype in TYPES.items()}
CHUNK = 1 << 20
"""Documents whose index is written at a time."""


def token_dtype(size: int) -> np.dtype[Any]:
    """The smallest type of the format for token ids below `size`; the format has no uint32."""
    return TYPES[8] if size <= 1 << 16 else TYPES[4]


@dataclass(frozen=True)
class IndexedTokens:
    """The training tokens of a store, memory-mapped."""

    tokens: np.ndarray
    """Shape (tokens,)."""
    offsets: np.ndarray
    """Where each document begins, in bytes; shape (documents,)."""

    def begins(self, first: int, length: int) -> list[int]:
        """At which of the tokens from `first` to `first + length - 1` a document begins, counted from `first`."""
        size = self.tokens.itemsize
        low = bisect_left(self.offsets, first * size)
        high = bisect_left(
            self.offsets, (first + length) * size, low, min(len(self.offsets), low + length)
        )
        return [int(offset) // size - first for offset in self.offsets[low:high]]


def read_indexed_tokens(prefix: Path) -> IndexedTokens:
    """`<prefix>.bin` and `<prefix>.idx`, memory-mapped; `BadInput` when they are of another format or torn."""
    index, content = prefix.with_suffix(".idx"), prefix.with_suffix(".bin")
    with index.open("rb") as file:
        head = file.read(HEADER.size)
    magic, version, code, sequences, documents = HEADER.unpack(head.ljust(HEADER.size, b"\0"))
    fix = f"remove {index.parent}; the next command builds it again"
    if magic != MAGIC or version != 1 or code not in TYPES:
        raise InvalidInput(
            file=index,
            key="the header",
            found=head[:9],
            rule="an index of Megatron-LM, version 1, uint16 or int32",
            fix=fix,
        )
    if documents != sequences + 1 or index.stat().st_size != HEADER.size + 20 * sequences + 8:
        raise InvalidInput(
            file=index,
            key="the length",
            found=index.stat().st_size,
            rule=f"an index of {sequences} documents",
            fix=fix,
        )
    dtype = TYPES[code]
    if not sequences:
        return IndexedTokens(np.zeros(0, dtype), np.zeros(0, "<i8"))
    lengths = np.memmap(index, "<i4", "r", HEADER.size, (sequences,))
    offsets = np.asarray(np.memmap(index, "<i8", "r", HEADER.size + 4 * sequences, (sequences,)))
    end = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize
    if content.stat().st_size != end:
        raise InvalidInput(
            file=content,
            key="the length",
            found=content.stat().st_size,
            rule=f"{end} bytes, says its index",
            fix=fix,
        )
    return IndexedTokens(
        np.asarray(np.memmap(content, dtype, "r")), offsets
    )  # plain arrays are sliced faster


def write_index(
    file: BinaryIO, dtype: np.dtype[Any], count: int, lengths: Callable[[], Iterable[np.ndarray]]
) -> None:
    """Write the index of `count` documents; `lengths` gives their tokens in pieces, and is called twice."""
    file.write(HEADER.pack(MAGIC, 1, CODES[dtype], count, count + 1))
    for piece in lengths():
        file.write(piece.astype("<i4").tobytes())
    offset = 0
    for piece in lengths():
        ends = offset + np.cumsum(piece, dtype=np.int64) * dtype.itemsize
        file.write((ends - piece.astype(np.int64) * dtype.itemsize).astype("<i8").tobytes())
        offset = int(ends[-1]) if len(ends) else offset
    for first in range(0, count + 1, CHUNK):
        file.write(np.arange(first, min(first + CHUNK, count + 1), dtype="<i8").tobytes())


@dataclass(frozen=True)
class TokenStore:
    """One source's tokens on disk, or a random part of them."""

    path: Path
    source: str
    part: float = 1.0
    """Share of the training sequences that a run may see: less than 1 makes it repeat them as a longer run would."""

    @cached_property
    def meta(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "store.json").read_text(encoding="utf-8"))
        return content

    @property
    def tokens(self) -> int:
        """Training tokens, of the whole store."""
        return int(self.meta["train"]["tokens"])

    def train(self) -> IndexedTokens:
        """The training tokens."""
        return read_indexed_tokens(self.path / "train")

    def held_out_texts(self) -> Iterator[str]:
        """The held-out documents, in the order of the store."""
        with (self.path / "held_out.jsonl").open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def store_path(fingerprint: str, tokenizer_id: str) -> Path:
    """Where the store of a source with this fingerprint, read with this tokenizer, is or will be."""
    return cache_dir() / "stores" / digest([FORMAT, fingerprint, tokenizer_id])


def boundary_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """What stands before and after a document: BOS or else EOS, and EOS. Either may be missing, not both."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = bos if bos is not None else eos
    if start is None:
        raise ValueError(
            "the tokenizer has neither a BOS nor an EOS token to mark where documents begin"
        )
    return [start], [] if eos is None else [eos]
