"""The mixture as a stream of sequences: shares of tokens in exact integers, from any step."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sweepcp.config.recipe import Recipe
from sweepcp.data.apportionment import Apportionment, counts_at
from sweepcp.data.shuffle import permuted_positions
from sweepcp.data.token_store import TokenStore

WINDOW = 512
"""Sequences of a source whose blocks are looked up at once."""
IGNORED = -100
"""The target of a position that is not trained on."""


@dataclass(frozen=True)
class Batch:
    """Sequences of one optimizer step; all arrays but `source` have shape (sequences, seq_len)."""

    input_ids: np.ndarray
    targets: np.ndarray
    """The next token, or `IGNORED` where it begins another document."""
    position_ids: np.ndarray
    """Counted from the start of the document, so that packed documents do not attend to others."""
    source: np.ndarray
    """Index into the portions of the recipe's mixture, shape (sequences,)."""


class SourceSequences:
    """The training sequences of one source, in shuffled epochs.

    The tokens of the source are cut into blocks of `seq_len`; a shorter block at the end is left
    out. Every epoch visits each block once, in an order of its own. If the fraction of the store is
    below 1, only a random subset of the blocks is used, the same in every epoch.

    Attributes:
        blocks: Number of blocks in an epoch.
        all_blocks: Number of blocks in the store.
    """

    def __init__(self, store: TokenStore, *, seq_len: int, seed: int) -> None:
        """Map the store's tokens.

        Raises:
            ValueError: The store has not more tokens than one sequence.
        """
        self.indexed = store.train()
        self.seq_len = seq_len
        self.key = f"{seed}/{store.source}"
        count = len(self.indexed.tokens)
        # A block needs the token after it, too, as the target of its last position.
        self.all_blocks = (count - 1) // seq_len
        self.blocks = max(1, round(self.all_blocks * store.fraction))
        if self.all_blocks < 1:
            raise ValueError(
                f"source {store.source} has {count} tokens, not more than one sequence of {seq_len}"
            )
        self._window = -1
        self._window_blocks: list[int] = []

    def read(
        self, numbers: np.ndarray, *, rows: np.ndarray, tokens: np.ndarray, starts: np.ndarray
    ) -> None:
        """Copy sequences into rows of two arrays.

        Args:
            numbers: Which sequences, counted from 0 through all epochs; shape (n,).
            rows: The row for each sequence, shape (n,).
            tokens: Receives the tokens of the sequence and the one after; shape (any, seq_len + 1).
            starts: Receives True where a document starts; the shape of `tokens`, initially False.
        """
        length = self.seq_len + 1
        for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
            first = self._block_of(number) * self.seq_len
            tokens[row] = self.indexed.tokens[first : first + length]
            for start in self.indexed.document_starts(first, length=length):
                starts[row, start] = True

    def _block_of(self, number: int) -> int:
        """Return the block that holds a sequence."""
        # A permutation is evaluated by a fixed number of array operations, which cost hardly more
        # for a window than for one position. Sequences are mostly read in order, so that one
        # evaluation serves the whole window.
        window = number // WINDOW
        if window != self._window:
            numbers = np.arange(window * WINDOW, (window + 1) * WINDOW)
            self._window = window
            self._window_blocks = self._blocks_of(numbers).tolist()
        return self._window_blocks[number - window * WINDOW]

    def _blocks_of(self, numbers: np.ndarray) -> np.ndarray:
        epochs, blocks = np.divmod(numbers, self.blocks)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            blocks[in_epoch] = permuted_positions(
                blocks[in_epoch], self.blocks, f"{self.key}/{epoch}"
            )
        if self.blocks == self.all_blocks:
            return blocks
        # A second permutation, the same in every epoch, scatters the first `blocks` numbers over
        # the store: it selects the subset.
        return permuted_positions(blocks, self.all_blocks, f"{self.key}/part")


