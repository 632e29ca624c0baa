"""The device of a process, prepared for training and scoring."""

import re

import torch

from sweepcp.errors import InvalidInput
from sweepcp.models.memory import CONTEXT_BYTES
from sweepcp.util.gpus import Device

CPU = torch.device("cpu")
NO_MEMORY = re.compile(r"CUDA (driver )?error: out of memory|_STATUS_ALLOC_FAILED")
"""Messages of CUDA and its libraries, whose own memory torch's allocator does not manage."""


def open_device(device: Device, *, gpu_share: float = 1.0) -> torch.device:
    """Return a device on which fp32 is fp32, and of whose memory this process takes its share.

    Args:
        device: `cuda` for the first GPU that is visible.
        gpu_share: The share of the GPU's memory that this process may use, with the CUDA context.

    Raises:
        InvalidInput: torch can use no GPU. The error names no file.
    """
    if device == "cpu":
        return CPU
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise InvalidInput(
            key="budget.gpus_per_trial",
            found=f"torch {torch.__version__}, {build}, which sees no GPU",
            rule="a torch that can use the GPU",
            fix="install a torch for the driver's version of CUDA, or set budget.gpus_per_trial "
            "to 0 to use CPUs",
        )
    switch_off_tf32()
    opened = torch.device("cuda")
    if gpu_share < 1:
        # The allocator does not count the context, of which each process has one.
        total = torch.cuda.get_device_properties(opened).total_memory
        context = CONTEXT_BYTES / total
        torch.cuda.set_per_process_memory_fraction(max(0.0, gpu_share - context))
    return opened


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the memory of the device is used up."""
    return isinstance(error, torch.OutOfMemoryError) or bool(NO_MEMORY.search(str(error)))


def switch_off_tf32() -> None:
    """Make fp32 on a GPU fp32, in the products of this process."""
    # TF32 has 10 bits of mantissa. Environment variables and other libraries may have switched it
    # on, and cuDNN has it on by default.
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
