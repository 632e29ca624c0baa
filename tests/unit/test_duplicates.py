"""Near-duplicates and overlaps with benchmarks: planted ones are found, and hardly any others."""

import random
from pathlib import Path

import numpy as np
import pytest

from sweepcp.config.source import PythonText
from sweepcp.corpora.overlap_index import SuiteItem, write_overlap_index
from sweepcp.data.near_duplicates import (
    MINIMA,
    Signer,
    find_near_duplicates,
    ngrams,
    split_words,
)
from sweepcp.data.python_text import find_modules, module_documents

SIGNER = Signer()


@pytest.fixture(scope="module")
def real() -> list[str]:
    """Distinct real English paragraphs, of 30 words and more, from documentation of packages."""
    text = PythonText(part="docs", packages=("numpy", "stdlib"))
    pages = [page for path in find_modules(text) for page in module_documents(text, path)]
    return sorted({p for page in pages for p in page.split("\n\n") if len(split_words(p)) >= 30})


def flags(texts: list[str]) -> np.ndarray:
    return find_near_duplicates(np.stack([SIGNER.sign(t) for t in texts]))


def resemblance(one: set[str], two: set[str]) -> float:
    return len(one & two) / len(one | two)


def test_words_and_runs_of_words():
    assert split_words("It's RED, isn't it?") == ["it", "s", "red", "isn", "t", "it"]
    assert split_words("東京は ok") == ["東", "京", "は", "ok"]
    assert ngrams(["a", "b", "c"], 2) == ["a b", "b c"]
    assert ngrams(["a"], 2) == ["a"]


def test_signatures_agree_as_often_as_documents_resemble():
    rng = random.Random(0)
    base = [f"w{rng.randrange(5000)}" for _ in range(400)]
    for changed in (10, 40):
        other = [*base[:-changed], *(f"v{i}" for i in range(changed))]
        one, two = " ".join(base), " ".join(other)
        agreement = (SIGNER.sign(one) == SIGNER.sign(two)).mean()
        expected = resemblance(*(set(ngrams(split_words(t), 5)) for t in (one, two)))
        assert abs(agreement - expected) < 4 * np.sqrt(expected * (1 - expected) / MINIMA)


def closest(grams: list[set[str]], owners: dict[str, list[int]], number: int) -> float:
    """The largest true resemblance of a text to another one."""
    others = {other for gram in grams[number] for other in owners[gram]} - {number}
    return max((resemblance(grams[number], grams[other]) for other in others), default=0.0)


def test_planted_near_duplicates_are_found_and_nothing_else(real: list[str]):
    rng = random.Random(1)
    alike = flags(real)
    grams = [set(ngrams(split_words(t), 5)) for t in real]
    owners: dict[str, list[int]] = {}
    for number, own in enumerate(grams):
        for gram in own:
            owners.setdefault(gram, []).append(number)
    false = [i for i in np.flatnonzero(alike) if closest(grams, owners, int(i)) < 0.7]
    assert len(real) > 4000
    assert len(false) <= 0.001 * len(real)
    distinct = [t for t, is_alike in zip(real, alike, strict=True) if not is_alike]
    planted = []
    for text in rng.sample([t for t in distinct if len(split_words(t)) >= 100], 100):
        pieces = text.split()
        pieces[rng.randrange(len(pieces))] = "different"
        planted.append("Copied: " + " ".join(pieces).upper())
    found = flags(distinct + planted)
    assert found[len(distinct) :].mean() >= 0.99
    assert not found[: len(distinct)].any()


def test_the_first_of_several_copies_is_kept():
    texts = ["a b c d e f g h", "x y z", "a b c d e f g h", "x y z", "x, Y z!"]
    assert flags(texts).tolist() == [False, False, True, True, True]


def test_planted_benchmark_items_are_found_and_nothing_else(real: list[str], tmp_path: Path):
    rng = random.Random(2)
    texts = rng.sample(real, 3000)
    items = [SuiteItem("bench", str(n), text) for n, text in enumerate(texts[:100])]
    index, count, short = write_overlap_index(
        tmp_path / "i", [*items, SuiteItem("bench", "short", "four words are few")]
    )
    assert (count, short) == (101, 1)
    for n, text in enumerate(texts[:100]):
        hits = index.find(f"Some talk before it. {text.upper()} And some after.")
        assert (str(n), 1.0) in [(h.item, h.overlap) for h in hits]
    halves = [(n, split_words(text)) for n, text in enumerate(texts[:100])]
    assert all(index.find(" ".join(w[: len(w) * 3 // 4])) for _, w in halves)
    assert not any(
        str(n) in [h.item for h in index.find(" ".join(w[: len(w) // 3]))] for n, w in halves
    )
    runs = [set(ngrams(split_words(i.text), 8)) for i in items]
    for text in texts[100:]:  # these texts do quote one another: what is found is really there
        own = set(ngrams(split_words(text), 8))
        held = {str(n) for n, r in enumerate(runs) if len(own & r) >= 0.5 * len(r)}
        assert {hit.item for hit in index.find(text)} == held


def test_an_index_of_nothing_finds_nothing(tmp_path: Path):
    index, count, _ = write_overlap_index(tmp_path / "i", [])
    assert count == 0
    assert index.find("one two three four five six seven eight nine") == []


def test_items_of_eight_words_and_more_are_searched_for(tmp_path: Path):
    eight = "one two three four five six seven eight"
    items = [SuiteItem("bench", "8", eight), SuiteItem("bench", "7", eight[:-6])]
    index, count, short = write_overlap_index(tmp_path / "i", items)
    assert (count, short) == (2, 1)
    assert index.find(f"Zero. {eight} nine") == [("bench", "8", 1.0)]
    assert index.find(eight[:-6]) == []
