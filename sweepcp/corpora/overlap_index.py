"""Contamination index: finds documents that contain what the suites measure with.

Benchmark items and held-out documents are cut into runs of `RUN_WORDS` words, and the hashes of the
runs are sorted into one array. A document is looked up by binary search of its own hashes, so the
cost per document does not depend on how many items there are.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sweepcp.data.near_duplicates import ngrams, split_words

RUN_WORDS = 8
"""Words in a run; shorter items cannot be searched for."""
OVERLAP_THRESHOLD = 0.5
"""Share of an item's runs in a document from which on the document counts as containing it."""


class SuiteItem(NamedTuple):
    """An item or a held-out document of a suite member."""

    member: str
    id: str
    text: str


class Overlap(NamedTuple):
    """An item that a document contains."""

    member: str
    item: str
    overlap: float
    """Share of the item's runs that occur in the document."""


@dataclass(frozen=True)
class OverlapIndex:
    """The runs of all items, on disk and memory-mapped, so that processes share them."""

    path: Path

    def find(self, text: str) -> list[Overlap]:
        """Return the items that a text contains, in the order in which they were indexed."""
        runs, owners, sizes, names = _load_index(self.path)
        hashes = _run_hashes(text)
        # A run may occur in several items: its entries are neighbours in the sorted array.
        first = np.searchsorted(runs, hashes, "left")
        last = np.searchsorted(runs, hashes, "right")
        matches = np.flatnonzero(last > first)
        if not len(matches):
            return []
        matched_owners = np.concatenate([owners[first[i] : last[i]] for i in matches])
        # Hashes are distinct per text and per item, so the count of an owner is the number of its
        # runs that occur in the text.
        items, counts = np.unique(matched_owners, return_counts=True)
        shares = counts / sizes[items]
        overlaps: list[Overlap] = []
        for item, share in zip(items.tolist(), shares, strict=True):
            if share >= OVERLAP_THRESHOLD:
                member, item_id = names[item]
                overlaps.append(Overlap(member, item_id, float(share)))
        return overlaps


def write_overlap_index(path: Path, items: Iterable[SuiteItem]) -> tuple[OverlapIndex, int, int]:
    """Write the index of items to a new folder.

    Returns:
        The index, the number of items, and how many of them are too short to be searched for.
    """
    names: list[tuple[str, str]] = []
    runs: list[np.ndarray] = []
    too_short = 0
    for item in items:
        if len(split_words(item.text)) < RUN_WORDS:
            too_short += 1
            continue
        names.append((item.member, item.id))
        runs.append(_run_hashes(item.text))
    sizes = np.array([len(hashes) for hashes in runs], dtype=np.int32)
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    all_runs = np.concatenate(runs) if runs else np.zeros(0, dtype=np.uint64)
    order = np.argsort(all_runs)
    path.mkdir(parents=True)
    np.save(path / "runs.npy", all_runs[order])
    np.save(path / "owner.npy", owners[order])
    np.save(path / "sizes.npy", sizes)
    lines = [f"{member}\t{item_id}\n" for member, item_id in names]
    (path / "names.tsv").write_text("".join(lines), encoding="utf-8")
    return OverlapIndex(path), len(names) + too_short, too_short


@lru_cache(maxsize=1)
def _load_index(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[str]]]:
    """Return sorted run hashes, the item of each, the runs per item, and member and id per item."""
    runs = np.load(path / "runs.npy", mmap_mode="r")
    owners = np.load(path / "owner.npy", mmap_mode="r")
    sizes = np.load(path / "sizes.npy", mmap_mode="r")
    lines = (path / "names.tsv").read_text("utf-8").splitlines()
    return runs, owners, sizes, [line.split("\t") for line in lines]


def _run_hashes(text: str) -> np.ndarray:
    """Return the sorted hashes of the distinct runs of words in a text, uint64."""
    from xxhash import xxh64_intdigest

    runs = ngrams(split_words(text), RUN_WORDS)
    hashes = (xxh64_intdigest(run.encode()) for run in runs)
    return np.unique(np.fromiter(hashes, dtype=np.uint64))
