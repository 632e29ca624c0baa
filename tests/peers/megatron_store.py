"""Read token stores with Megatron-LM's own reader, and compare every token.

    python -m venv peer && peer/bin/pip install torch==2.13.0 numpy typing_extensions
    peer/bin/pip install --no-deps megatron-core==0.16.1 && peer/bin/pip install .
    peer/bin/python tests/peers/megatron_store.py STORE...

STORE is a folder that `sweepcp data build` lists. megatron-core needs Python 3.12; on 3.11 it gets
`typing.override` from typing_extensions.
"""

import sys
import typing
from pathlib import Path

import numpy as np
import typing_extensions

if not hasattr(typing, "override"):
    typing.override = typing_extensions.override  # type: ignore[attr-defined]

from megatron.core.datasets.indexed_dataset import IndexedDataset

from sweepcp.data.token_store import read_indexed_tokens

for store in map(Path, sys.argv[1:]):
    megatron, ours = IndexedDataset(str(store / "train")), read_indexed_tokens(store / "train")
    assert megatron.document_indices.tolist() == list(range(len(ours.offsets) + 1))
    tokens = np.concatenate([megatron[number] for number in range(len(megatron))])
    np.testing.assert_array_equal(tokens, ours.tokens)
    print(f"{store}: {len(megatron):,} documents, {len(ours.tokens):,} tokens, equal")
