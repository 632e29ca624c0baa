"""The token store of a source: tokenised once, kept in the cache, memory-mapped by every trial."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweepcp.data.sources import Source, read
from sweepcp.files import cache_dir, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 2
BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class Store:
    """One source's tokens on disk.

    `store.json` holds the counts. `tokens.npy` has the training documents in a row, each from the tokenizer's BOS (or
    EOS, where it has no BOS) to its EOS; `starts.npy` has the index at which each begins, and the total.
    `held_out.jsonl` has the held-out texts, which are tokenised when they are scored.
    """

    path: Path
    source: str

    @cached_property
    def meta(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.path / "store.json").read_text(encoding="utf-8"))
        return content

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return int(self.meta["train"]["tokens"])

    def train(self) -> tuple[np.ndarray, np.ndarray]:
        """Training tokens, shape (tokens,), memory-mapped, and document starts, shape (documents + 1,)."""
        return np.load(self.path / "tokens.npy", mmap_mode="r"), np.load(self.path / "starts.npy")

    def held_out_texts(self) -> Iterator[str]:
        """The held-out documents, in the order of the store."""
        with (self.path / "held_out.jsonl").open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def store_path(fingerprint: str, tokenizer_id: str) -> Path:
    """Where the store of a source with this fingerprint, read with this tokenizer, is or will be."""
    return cache_dir() / "stores" / digest([FORMAT, fingerprint, tokenizer_id])


def build_store(
    source: Source,
    paths: list[Path],
    fingerprint: str,
    tokenizer_id: str,
    load_tokenizer: Callable[[], "PreTrainedTokenizerBase"],
) -> Store:
    """The store of a source, from the cache or built; complete or absent, never half."""
    path = store_path(fingerprint, tokenizer_id)
    if not (path / "store.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=".building-"))
        try:
            _write(work, source, read(source, paths), load_tokenizer())
            os.replace(work, path)
        except OSError:
            if not (path / "store.json").exists():  # else another process was faster, with the same result
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return Store(path, source.name)


def _write(folder: Path, source: Source, documents: Iterable[str], tokenizer: "PreTrainedTokenizerBase") -> None:
    dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
    start, end = boundary_tokens(tokenizer)
    pieces: list[np.ndarray] = []
    counts = {split: {"documents": 0, "bytes": 0} for split in ("train", "held_out")}
    with (folder / "held_out.jsonl").open("w", encoding="utf-8") as held_out:
        for batch in _batched(iter(documents), BATCH_DOCUMENTS):
            kept = []
            for text in batch:
                split = "held_out" if is_held_out(text, source.held_out) else "train"
                counts[split]["documents"] += 1
                counts[split]["bytes"] += len(text.encode())
                if split == "train":
                    kept.append(text)
                else:
                    held_out.write(json.dumps(text) + "\n")
            encoded = tokenizer(kept, add_special_tokens=False)["input_ids"] if kept else []
            pieces += [np.array(start + ids + end, dtype=dtype) for ids in encoded]
    starts = np.cumsum([0] + [len(p) for p in pieces], dtype=np.int64)
    np.save(folder / "starts.npy", starts)
    np.save(folder / "tokens.npy", np.concatenate(pieces) if pieces else np.zeros(0, dtype))
    meta = {"format": FORMAT, "source": source.name, **counts}
    meta["train"] = {**counts["train"], "tokens": int(starts[-1])}
    (folder / "store.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _batched(documents: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(islice(documents, size)):
        yield batch


def boundary_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """What stands before and after a document: BOS or else EOS, and EOS. Either may be missing, not both."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    start = bos if bos is not None else eos
    if start is None:
        raise ValueError("the tokenizer has neither a BOS nor an EOS token to mark where documents begin")
    return [start], [] if eos is None else [eos]


def is_held_out(text: str, share: float) -> bool:
    """Whether a document is held out: its hash decides, so it keeps its side when the corpus grows."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") < share * 2**64
