"""Held-out text: bits of every document, for bits per byte."""

import math

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sweepcp.config.suites import MemberSpec
from sweepcp.data.stream import IGNORED, Batch, restarting_positions
from sweepcp.data.token_store import TokenStore, boundary_tokens
from sweepcp.scoring.generated_tasks import held_out_sample
from sweepcp.scoring.scorecard import in_select_split
from sweepcp.training.engine import autocast, token_losses
from sweepcp.training.process_group import ProcessGroup


class HeldOutText:
    """The held-out documents of one source, packed into sequences once and scored for every model.

    Every token of a document is predicted once, the first from the start marker. A document longer than `seq_len` is
    cut into windows that do not overlap, so a token's context is at most `seq_len` tokens.
    """

    def __init__(
        self,
        store: TokenStore,
        member: MemberSpec,
        seq_len: int,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        texts = held_out_sample(store, member)
        self.select = tuple(in_select_split(text) for text in texts)
        texts = [text[: member.chars] for text in texts]
        self.bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        start, _ = boundary_tokens(tokenizer)
        documents = [start + ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        starts = np.cumsum([0] + [len(d) for d in documents])
        tokens = np.concatenate([np.array(d, dtype=np.int64) for d in documents])

        rows = math.ceil((len(tokens) - 1) / seq_len)
        index = np.arange(seq_len + 1) + seq_len * np.arange(rows)[:, None]
        inside = index < len(tokens)
        index = np.minimum(index, len(tokens) - 1)
        ids, begins = tokens[index], np.isin(index, starts)
        targets = np.where(inside & ~begins, ids, IGNORED)[:, 1:]
        self.document = (np.searchsorted(starts, index, side="right") - 1)[:, 1:]
        self.batch = Batch(
            ids[:, :-1],
            targets,
            restarting_positions(begins[:, :-1]),
            np.zeros(rows, dtype=np.int32),
        )

    @torch.no_grad()
    def bits(
        self, model: PreTrainedModel, ranks: ProcessGroup, rows: int, precision: str
    ) -> np.ndarray:
        """Bits of each document under the model, shape (documents,); `rows` sequences at a time.

        Ranks share the sequences, and pass as many times through the model, which may be spread over them.
        """
        model.eval()
        bits = np.zeros(len(self.bytes))
        count = len(self.batch.input_ids)
        with autocast(ranks.device, precision):
            for first in range(0, count, rows * ranks.ranks):
                own = np.arange(
                    first + ranks.rank * rows, min(first + (ranks.rank + 1) * rows, count)
                )
                read = (
                    own if len(own) else np.array([0])
                )  # the model is passed through, what comes out is not used
                losses = token_losses(model, ranks.device, self.batch, read).double().cpu().numpy()
                if len(own):
                    np.add.at(bits, self.document[own], losses / math.log(2))
        return ranks.total(bits)
