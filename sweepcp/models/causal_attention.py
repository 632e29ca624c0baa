"""Causal attention within documents by sdpa, which has kernels for every device and precision.

All tensors have the shape (tokens, heads, head size); keys and values may have fewer heads.
"""

import torch
from torch.nn.functional import scaled_dot_product_attention


def attend_by_rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    documents: int,
    scale: float | None,
) -> torch.Tensor:
    """Attend within documents of one length, which are rows of a batch."""
    q, k, v = (
        tensor.unflatten(0, (documents, -1)).transpose(1, 2) for tensor in (query, key, value)
    )
    is_grouped = query.shape[1] != key.shape[1]
    output = scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=is_grouped
    )
    return output.transpose(1, 2).flatten(0, 1)


# Compiled, it would be unrolled over the documents, and compiled again for each number of them.
@torch.compiler.disable  # type: ignore[untyped-decorator]  # torch has no types for it
def attend_one_by_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    cu_seq_lens: torch.Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attend within one document after the other, each by the causal kernel."""
    lengths = cu_seq_lens.diff().tolist()
    # Splitting the whole has one gradient of the size of the whole; each slice would have its own.
    queries, keys, values = (
        tensor.transpose(0, 1)[None].split(lengths, dim=2) for tensor in (query, key, value)
    )
    outputs = []
    for q, k, v in zip(queries, keys, values, strict=True):
        mask = None if window is None or longest <= window else _window_mask(q.shape[2], window)
        output = scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        outputs.append(output[0].transpose(0, 1))
    return torch.cat(outputs)


def _window_mask(tokens: int, window: int) -> torch.Tensor | None:
    """Return which tokens each one attends to; None where these are all before it."""
    if tokens <= window:
        return None
    position = torch.arange(tokens)
    distance = position[:, None] - position[None]
    return (distance >= 0) & (distance < window)
