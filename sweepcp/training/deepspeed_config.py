"""DeepSpeed's configuration."""

from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.config.target import Target


def zero_config(recipe: Recipe, target: Target, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration for `world` processes. No scheduler: the LR of every step is the recipe's."""
    compute, mebi = target.compute, 1 << 20
    on_gpu = target.hardware.device == "cuda"
    zero: dict[str, Any] = {
        "stage": 3,
        "overlap_comm": on_gpu,
        "contiguous_gradients": True,
        "reduce_bucket_size": 64 * mebi,
        "stage3_prefetch_bucket_size": 48 * mebi,
        "stage3_param_persistence_threshold": 100_000,
    }
    if compute.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    if compute.offload == "all":
        zero["offload_param"] = {"device": "cpu", "pin_memory": on_gpu}
    config = {
        "train_batch_size": recipe.sequences,
        "train_micro_batch_size_per_gpu": compute.micro_batch,
        "gradient_accumulation_steps": recipe.sequences // (world * compute.micro_batch),
        "gradient_clipping": recipe.clip,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 30,
    }
    if compute.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    return config
