"""What an implementation of attention needs of the machine, before any library is imported."""

from importlib.util import find_spec

from sweepcp.config.types import Attention
from sweepcp.errors import InvalidInput

PACKED: tuple[Attention, ...] = ("flash_attention_2", "varlen")
"""Implementations that get documents by their boundaries. Their kernels compute in bf16 only."""


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
