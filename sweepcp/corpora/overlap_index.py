"""Texts that are trained on and hold what is measured with: benchmark items and held-out documents."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sweepcp.data.near_duplicates import ngrams, split_words

RUN_WORDS = 8
"""Runs of so many words are compared; shorter items cannot be checked."""
OVERLAP_THRESHOLD = 0.5
"""An item counts as held by a document when so much of its runs stands in it."""


class SuiteItem(NamedTuple):
    """Something that a suite measures with."""

    member: str
    id: str
    text: str


class Overlap(NamedTuple):
    """A document that holds an item."""

    member: str
    item: str
    overlap: float
    """Share of the item's runs that stand in the document."""


@dataclass(frozen=True)
class OverlapIndex:
    """The runs of many items, on disk and memory-mapped, so that processes share it."""

    path: Path

    def find(self, text: str) -> list[Overlap]:
        """The items that a text holds, by their order."""
        runs, owner, sizes, names = _load_index(self.path)
        hashes = _run_hashes(text)
        low, high = np.searchsorted(runs, hashes, "left"), np.searchsorted(runs, hashes, "right")
        found = np.flatnonzero(high > low)
        if not len(found):
            return []
        owned = np.concatenate([owner[low[i] : high[i]] for i in found])
        items, counts = np.unique(owned, return_counts=True)
        shares = counts / sizes[items]
        return [
            Overlap(names[i][0], names[i][1], float(s))
            for i, s in zip(items.tolist(), shares, strict=True)
            if s >= OVERLAP_THRESHOLD
        ]


def write_overlap_index(path: Path, items: Iterable[SuiteItem]) -> tuple[OverlapIndex, int, int]:
    """Index items at `path` (a new folder); also how many there are, and how many are too short to be checked."""
    names: list[tuple[str, str]] = []
    runs: list[np.ndarray] = []
    short = 0
    for item in items:
        if len(split_words(item.text)) < RUN_WORDS:
            short += 1
            continue
        names.append((item.member, item.id))
        runs.append(_run_hashes(item.text))
    sizes = np.array([len(r) for r in runs], dtype=np.int32)
    together = np.concatenate(runs) if runs else np.zeros(0, dtype=np.uint64)
    order = np.argsort(together)
    path.mkdir(parents=True)
    np.save(path / "runs.npy", together[order])
    np.save(path / "owner.npy", np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)[order])
    np.save(path / "sizes.npy", sizes)
    (path / "names.tsv").write_text(
        "".join(f"{member}\t{id_}\n" for member, id_ in names), encoding="utf-8"
    )
    return OverlapIndex(path), len(names) + short, short


@functools.lru_cache(maxsize=1)
def _load_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[str]]]:
    arrays = (np.load(path / f"{name}.npy", mmap_mode="r") for name in ("runs", "owner", "sizes"))
    runs, owner, sizes = arrays
    return (
        runs,
        owner,
        sizes,
        [line.split("\t") for line in (path / "names.tsv").read_text("utf-8").splitlines()],
    )


def _run_hashes(text: str) -> np.ndarray:
    """Hashes of the different runs of words in a text."""
    return np.unique(np.fromiter(_hash_runs(text), dtype=np.uint64))


def _hash_runs(text: str) -> Iterator[int]:
    from xxhash import xxh64_intdigest

    return (xxh64_intdigest(run.encode()) for run in ngrams(split_words(text), RUN_WORDS))