class MixtureStream:
    """The batches of a recipe over the token stores of its sources.

    A batch is a function of the recipe's seed, of the step and of the steps that are skipped. No
    state of the stream has to be saved: a run that resumes at any step, on any number of ranks,
    reads what an uninterrupted one reads.
    """

    def __init__(
        self, recipe: Recipe, stores: list[TokenStore], skipped: tuple[int, ...] = ()
    ) -> None:
        """Map the stores of all sources with a share above 0.

        Args:
            recipe: Gives the mixture, the batch size, the sequence length and the seed.
            stores: A store for each source of the mixture; others are ignored.
            skipped: Steps of the stream that are passed over, as after a spike of the loss. The
                optimizer's step n takes the n-th of the others.
        """
        by_name = {store.source: store for store in stores}
        self.recipe = recipe
        self.skipped = sorted(set(skipped))
        portions = recipe.mixture.portions
        self.apportionment = Apportionment([portion.share for portion in portions])
        self.sources: dict[int, SourceSequences] = {}
        for index, portion in enumerate(portions):
            if self.apportionment.weights[index]:
                store = by_name[portion.source]
                self.sources[index] = SourceSequences(
                    store, seq_len=recipe.seq_len, seed=recipe.seed
                )

    # The parameters are positional because scripts that `sweepcp export` wrote call them so.
    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Return the batch of an optimizer step, or one rank's rows of it.

        The rows of all ranks, concatenated, are the whole batch, whatever the number of ranks.

        Args:
            step: Step of the optimizer, from 1.
            rank: The rank whose rows to return, from 0.
            world_size: Number of ranks.
        """
        size = self.recipe.sequences
        first, last = rank * size // world_size, (rank + 1) * size // world_size
        # The whole batch is apportioned on every rank: which sequence of a source a row holds
        # depends on the rows before it.
        start = (self.stream_step(step) - 1) * size
        chosen, numbers = self.apportionment.take(start, length=size)
        chosen, numbers = chosen[first:last], numbers[first:last]
        shape = last - first, self.recipe.seq_len + 1
        tokens, starts = np.empty(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        for index in set(chosen.tolist()):
            rows = np.flatnonzero(chosen == index)
            self.sources[index].read(numbers[rows], rows=rows, tokens=tokens, starts=starts)
        if self.recipe.cross_documents:
            starts[:] = False
        targets = np.where(starts[:, 1:], IGNORED, tokens[:, 1:])
        return Batch(tokens[:, :-1], targets, restarting_positions(starts[:, :-1]), chosen)

    def stream_step(self, step: int) -> int:
        """Return the step of the stream that an optimizer step takes: `step` plus those skipped."""
        position = step
        for skipped in self.skipped:
            position += skipped <= position
        return position

    def batches(
        self,
        *,
        first: int = 1,
        rank: int = 0,
        world_size: int = 1,
        worker: int = 0,
        workers: int = 1,
    ) -> Iterator[Batch]:
        """Yield a rank's batches from step `first` on, or those that one loader worker prepares.

        Workers take turns step by step, in the order in which a `torch.utils.data.DataLoader` asks
        its workers.
        """
        for step in range(first + worker, self.recipe.steps + 1, workers):
            yield self.batch(step, rank, world_size)

    def epochs(self, index: int, *, tokens: int) -> float:
        """Return how many epochs of its source `tokens` tokens of portion `index` are."""
        source = self.sources.get(index)
        return tokens / (source.blocks * source.seq_len) if source else 0.0


def tokens_by_source(recipe: Recipe, step: int) -> dict[str, int]:
    """Return the tokens of each source that the steps up to and including `step` read."""
    portions = recipe.mixture.portions
    weights = Apportionment([portion.share for portion in portions]).weights
    counts = counts_at(weights, step * recipe.sequences)
    tokens = {}
    for portion, count in zip(portions, counts, strict=True):
        tokens[portion.source] = count * recipe.seq_len
    return tokens


def restarting_positions(starts: np.ndarray) -> np.ndarray:
    """Return position ids that restart at 0 at the start of each row and where `starts` is True.

    Args:
        starts: Shape (rows, length), bool.

    Returns:
        Shape (rows, length), int64.
    """
    index = np.arange(starts.shape[1])
    last_start = starts * index
    np.maximum.accumulate(last_start, axis=1, out=last_start)
    return np.subtract(index, last_start, out=last_start)
