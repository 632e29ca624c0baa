"""A batch on the device: its cuts, the boundaries of its documents, and how it gets there."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sweepcp.training import batches
from sweepcp.training.batches import to_micro_batch, to_micro_batches
from tests.packed import packed_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
def test_micro_batches_are_the_rows_of_the_batch_with_their_documents(rows: int):
    batch = packed_batch()
    parts = to_micro_batches(batch, rows=rows, device=CPU)
    assert [len(part.input_ids) for part in parts] == {
        1: [1, 1, 1],
        2: [2, 1],
        3: [3],
        8: [3],
    }[rows]
    for name in ("input_ids", "targets", "position_ids"):
        joined = torch.cat([getattr(part, name) for part in parts]).numpy()
        np.testing.assert_array_equal(joined, getattr(batch, name))
    boundaries = [part.cu_seq_lens.tolist() for part in parts]
    longest = [part.longest for part in parts]
    whole = [0, 7, 16, 32, 52, 64, 67, 72, 83, 96]
    expected = {
        1: ([[0, 7, 16, 32], [0, 20, 32], [0, 3, 8, 19, 32]], [16, 20, 13]),
        2: ([[0, 7, 16, 32, 52, 64], [0, 3, 8, 19, 32]], [20, 13]),
        3: ([whole], [20]),
        8: ([whole], [20]),
    }
    assert (boundaries, longest) == expected[rows]
    assert all(part.cu_seq_lens.dtype == torch.int32 for part in parts)
    assert all(type(part.longest) is int for part in parts)


def test_to_a_gpu_it_is_copied_once_from_pinned_memory_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
):
    copies: list[dict[str, Any]] = []

    batch = packed_batch()
    # As streams do, which read the token after a sequence, too.
    rows = np.concatenate([batch.input_ids, batch.targets[:, -1:]], axis=1)
    batch = replace(batch, input_ids=rows[:, :-1])

    def pin(tensor: torch.Tensor) -> SimpleNamespace:
        assert tensor.is_contiguous()

        def copy(device: torch.device, **settings: Any) -> torch.Tensor:
            copies.append({"device": device.type} | settings)
            return tensor

        return SimpleNamespace(to=copy)

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    to_micro_batches(batch, rows=1, device=torch.device("cuda"))
    assert copies == [{"device": "cuda", "non_blocking": True}] * 4
    assert batches.to_micro_batch(packed_batch(), device=CPU).longest == 20
    assert len(copies) == 4


def test_a_document_that_crosses_rows_ends_with_its_row():
    """Without isolation every row is one document, in whichever way rows are joined."""
    batch = packed_batch()
    batch.position_ids[:] = np.arange(32)
    micro_batch = to_micro_batch(batch, device=CPU)
    assert micro_batch.cu_seq_lens.tolist() == [0, 32, 64, 96]
    assert micro_batch.longest == 32
