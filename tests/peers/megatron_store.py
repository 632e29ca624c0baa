"""Read token stores with Megatron-LM's own reader, and compare every token.

    python -m venv peer && peer/bin/pip install torch==2.13.0 numpy typing_extensions
    peer/bin/pip install --no-deps megatron-core==0.16.1 && peer/bin/pip install .
    peer/bin/python tests/peers/megatron_store.py STORE...      # folders that `sweepcp data build` names

megatron-core asks for Python 3.12; on 3.11 it finds `typing.override` in typing_extensions.
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
    theirs, ours = IndexedDataset(str(store / "train")), read_indexed_tokens(store / "train")
    assert theirs.document_indices.tolist() == list(range(len(ours.offsets) + 1))
    np.testing.assert_array_equal(
        np.concatenate([theirs[i] for i in range(len(theirs))]), ours.tokens
    )
    print(f"{store}: {len(theirs):,} documents, {len(ours.tokens):,} tokens, equal")
