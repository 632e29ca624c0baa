"""The mixture as a stream of sequences: shares of tokens, in exact integers, a function of (seed, step)."""

import hashlib
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sweepcp.data.store import Store
from sweepcp.recipe import Recipe

RESOLUTION = 1 << 40
"""Shares are rounded to this fraction of one before they are apportioned."""
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


def apportion(shares: list[float], length: int) -> np.ndarray:
    """Which share each of `length` sequences goes to, shape (length,).

    Every prefix deviates by less than one sequence from each share. Earliest deadline first among those that are
    due, in integers: Tijdeman (1980), The chairman assignment problem, Discrete Mathematics 32, which bounds the
    deviation by 1 − 1 / (2k − 2) for k shares above 0.
    """
    weights = [int(Fraction(s) * RESOLUTION + Fraction(1, 2)) for s in shares]
    total = sum(weights)
    live = [i for i, w in enumerate(weights) if w]
    if len(live) == 1:
        return np.full(length, live[0], dtype=np.int32)
    k2 = 2 * len(live) - 2
    given = dict.fromkeys(live, 0)
    result = np.empty(length, dtype=np.int32)
    for t in range(1, length + 1):
        due = [i for i in live if k2 * (weights[i] * t - given[i] * total) >= total]
        chosen = min(due, key=lambda i: (-((-(k2 * (given[i] + 1) - 1) * total) // (k2 * weights[i])), i))
        given[chosen] += 1
        result[t - 1] = chosen
    return result


class Sequences:
    """The training sequences of one source, in shuffled epochs.

    The source's tokens are cut into blocks of `seq_len` (the last, shorter one is left out); each epoch visits every
    block once, in an order of its own.
    """

    def __init__(self, store: Store, seq_len: int, seed: int) -> None:
        self.tokens, starts = store.train()
        self.seq_len, self.seed, self.name = seq_len, seed, store.source
        self.begins = np.zeros(len(self.tokens) + 1, dtype=bool)
        self.begins[starts] = True
        self.blocks = (len(self.tokens) - 1) // seq_len
        if self.blocks < 1:
            raise ValueError(
                f"source {store.source} has {len(self.tokens)} tokens, less than one sequence of {seq_len}"
            )
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Inputs and next tokens of the source's `index`-th sequence, shape (seq_len,), and where documents begin.

        The last has shape (seq_len + 1,): it covers the inputs and the token after them.
        """
        epoch, at = divmod(index, self.blocks)
        if self._order[0] != epoch:
            self._order = (epoch, self._shuffle(epoch))
        first = int(self._order[1][at]) * self.seq_len
        window = self.tokens[first : first + self.seq_len + 1].astype(np.int64)
        begins = self.begins[first : first + self.seq_len + 1]
        return window[:-1], window[1:], begins

    def _shuffle(self, epoch: int) -> np.ndarray:
        key = hashlib.sha256(f"{self.seed}/{self.name}/{epoch}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "big"))).permutation(self.blocks)


class Stream:
    """The batches of a recipe over the stores of its sources."""

    def __init__(self, recipe: Recipe, stores: list[Store]) -> None:
        by_name = {store.source: store for store in stores}
        portions = recipe.mixture.portions
        self.recipe = recipe
        self.plan = apportion([p.share for p in portions], recipe.steps * recipe.sequences)
        used = set(self.plan.tolist())
        self.sources = {
            i: Sequences(by_name[p.source], recipe.seq_len, recipe.seed) for i, p in enumerate(portions) if i in used
        }
        self._ordinal = np.empty(len(self.plan), dtype=np.int64)
        for i in used:
            mine = self.plan == i
            self._ordinal[mine] = np.arange(mine.sum())

    def batch(self, step: int) -> Batch:
        """The batch of optimizer step `step`, from 1 to the recipe's steps."""
        size = self.recipe.sequences
        where = slice((step - 1) * size, step * size)
        picked = [
            self.sources[i][n] for i, n in zip(self.plan[where].tolist(), self._ordinal[where].tolist(), strict=True)
        ]
        inputs, targets, begins = (np.stack(column) for column in zip(*picked, strict=True))
        if self.recipe.cross_documents:
            begins = np.zeros_like(begins)
        targets = np.where(begins[:, 1:], IGNORED, targets)
        return Batch(inputs, targets, positions(begins[:, :-1]), self.plan[where])

    def epochs(self, index: int, tokens: int) -> float:
        """How often `tokens` tokens of portion `index` read its source."""
        source = self.sources.get(index)
        return tokens / (source.blocks * source.seq_len) if source else 0.0


def positions(begins: np.ndarray) -> np.ndarray:
    """Positions that restart at 0 where `begins` is true and at the start of each row; shape (rows, length)."""
    index = np.broadcast_to(np.arange(begins.shape[1]), begins.shape)
    return index - np.maximum.accumulate(np.where(begins, index, 0), axis=1)
