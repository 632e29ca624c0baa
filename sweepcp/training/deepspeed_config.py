"""The DeepSpeed configuration of a full run."""

from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.config.target import Target

MEBI = 1 << 20
SILENT = 1 << 30
"""Steps between DeepSpeed's own log lines: the run has its own."""


def divides_batch(recipe: Recipe, target: Target, *, world_size: int) -> bool:
    """Return whether each of `world_size` data-parallel processes gets whole micro batches."""
    return recipe.sequences % (world_size * target.compute.micro_batch) == 0


def zero_config(recipe: Recipe, target: Target, *, world_size: int) -> dict[str, Any]:
    """Return the ZeRO-3 configuration of a recipe for `world_size` processes that divide its batch.

    Every number is resolved, no `auto` is left. It has no scheduler, because the engine sets the LR
    of every step from the recipe.
    """
    compute = target.compute
    on_gpu = target.hardware.device == "cuda"
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": 64 * MEBI,
        "stage3_prefetch_bucket_size": 48 * MEBI,
        # Smaller parameters (norms, biases) stay gathered: fetching each would cost only latency.
        "stage3_param_persistence_threshold": 100_000,
    }
    if compute.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if compute.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_batch_size": recipe.sequences,
        "train_micro_batch_size_per_gpu": compute.micro_batch,
        "gradient_accumulation_steps": recipe.sequences // (world_size * compute.micro_batch),
        "gradient_clipping": recipe.clip,
        "zero_optimization": zero,
        # With an offloaded optimizer DeepSpeed otherwise insists on its own CPU Adam, which is
        # compiled on first use and whose arithmetic is not that of torch's AdamW in the trials.
        "zero_force_ds_cpu_optimizer": False,
        # By default gradients would be summed over the processes in the precision of the weights.
        "communication_data_type": "fp32",
        "steps_per_print": SILENT,
    }
    if compute.precision == "bf16":
        # The same for their sum over micro batches.
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config
