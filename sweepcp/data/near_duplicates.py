"""Near-duplicates: documents whose word 5-grams are mostly those of an earlier one.

MinHash (Broder 1997, On the resemblance and containment of documents) with banding (Leskovec, Rajaraman and Ullman,
Mining of Massive Datasets, chapter 3): two documents are compared where all the minima of a band agree, and count as
near-duplicates when at least `THRESHOLD` of all their minima do.
"""

import re

import numpy as np

BANDS, ROWS = 20, 6
"""Documents that share 80 % of their 5-grams are compared with probability 1 − (1 − 0.8⁶)²⁰ = 0.998; 50 %, 0.27."""
MINIMA = BANDS * ROWS
THRESHOLD = 0.8
WORDS = 5
GRAMS_PER_BATCH = 4096
"""5-grams hashed at a time: 2 MB."""
DOCUMENTS_PER_BATCH = 1 << 14
"""Documents compared at a time: 16 MB."""
DISK_BYTES = 4 * MINIMA
"""A document, while a store is built."""
MEMORY_BYTES = 60
"""A document, while near-duplicates are looked for: keys, their order, and what sorting takes."""
WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|\w+")
"""Words; in scripts that do not part words by spaces (Thai, Lao, Burmese, Khmer, Chinese, Japanese), characters."""


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return WORD.findall(text.lower())


def ngrams(pieces: list[str], length: int) -> list[str]:
    """Runs of `length` words; the whole as one run where there are fewer."""
    if len(pieces) <= length:
        return [" ".join(pieces)]
    return [" ".join(pieces[i : i + length]) for i in range(len(pieces) - length + 1)]


class Signer:
    """MinHash signatures of texts."""

    def __init__(self) -> None:
        from datasketch import MinHash
        from xxhash import xxh32_intdigest

        self.empty = MinHash(num_perm=MINIMA, seed=1, hashfunc=xxh32_intdigest, scheme="affine32")

    def sign(self, text: str) -> np.ndarray:
        """The minima of a text's 5-grams, shape (MINIMA,), uint32."""
        grams = ngrams(split_words(text), WORDS)
        signature = self.empty.copy()
        for first in range(0, len(grams), GRAMS_PER_BATCH):
            signature.update_batch(
                [gram.encode() for gram in grams[first : first + GRAMS_PER_BATCH]]
            )
        return np.asarray(signature.hashvalues, dtype="<u4")


def near_duplicates(signatures: np.ndarray) -> np.ndarray:
    """Which documents resemble an earlier one; shape (documents,), bool.

    `signatures` has shape (documents, MINIMA) and may be memory-mapped: one band of it is in memory at a
    time, `MEMORY_BYTES` a document. Of the documents that agree in a band, each is compared with the first of them and
    with the one before.
    """
    count = len(signatures)
    found = np.zeros(count, dtype=bool)
    for band in range(BANDS):
        keys = _band_keys(signatures[:, band * ROWS : (band + 1) * ROWS])
        order = np.argsort(keys, kind="stable")  # equal keys stay in the order of the documents
        same = keys[order[1:]] == keys[order[:-1]]
        del keys
        first = np.zeros(count, dtype=np.int64)
        first[1:] = np.maximum.accumulate(np.where(same, 0, np.arange(1, count)))
        later = np.flatnonzero(same) + 1
        later = later[~found[order[later]]]
        for begin in range(0, len(later), DOCUMENTS_PER_BATCH):
            chunk = later[begin : begin + DOCUMENTS_PER_BATCH]
            mine = signatures[order[chunk]]
            for other in (chunk - 1, first[chunk]):
                alike = (signatures[order[other]] == mine).mean(axis=1) >= THRESHOLD
                found[order[chunk[alike]]] = True
    return found


def _band_keys(band: np.ndarray) -> np.ndarray:
    """One number a row, equal for equal rows (and, of 2⁶⁴, for hardly any others)."""
    keys = np.zeros(len(band), dtype=np.uint64)
    for column in range(ROWS):
        keys ^= band[:, column]
        keys *= np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys
