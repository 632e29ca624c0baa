"""Held-out text: bits of every document, for bits per byte."""

import math

import numpy as np
import torch
from transformers import PreTrainedModel

from sweepcp.data.store import Store
from sweepcp.data.stream import IGNORED, Batch, positions
from sweepcp.engine import autocast, token_losses


class HeldOut:
    """The held-out documents of one source, packed into sequences once and scored for every model.

    Every token but a document's first, which is the start marker, is predicted once. A document longer than
    `seq_len` is cut into windows that do not overlap, so a token's context is at most `seq_len` tokens.
    """

    def __init__(self, store: Store, seq_len: int, texts: list[str]) -> None:
        tokens, starts = store.split("held_out")
        self.bytes = np.array([len(text.encode()) for text in texts], dtype=np.int64)
        rows = math.ceil(max(1, len(tokens) - 1) / seq_len)
        window = np.arange(seq_len + 1) + seq_len * np.arange(rows)[:, None]
        inside = window < len(tokens)
        window = np.minimum(window, len(tokens) - 1)
        ids = np.asarray(tokens)[window].astype(np.int64)
        document = np.searchsorted(starts, window, side="right") - 1
        begins = np.isin(window, starts)
        valid = inside[:, 1:] & ~begins[:, 1:]
        self.document = document[:, 1:]
        targets = np.where(valid, ids[:, 1:], IGNORED)
        self.batch = Batch(ids[:, :-1], targets, positions(begins[:, :-1]), np.zeros(rows, dtype=np.int32))

    @torch.no_grad()
    def bits(self, model: PreTrainedModel, rows: int, precision: str) -> np.ndarray:
        """Bits of each document under the model, shape (documents,); `rows` sequences at a time."""
        model.eval()
        bits = np.zeros(len(self.bytes))
        with autocast(model.device, precision):
            for first in range(0, len(self.batch.input_ids), rows):
                part = slice(first, first + rows)
                losses = token_losses(model, self.batch, part).double().cpu().numpy()
                np.add.at(bits, self.document[part], losses / math.log(2))
        return bits
