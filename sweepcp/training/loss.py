"""The loss of packed documents."""

from inspect import signature
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, log_softmax, nll_loss

from sweepcp.data.stream import IGNORED
from sweepcp.models.attention import PACKED, attention_of
from sweepcp.models.memory import CHUNK_BYTES
from sweepcp.training.batches import MicroBatch


def token_losses(model: Any, micro_batch: MicroBatch) -> torch.Tensor:
    """Compute the negative log-likelihood of each target.

    Packed documents are separated by positions that restart or by their boundaries, so the model is
    called without an attention mask and without a cache.

    Args:
        model: A causal LM, or an engine that wraps one.
        micro_batch: Packed sequences on the model's device.

    Returns:
        Nats in fp32, shape (rows, seq_len), 0 where the target is ignored.
    """
    module = getattr(model, "module", model)
    inputs, positions = micro_batch.input_ids, micro_batch.position_ids
    arguments: dict[str, Any] = {"use_cache": False}
    if attention_of(module) in PACKED:
        inputs, positions = inputs.reshape(1, -1), positions.reshape(1, -1)
        for side in ("q", "k"):
            arguments[f"cu_seq_lens_{side}"] = micro_batch.cu_seq_lens
            arguments[f"max_length_{side}"] = micro_batch.longest
    # Architectures without positions (ALiBi, state-space models) cannot separate documents, which
    # `check_isolation` finds; others would not take the argument.
    if "position_ids" in signature(module.forward).parameters:
        arguments["position_ids"] = positions
    logits = model(input_ids=inputs, **arguments).logits
    losses = chunked_cross_entropy(logits.flatten(0, 1), micro_batch.targets.flatten())
    return losses.view_as(micro_batch.targets)


def chunked_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of each row in fp32, without ever having all logits in fp32.

    Args:
        logits: Shape (rows, entries), in the dtype that the model computes in.
        targets: Shape (rows,); rows of `IGNORED` have the loss 0.

    Returns:
        Nats in fp32, shape (rows,).
    """
    if logits.dtype == torch.float32 and logits.device.type == "cpu":
        # Nothing is to be converted; memory is no concern where speed is.
        return cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    losses: torch.Tensor = _ChunkedCrossEntropy.apply(logits, targets)  # type: ignore[no-untyped-call]
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy over chunks of rows; the gradient has the dtype of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the losses, see `chunked_cross_entropy`."""
        size = _chunk_rows(logits)
        chunks = []
        for rows, wanted in zip(logits.split(size), targets.split(size), strict=True):
            log_shares = log_softmax(rows, -1, dtype=torch.float32)
            chunks.append(nll_loss(log_shares, wanted, ignore_index=IGNORED, reduction="none"))
            del log_shares  # before the next chunk is made
        losses = torch.cat(chunks)
        ctx.save_for_backward(logits, targets, losses)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient of the logits: softmax less the target, times that of the loss."""
        logits, targets, losses = ctx.saved_tensors
        # Ignored rows have the gradient 0, which makes any index for them right.
        gradient = gradient.masked_fill(targets == IGNORED, 0.0)[:, None]
        index = targets.clamp(min=0)[:, None]
        # The kernel computes in fp32 and rounds its result, so that nothing is converted. What is
        # near 0 would be lost if 1 were subtracted from a rounded share: the loss tells it exactly.
        result = torch.softmax(logits, -1)
        result.scatter_(1, index, torch.expm1(-losses).to(result.dtype)[:, None])
        size = _chunk_rows(logits)
        for rows, factor in zip(result.split(size), gradient.split(size), strict=True):
            rows.mul_(factor)
        return result, None


def _chunk_rows(logits: torch.Tensor) -> int:
    # The log-softmax of a chunk is beside the chunk in fp32.
    return max(1, CHUNK_BYTES // (2 * 4 * logits.shape[-1]))
