"""Held-out text: the bits of every document under a model, for bits per byte."""

import math
from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from sweepcp.config.suites import MemberSpec
from sweepcp.data.encoding import Encoder
from sweepcp.data.spelling import check_coverage
from sweepcp.data.stream import IGNORED, Batch, restarting_positions
from sweepcp.data.token_store import TokenStore
from sweepcp.scoring.evaluation import evaluation_mode
from sweepcp.scoring.scorecard import document_id
from sweepcp.training.batches import to_micro_batch
from sweepcp.training.engine import autocast_context
from sweepcp.training.loss import token_losses
from sweepcp.training.process_group import ProcessGroup


class HeldOutText:
    """The held-out documents of one source, laid out in rows once and scored many times.

    Every token of a document is predicted exactly once, the first from the start marker. A document
    is cut into windows of `seq_len` predicted tokens from its own start, the last one shorter.
    The first input of a window is the token before the first that it predicts, as in lm-eval's
    rolling log-likelihood: the start marker in the first window, else the last token of the window
    before, which is all that a later window sees of what came before it. Rows hold whole windows,
    so the bits of a document do not depend on the others.
    """

    def __init__(
        self,
        store: TokenStore,
        member: MemberSpec,
        encoder: Encoder,
        *,
        seq_len: int,
        packed: bool,
    ) -> None:
        """Tokenise the documents that a member scores, and lay their windows out in rows.

        Args:
            store: Where the held-out documents are.
            member: How many of them are scored, and how many characters of each.
            encoder: The model's.
            seq_len: Most tokens in a window and in a row.
            packed: Whether windows share rows, see `ScoringSpec.packed`.

        Raises:
            InvalidInput: The encoder has no tokens for a part of the text. The error names no file.
        """
        documents = store.sample_held_out(member.items)
        # Of the whole document, so that its split does not depend on `chars`.
        self.document_ids = tuple(document_id(document) for document in documents)
        documents = [document[: member.chars] for document in documents]
        self.bytes = np.array([len(document.encode()) for document in documents], dtype=np.int64)
        encoded = encoder.encode_text(documents)
        lost = sum(map(encoder.lost_bytes, documents, encoded))
        total = int(self.bytes.sum())
        check_coverage(total - lost, total=total, text=f"held-out text of {store.source}")
        # The end marker is no text, so it is not predicted.
        tokens = [[*encoder.prefix, *ids] for ids in encoded]
        self._fill_rows(tokens, seq_len=seq_len, packed=packed)

    def _fill_rows(self, documents: list[list[int]], *, seq_len: int, packed: bool) -> None:
        """Write the windows of the documents into rows of `seq_len` inputs with their targets.

        Args:
            documents: The tokens of each document, behind its start marker.
            seq_len: Length of a row.
            packed: Whether windows share rows.
        """
        windows = [
            (index, tokens[first : first + seq_len + 1])
            for index, tokens in enumerate(documents)
            for first in range(0, len(tokens) - 1, seq_len)
        ]
        lengths = [len(tokens) - 1 for _, tokens in windows]
        rows = pack_windows(lengths, capacity=seq_len, shared=packed)
        shape = len(rows), seq_len
        inputs, starts = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
        targets, self.document = np.full(shape, IGNORED), np.zeros(shape, dtype=np.int64)
        """Index of the document that each target belongs to, shape (rows, seq_len)."""
        self.lengths = np.zeros(len(rows), dtype=np.int64)
        """Number of tokens in each row before the filling."""
        for row, members in enumerate(rows):
            for window in members:
                index, tokens = windows[window]
                first = self.lengths[row]
                place = slice(first, first + lengths[window])
                inputs[row, place], targets[row, place] = tokens[:-1], tokens[1:]
                self.document[row, place] = index
                starts[row, first] = True
                self.lengths[row] += lengths[window]
        self.batch = Batch(
            input_ids=inputs,
            targets=targets,
            position_ids=restarting_positions(starts),
            source=np.zeros(len(rows), dtype=np.int32),
        )

    @torch.no_grad()
    def bits(
        self, model: PreTrainedModel, group: ProcessGroup, *, rows: int, precision: str
    ) -> np.ndarray:
        """Compute the bits of each document under a model; the ranks of the group share the work.

        Args:
            model: A causal LM, which may be partitioned over the ranks.
            group: The ranks that call this together.
            rows: Sequences in one forward pass of a rank.
            precision: `fp32`, `bf16` or `auto`.

        Returns:
            Shape (documents,), equal on every rank.
        """
        bits = np.zeros(len(self.bytes))
        computed_losses: list[tuple[np.ndarray, torch.Tensor]] = []
        count = len(self.lengths)
        with evaluation_mode(model), autocast_context(group.device, precision):
            for first in range(0, count, rows * group.world_size):
                start = first + group.rank * rows
                mine = np.arange(start, min(start + rows, count))
                # Under ZeRO-3 a forward pass gathers weights from all ranks. A rank that has no
                # rows left computes row 0 again, or the others would wait for it forever.
                computed = mine if len(mine) else np.array([0])
                batch = self._without_filling(computed)
                losses = token_losses(model, to_micro_batch(batch, device=group.device))
                if len(mine):
                    computed_losses.append((mine, losses))
        # After the last pass: a copy to the host would have a GPU wait for the next pass.
        for mine, losses in computed_losses:
            nats = losses.double().cpu().numpy()
            np.add.at(bits, self.document[mine, : nats.shape[1]], nats / math.log(2))
        return group.all_reduce_sum(bits)

    def _without_filling(self, rows: np.ndarray) -> Batch:
        """Return these rows, as long as the longest of them before its filling."""
        length = self.lengths[rows].max()
        return Batch(
            input_ids=self.batch.input_ids[rows, :length],
            targets=self.batch.targets[rows, :length],
            position_ids=self.batch.position_ids[rows, :length],
            source=self.batch.source[rows],
        )


def pack_windows(lengths: Sequence[int], *, capacity: int, shared: bool) -> list[list[int]]:
    """Assign windows to rows: longest first, each into the fullest row that has room for it.

    Args:
        lengths: Tokens in each window, at most `capacity`.
        capacity: Tokens in a row.
        shared: Whether a row may hold more than one window.

    Returns:
        The windows of each row, by their index in `lengths`.
    """
    order = sorted(range(len(lengths)), key=lambda window: -lengths[window])
    if not shared:
        return [[window] for window in order]
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, row), in ascending order
    for window in order:
        place = bisect_left(room, (lengths[window], 0))
        if place < len(room):
            free, row = room.pop(place)
        else:
            free, row = capacity, len(rows)
            rows.append([])
        rows[row].append(window)
        insort(room, (free - lengths[window], row))
    return rows
