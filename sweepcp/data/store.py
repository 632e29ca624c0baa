"""The token store of a source: tokenised once, kept in the cache, memory-mapped by every trial."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
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

FORMAT = 1
BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class Store:
    """One source's tokens on disk.

    `store.json` holds the counts; for each of the splits `train` and `held_out` there are `<split>.tokens.npy`, all
    documents in a row, and `<split>.starts.npy`, the index at which each begins plus the total. Every document begins
    with the tokenizer's BOS (or EOS, where it has no BOS); a training document ends with EOS. `held_out.jsonl` has
    the held-out texts.
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

    def split(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, shape (tokens,), memory-mapped, and starts, shape (documents + 1,)."""
        return (
            np.load(self.path / f"{name}.tokens.npy", mmap_mode="r"),
            np.load(self.path / f"{name}.starts.npy"),
        )

    def held_out_texts(self) -> list[str]:
        """The held-out documents, in the order of the store."""
        with (self.path / "held_out.jsonl").open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def store_path(fingerprint: str, tokenizer_id: str) -> Path:
    """Where the store of a source with this fingerprint, read with this tokenizer, is or will be."""
    return cache_dir() / "stores" / digest([FORMAT, fingerprint, tokenizer_id])


def build_store(
    source: Source, paths: list[Path], fingerprint: str, tokenizer: "PreTrainedTokenizerBase", tokenizer_id: str
) -> Store:
    """The store of a source, from the cache or built; complete or absent, never half."""
    path = store_path(fingerprint, tokenizer_id)
    if not (path / "store.json").exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=path.parent, prefix=".building-"))
        try:
            _write(work, source, read(source, paths), tokenizer)
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
    splits: dict[str, list[np.ndarray]] = {"train": [], "held_out": []}
    sizes = {"train": 0, "held_out": 0}
    with (folder / "held_out.jsonl").open("w", encoding="utf-8") as texts:
        for batch in _batched(iter(documents), BATCH_DOCUMENTS):
            for text, ids in zip(batch, tokenizer(batch, add_special_tokens=False)["input_ids"], strict=True):
                split = "held_out" if is_held_out(text, source.held_out) else "train"
                tail = end if split == "train" else []
                splits[split].append(np.array(start + ids + tail, dtype=dtype))
                sizes[split] += len(text.encode())
                if split == "held_out":
                    texts.write(json.dumps(text) + "\n")
    meta: dict[str, Any] = {"format": FORMAT, "source": source.name}
    for split, pieces in splits.items():
        starts = np.cumsum([0] + [len(p) for p in pieces], dtype=np.int64)
        np.save(folder / f"{split}.starts.npy", starts)
        np.save(folder / f"{split}.tokens.npy", np.concatenate(pieces) if pieces else np.zeros(0, dtype))
        meta[split] = {"documents": len(pieces), "tokens": int(starts[-1]), "bytes": sizes[split]}
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
