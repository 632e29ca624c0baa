"""A batch of packed documents, and the documents alone."""

from collections.abc import Iterator

import numpy as np

from sweepcp.data.stream import IGNORED, Batch, restarting_positions

DOCUMENT_LENGTHS = [[7, 9, 16], [20, 12], [3, 5, 11, 13]]
"""Lengths of the documents of each sequence of 32 tokens."""
Window = tuple[slice, slice]
"""The rows and columns of a document."""


def packed_batch(*, tokens: int = 256, seed: int = 0) -> Batch:
    """Return three sequences of several documents each, over a vocabulary of `tokens`."""
    rows = len(DOCUMENT_LENGTHS)
    ids = np.random.default_rng(seed).integers(0, tokens, (rows, 32))
    begins = np.zeros((rows, 33), dtype=bool)
    for row, lengths in enumerate(DOCUMENT_LENGTHS):
        begins[row, np.cumsum([0, *lengths])] = True
    targets = np.where(begins[:, 1:], IGNORED, np.roll(ids, -1, 1))
    positions = restarting_positions(begins[:, :-1])
    return Batch(ids, targets, positions, np.zeros(rows, dtype=np.int32))


def documents_alone(batch: Batch) -> Iterator[tuple[Window, Batch]]:
    """Yield where each document of a packed batch is, and a batch of it alone."""
    for row, lengths in enumerate(DOCUMENT_LENGTHS):
        first = 0
        for length in lengths:
            window = slice(row, row + 1), slice(first, first + length)
            alone = Batch(
                batch.input_ids[window],
                batch.targets[window],
                batch.position_ids[window],
                batch.source[:1],
            )
            yield window, alone
            first += length
