"""Held-out text: the bits of every document under a model, for bits per byte."""

import math

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.data.stream import IGNORED, Batch, restarting_positions
from sweepcp.data.token_store import TokenStore, boundary_tokens
from sweepcp.scoring.scorecard import in_select_split
from sweepcp.training.engine import autocast_context, token_losses
from sweepcp.training.process_group import ProcessGroup


class HeldOutText:
    """The held-out documents of one source, packed into sequences once and scored many times.

    Every token of a document is predicted exactly once, the first from the start marker. A document
    that crosses the end of a sequence continues in the next one without what came before, so a
    token's context is at most `seq_len` tokens.
    """

    def __init__(
        self,
        store: TokenStore,
        member: MemberSpec,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seq_len: int,
    ) -> None:
        """Tokenise and pack the documents that a member scores.

        Args:
            store: Where the held-out documents are.
            member: How many of them are scored, and how many characters of each.
            tokenizer: The model's.
            seq_len: Tokens in a sequence.
        """
        documents = store.sample_held_out(member.items)
        # The hash of the whole document decides its split, so that it does not depend on `chars`.
        self.select = tuple(in_select_split(document) for document in documents)
        documents = [document[: member.chars] for document in documents]
        self.bytes = np.array([len(document.encode()) for document in documents], dtype=np.int64)
        start, _ = boundary_tokens(tokenizer)
        encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
        self._pack([start + ids for ids in encoded], seq_len)

    def _pack(self, encoded: list[list[int]], seq_len: int) -> None:
        """Cut the concatenated documents into rows of `seq_len` inputs with their targets."""
        lengths = [len(ids) for ids in encoded]
        starts = np.cumsum([0, *lengths])
        tokens = np.concatenate([np.array(ids, dtype=np.int64) for ids in encoded])
        rows = math.ceil((len(tokens) - 1) / seq_len)
        # A row is `seq_len` inputs and one token more, the target of the last. Rows are `seq_len`
        # apart, so this token is the next row's first input, and no token is a target twice.
        index = np.arange(seq_len + 1) + seq_len * np.arange(rows)[:, None]
        inside = index < len(tokens)
        # The last row repeats the last token to its end; these repetitions are not targets.
        index = np.minimum(index, len(tokens) - 1)
        ids, begins = tokens[index], np.isin(index, starts)
        # A start marker is given, not predicted, so it costs no bits.
        targets = np.where(inside & ~begins, ids, IGNORED)[:, 1:]
        self.document = (np.searchsorted(starts, index, side="right") - 1)[:, 1:]
        """Index of the document that each target belongs to, shape (rows, seq_len)."""
        self.batch = Batch(
            input_ids=ids[:, :-1],
            targets=targets,
            position_ids=restarting_positions(begins[:, :-1]),
            source=np.zeros(rows, dtype=np.int32),
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
        model.eval()
        bits = np.zeros(len(self.bytes))
        count = len(self.batch.input_ids)
        with autocast_context(group.device, precision):
            for first in range(0, count, rows * group.world_size):
                start = first + group.rank * rows
                mine = np.arange(start, min(start + rows, count))
                # Under ZeRO-3 a forward pass gathers weights from all ranks. A rank that has no
                # rows left computes row 0 again, or the others would wait for it forever.
                computed = mine if len(mine) else np.array([0])
                losses = token_losses(model, group.device, self.batch, computed)
                if len(mine):
                    nats = losses.double().cpu().numpy()
                    np.add.at(bits, self.document[mine], nats / math.log(2))
        return group.all_reduce_sum(bits)
