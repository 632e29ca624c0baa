"""A step's batch on the device, cut into micro batches."""

from dataclasses import dataclass

import numpy as np
import torch

from sweepcp.data.stream import Batch


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Sequences of one forward pass; the tensors of tokens have shape (rows, seq_len)."""

    input_ids: torch.Tensor
    targets: torch.Tensor
    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    """Where documents start when the rows are one sequence, and its end; int32, shape
    (documents + 1,)."""
    longest: int
    """Tokens of the longest document."""


def to_micro_batches(batch: Batch, *, rows: int, device: torch.device) -> list[MicroBatch]:
    """Copy a batch to a device and cut it there.

    The whole batch is copied at once and, to a GPU, without blocking: what needs the numbers on the
    host is computed from the arrays.

    Args:
        batch: Packed sequences.
        rows: Sequences of a micro batch; the last one may have fewer.
        device: Where the model computes.
    """
    parts = [slice(first, first + rows) for first in range(0, len(batch.input_ids), rows)]
    boundaries = [_boundaries(batch.position_ids[part]) for part in parts]
    input_ids, targets, position_ids, cu_seq_lens = (
        _to_device(array, device)
        for array in (
            batch.input_ids,
            batch.targets,
            batch.position_ids,
            np.concatenate(boundaries),
        )
    )
    sizes = [len(ends) for ends in boundaries]
    return [
        MicroBatch(
            input_ids=input_ids[part],
            targets=targets[part],
            position_ids=position_ids[part],
            cu_seq_lens=documents,
            longest=int(np.diff(ends).max()),
        )
        for part, documents, ends in zip(parts, cu_seq_lens.split(sizes), boundaries, strict=True)
    ]


def to_micro_batch(batch: Batch, *, device: torch.device) -> MicroBatch:
    """Copy a batch to a device as one micro batch."""
    (micro_batch,) = to_micro_batches(batch, rows=len(batch.input_ids), device=device)
    return micro_batch


def _boundaries(position_ids: np.ndarray) -> np.ndarray:
    """Return where documents start in the flattened rows, and their end."""
    starts = np.flatnonzero(position_ids == 0)
    return np.append(starts, position_ids.size).astype(np.int32)


def _to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.as_tensor(array)
    if device.type == "cuda":
        # What has gaps, as inputs cut from rows of one more token, would be copied once more, to
        # memory that is not pinned.
        return tensor.contiguous().pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
