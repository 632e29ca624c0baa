"""Near-duplicates: documents most of whose word 5-grams are those of an earlier document.

MinHash (Broder 1997, On the resemblance and containment of documents) with banding (Leskovec,
Rajaraman and Ullman, Mining of Massive Datasets, chapter 3): documents are compared if all minima
of a band agree, and are near-duplicates if at least `THRESHOLD` of all their minima do.
"""

import re

import numpy as np

BANDS, ROWS = 20, 6
"""Bands of a signature, and minima in each.

Documents that share 80 % of their 5-grams are compared with probability 1 − (1 − 0.8⁶)²⁰ = 0.998;
those that share 50 %, with 0.27.
"""
MINIMA = BANDS * ROWS
"""Minima in a signature (`num_perm` of datasketch)."""
THRESHOLD = 0.8
NGRAM_WORDS = 5
GRAMS_PER_BATCH = 4096
"""5-grams hashed at once, in 2 MB."""
DOCUMENTS_PER_BATCH = 1 << 14
"""Documents compared at once, in 16 MB."""
SIGNATURE_BYTES = 4 * MINIMA
"""Disk space per document while a store is built."""
MEMORY_PER_DOCUMENT = 60
"""Bytes of memory per document while near-duplicates are searched: keys, their order, sorting."""
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+")
"""A word; or a character of a script without spaces between words.

These are Thai, Lao, Burmese, Khmer, Chinese and Japanese.
"""


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def ngrams(words: list[str], length: int) -> list[str]:
    """Return all runs of `length` words; a single shorter run if there are fewer words."""
    if len(words) <= length:
        return [" ".join(words)]
    return [" ".join(words[i : i + length]) for i in range(len(words) - length + 1)]


class Signer:
    """Computes the MinHash signature of a document."""

    def __init__(self) -> None:
        from datasketch import MinHash
        from xxhash import xxh32_intdigest

        self.empty = MinHash(num_perm=MINIMA, seed=1, hashfunc=xxh32_intdigest, scheme="affine32")

    def sign(self, text: str) -> np.ndarray:
        """Return the minima of the hashes of a document's 5-grams, shape (MINIMA,), uint32."""
        grams = ngrams(split_words(text), NGRAM_WORDS)
        signature = self.empty.copy()
        for first in range(0, len(grams), GRAMS_PER_BATCH):
            batch = grams[first : first + GRAMS_PER_BATCH]
            signature.update_batch([gram.encode() for gram in batch])
        return np.asarray(signature.hashvalues, dtype="<u4")


def find_near_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Return which documents are near-duplicates of an earlier one.

    Args:
        signatures: Shape (documents, MINIMA), uint32; may be memory-mapped. One band of it is in
            memory at a time, and `MEMORY_PER_DOCUMENT` bytes per document.

    Returns:
        Shape (documents,), bool.
    """
    count = len(signatures)
    is_duplicate = np.zeros(count, dtype=bool)
    for band in range(BANDS):
        keys = _band_keys(signatures[:, band * ROWS : (band + 1) * ROWS])
        # A stable sort puts documents with equal keys next to each other, in their own order.
        order = np.argsort(keys, kind="stable")
        equals_previous = keys[order[1:]] == keys[order[:-1]]
        del keys
        # For each place in `order`: the first place of its run of equal keys.
        first_of_run = np.zeros(count, dtype=np.int64)
        run_starts = np.where(equals_previous, 0, np.arange(1, count))
        first_of_run[1:] = np.maximum.accumulate(run_starts)
        candidates = np.flatnonzero(equals_previous) + 1
        candidates = candidates[~is_duplicate[order[candidates]]]
        # Comparing all pairs of a run would be quadratic in its length (boilerplate makes long
        # runs). Copies of one document resemble the run's first one or the one just before.
        for begin in range(0, len(candidates), DOCUMENTS_PER_BATCH):
            places = candidates[begin : begin + DOCUMENTS_PER_BATCH]
            candidate_minima = signatures[order[places]]
            for others in (places - 1, first_of_run[places]):
                agreement = (signatures[order[others]] == candidate_minima).mean(axis=1)
                is_duplicate[order[places[agreement >= THRESHOLD]]] = True
    return is_duplicate


def _band_keys(band: np.ndarray) -> np.ndarray:
    """Hash each row of a band to 64 bits; shape (documents,).

    Equal rows have equal keys; the few different ones that do are told apart by their signatures.
    """
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in range(ROWS):
        keys ^= band[:, column]
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys
