"""Estimates for the full run: memory per GPU, hours and cost."""

from sweepcp.config.attention import expected_attention
from sweepcp.config.budget import PUBLISHED_OVERRUN
from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.config.target import ComputeSettings, Target
from sweepcp.models.memory import peak_of_step
from sweepcp.promote.bundle import Expense, Interval, Memory

OFFLOADED_STATES = {
    "none": (),
    "optimizer": ("master", "gradients", "optimizer"),
    "all": ("weights", "master", "gradients", "optimizer"),
}
"""Value of `offload` → model states that DeepSpeed keeps in host memory."""


def estimate_memory(dimensions: ModelDimensions, target: Target, *, isolated: bool) -> Memory:
    """Estimate the bytes per GPU under ZeRO-3, and per node of host memory.

    Model states are weights in the precision of the run, fp32 master weights, fp32 gradients and
    two fp32 AdamW moments, sharded over all GPUs: 18 bytes per parameter in bf16, as in DeepSpeed's
    `estimate_zero3_model_states_mem_needs`. The largest module is gathered with its gradients.
    Activations, masks and logits are those of `sweepcp.models.memory`.

    Args:
        dimensions: Of the model.
        target: Its devices and how a step is computed.
        isolated: Whether packed documents are separated.
    """
    compute, world_size = target.compute, target.hardware.world_size
    width = _bytes_per_value(compute)
    shard = -(-dimensions.parameter_count // world_size)
    hierarchical = target.deepspeed.zero_optimization.zero_hpz_partition_size or 1
    # Hierarchical partitioning keeps a second copy of the weights in each group of processes.
    copy = -(-dimensions.parameter_count // hierarchical) if hierarchical > 1 else 0
    states = {
        "weights": width * (shard + copy),
        "master": 4 * shard,
        "gradients": 4 * shard,
        "optimizer": 8 * shard,
    }
    offloaded = OFFLOADED_STATES[compute.offload]
    on_gpu = {name: 0 if name in offloaded else size for name, size in states.items()}
    step = peak_of_step(
        dimensions,
        micro_batch=compute.micro_batch,
        seq_len=target.seq_len,
        arithmetic=compute.precision,
        attention=expected_attention(
            compute.attention,
            device=target.hardware.device,
            precision=compute.precision,
            seq_len=target.seq_len,
            isolated=isolated,
        ),
        recompute=compute.recompute,
        isolated=isolated,
    )
    return Memory(
        **on_gpu,
        gathered=2 * width * dimensions.largest_module_parameters,
        activations=step.activations,
        masks=step.masks,
        logits=step.logits,
        host=sum(states[name] for name in offloaded) * target.hardware.per_node,
    )


def estimate_expense(dimensions: ModelDimensions, recipe: Recipe, target: Target) -> Expense:
    """Estimate the FLOPs of a run, and its hours and cost.

    They reach from those at the target's MFU to `PUBLISHED_OVERRUN` times as many, also where the
    MFU was measured: published runs exceeded the hours that follow from their own MFU, too, by
    restarts, checkpoints and evaluation. Hours are None if the target does not state the peak of
    its devices; cost is None if it does not state their price, either.
    """
    hardware = target.hardware
    flops = dimensions.flops_per_token(recipe.seq_len) * recipe.tokens
    hours = device_hours = usd = None
    if hardware.peak_tflops is not None:
        peak_flops = hardware.world_size * hardware.peak_tflops * 1e12
        lowest = flops / (peak_flops * hardware.mfu) / 3600
        hours = (lowest, lowest * PUBLISHED_OVERRUN)
        device_hours = _scale(hours, hardware.world_size)
        if hardware.usd_per_hour is not None:
            usd = _scale(device_hours, hardware.usd_per_hour)
    return Expense(flops=flops, mfu=hardware.mfu, hours=hours, device_hours=device_hours, usd=usd)


def _scale(interval: Interval, factor: float) -> Interval:
    return interval[0] * factor, interval[1] * factor


def _bytes_per_value(compute: ComputeSettings) -> int:
    return 2 if compute.precision == "bf16" else 4
