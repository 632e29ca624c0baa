"""The mixture as a stream of sequences: shares of tokens, in exact integers, a function of (seed, step)."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sweepcp.config.recipe import Recipe
from sweepcp.data.apportionment import Apportionment, counts_at
from sweepcp.data.shuffle import permuted_positions
from sweepcp.data.token_store import TokenStore

WINDOW = 512
"""Sequences of a source whose places are found at once: an array costs hardly more than a single one."""
IGNORED = -100
"""The target of a position that is not trained on."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one optimizer step; all arrays but `source` have shape (sequences, seq_len)."""

    input_ids: np.ndarray
    targets: np.ndarray
    """The next token, or `IGNORED` where that begins another document."""
    position_ids: np.ndarray
    """Counted from the start of the document, so that packed documents do not attend to each other."""
    source: np.ndarray
    """Index into the recipe's portions, shape (sequences,)."""


class SourceSequences:
    """The training sequences of one source, in shuffled epochs.

    The source's tokens are cut into blocks of `seq_len` (the last, shorter one is left out); each epoch visits every
    block once, in an order of its own. Of a store that stands for a part of itself, a random part of the blocks counts,
    the same in every epoch. Nothing is kept in memory but the place of the store.
    """

    def __init__(self, store: TokenStore, seq_len: int, seed: int) -> None:
        self.indexed = store.train()
        self.seq_len, self.key = seq_len, f"{seed}/{store.source}"
        count = len(self.indexed.tokens)
        self.all_blocks = (count - 1) // seq_len
        self.blocks = max(1, round(self.all_blocks * store.part))
        if self.all_blocks < 1:
            raise ValueError(
                f"source {store.source} has {count} tokens, not more than one sequence of {seq_len}"
            )
        self._window = -1
        self._places: list[int] = []

    def read(
        self, numbers: np.ndarray, tokens: np.ndarray, begins: np.ndarray, rows: np.ndarray
    ) -> None:
        """Put sequences, by their numbers (from 0, through all epochs), into `rows` of two arrays; shape (n,) both.

        `tokens` and `begins`, shape (any, seq_len + 1), get the inputs with the token after them, and where documents
        begin.
        """
        length = self.seq_len + 1
        for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
            first = self._place(number) * self.seq_len
            tokens[row] = self.indexed.tokens[first : first + length]
            for begin in self.indexed.begins(first, length):
                begins[row, begin] = True

    def _place(self, number: int) -> int:
        """The block in which a sequence stands; found for `WINDOW` numbers at once, as they mostly come in turn."""
        window = number // WINDOW
        if window != self._window:
            self._window, self._places = (
                window,
                self._find(np.arange(window * WINDOW, (window + 1) * WINDOW)).tolist(),
            )
        return self._places[number - window * WINDOW]

    def _find(self, numbers: np.ndarray) -> np.ndarray:
        epochs, places = np.divmod(numbers, self.blocks)
        for epoch in np.unique(epochs):
            now = epochs == epoch
            places[now] = permuted_positions(places[now], self.blocks, f"{self.key}/{epoch}")
        return (
            places
            if self.blocks == self.all_blocks
            else permuted_positions(places, self.all_blocks, f"{self.key}/part")
        )


class MixtureStream:
    """The batches of a recipe over the stores of its sources: a function of seed, step and the steps that are skipped.

    `skipped` are steps of the stream that are passed over, as after a spike of the loss; the optimizer's step n takes
    the n-th of the others.
    """

    def __init__(
        self, recipe: Recipe, stores: list[TokenStore], skipped: tuple[int, ...] = ()
    ) -> None:
        by_name = {store.source: store for store in stores}
        self.recipe, self.skipped = recipe, sorted(set(skipped))
        self.apportionment = Apportionment([p.share for p in recipe.mixture.portions])
        self.sources = {
            i: SourceSequences(by_name[p.source], recipe.seq_len, recipe.seed)
            for i, p in enumerate(recipe.mixture.portions)
            if self.apportionment.weights[i]
        }

    def batch(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The batch of optimizer step `step` (from 1), or the rows of it that fall to one of `ranks` ranks.

        The ranks' rows, one after the other, are the whole batch, for any number of ranks.
        """
        size = self.recipe.sequences
        first, last = rank * size // ranks, (rank + 1) * size // ranks
        start = (self.place(step) - 1) * size
        chosen, numbers = (column[first:last] for column in self.apportionment.take(start, size))
        shape = last - first, self.recipe.seq_len + 1
        tokens, begins = np.empty(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        for i in set(chosen.tolist()):
            rows = np.flatnonzero(chosen == i)
            self.sources[i].read(numbers[rows], tokens, begins, rows)
        if self.recipe.cross_documents:
            begins[:] = False
        targets = np.where(begins[:, 1:], IGNORED, tokens[:, 1:])
        return Batch(tokens[:, :-1], targets, restarting_positions(begins[:, :-1]), chosen)

    def place(self, step: int) -> int:
        """Which step of the stream optimizer step `step` takes: the same, but for those that are skipped."""
        place = step
        for skip in self.skipped:
            place += skip <= place
        return place

    def batches(
        self, first: int = 1, rank: int = 0, ranks: int = 1, worker: int = 0, workers: int = 1
    ) -> Iterator[Batch]:
        """A rank's batches from step `first` on, or those that one of its loader's workers prepares.

        Workers take steps in turn, which is the order in which a `torch.utils.data.DataLoader` asks them.
        """
        for step in range(first + worker, self.recipe.steps + 1, workers):
            yield self.batch(step, rank, ranks)

    def epochs(self, index: int, tokens: int) -> float:
        """How often `tokens` tokens of portion `index` read its source."""
        source = self.sources.get(index)
        return tokens / (source.blocks * source.seq_len) if source else 0.0


def tokens_by_source(recipe: Recipe, step: int) -> dict[str, int]:
    """Source → tokens that the steps up to `step` read of it."""
    weights = Apportionment([p.share for p in recipe.mixture.portions]).weights
    given = counts_at(weights, step * recipe.sequences)
    return {
        p.source: n * recipe.seq_len for p, n in zip(recipe.mixture.portions, given, strict=True)
    }


def restarting_positions(begins: np.ndarray) -> np.ndarray:
    """Positions that restart at 0 where `begins` is true and at the start of each row; shape (rows, length)."""
    index = np.arange(begins.shape[1])
    starts = begins * index
    np.maximum.accumulate(starts, axis=1, out=starts)
    return np.subtract(index, starts, out=starts)
