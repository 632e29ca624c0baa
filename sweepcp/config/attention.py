"""What an implementation of attention needs of the machine, before any library is imported."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

from sweepcp.config.types import Attention
from sweepcp.errors import InvalidInput

PACKED: tuple[Attention, ...] = ("flash_attention_2", "varlen")
"""Implementations that get documents by their boundaries. Their kernels compute in bf16 only."""
PER_DOCUMENT_TOKENS = 512
"""Tokens of a sequence from which on attention document by document is faster on a CPU than sdpa
with a mask. Measured: forward and backward passes of Llamas of 0.1 and 5 M parameters, in fp32 and
bf16, with documents of 30 tokens and more; at 256 tokens neither is faster in general."""


def best_attention(
    check: Callable[[Attention], None], *, device: str, seq_len: int, isolated: bool
) -> Attention:
    """Return what `auto` means: the fastest implementation that passes a check, or else sdpa.

    Args:
        check: Raises `InvalidInput` for an implementation that cannot run.
        device: `cpu` or `cuda`.
        seq_len: Tokens of a training sequence.
        isolated: Whether packed documents are separated.
    """
    faster: tuple[Attention, ...] = ()
    if device == "cpu":
        if isolated and seq_len >= PER_DOCUMENT_TOKENS:
            faster = ("varlen",)
    else:
        # Without boundaries inside sequences, varlen is sdpa's causal kernel, which is the fastest.
        faster = PACKED if isolated else ("varlen",)
    for name in faster:
        try:
            check(name)
        except InvalidInput:
            continue
        return name
    return "sdpa"


def expected_attention(
    wanted: Attention, *, device: str, precision: str, seq_len: int, isolated: bool
) -> Attention:
    """Return what `wanted` means for a model that supports every implementation.

    Args:
        wanted: The implementation that is asked for.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
        seq_len: Tokens of a training sequence.
        isolated: Whether packed documents are separated.
    """
    if wanted != "auto":
        return wanted
    check = partial(check_attention, device=device, precision=precision)
    return best_attention(check, device=device, seq_len=seq_len, isolated=isolated)


def check_attention(wanted: Attention, *, device: str, precision: str) -> None:
    """Check that an implementation of attention can run on a device in a precision.

    Args:
        wanted: The implementation that is asked for.
        device: `cpu` or `cuda`.
        precision: `fp32`, `bf16`, or `auto` for the device's own.

    Raises:
        InvalidInput: It cannot. The error names neither file nor key.
    """
    if wanted == "flash_attention_2" and device == "cpu":
        raise InvalidInput(
            found=f"{wanted} on a CPU",
            rule="an implementation that the device has: flash-attn runs on GPUs only",
            fix="set it to auto, or train on a GPU",
        )
    if wanted in PACKED and device != "cpu" and precision == "fp32":
        raise InvalidInput(
            found=f"{wanted} in fp32",
            rule="an implementation that has the precision: this one computes in bf16 only",
            fix="set it to auto, or compute in bf16, which needs compute capability 8.0",
        )
    if wanted == "flash_attention_2" and find_spec("flash_attn") is None:
        raise InvalidInput(
            found=f"{wanted}, and flash-attn is not installed",
            rule="an implementation that is installed",
            fix="install flash-attn in the environment of every process, or set it to auto",
        )
