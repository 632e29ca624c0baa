"""The DeepSpeed configuration of a full run."""

import sys
from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.config.target import Target
from sweepcp.errors import InvalidInput

MEBI = 1 << 20
SILENT = 1 << 30
"""Steps between DeepSpeed's own log lines: the run has its own."""


def divides_batch(recipe: Recipe, target: Target, *, world_size: int) -> bool:
    """Return whether each of `world_size` data-parallel processes gets whole micro batches."""
    return recipe.sequences % (world_size * target.compute.micro_batch) == 0


def check_deepspeed(target: Target, *, world_size: int) -> None:
    """Check the target's `deepspeed` keys against its other keys and the number of processes.

    Raises:
        InvalidInput: Hierarchical partitioning does not divide the processes, weights are to be
            quantised on CPUs, or a section describes an offload that the target does not ask for.
    """
    stated = target.deepspeed.zero_optimization
    group_size = stated.zero_hpz_partition_size or 1
    if world_size % group_size:
        raise InvalidInput(
            key="deepspeed.zero_optimization.zero_hpz_partition_size",
            found=group_size,
            rule=f"a number that divides the {world_size} processes of the run",
            fix=f"use the {target.hardware.per_node} processes of a node, or start another number "
            "of processes",
        )
    if stated.zero_quantized_weights and target.hardware.device == "cpu":
        raise InvalidInput(
            key="deepspeed.zero_optimization.zero_quantized_weights",
            found=True,
            rule="false on CPUs: DeepSpeed's kernel is one for GPUs",
            fix="remove it",
        )
    for name in ("offload_optimizer", "offload_param"):
        if getattr(stated, name) is not None and name not in _offload_sections(target):
            raise InvalidInput(
                key=f"deepspeed.zero_optimization.{name}",
                found=getattr(stated, name).model_dump(exclude_none=True),
                rule="an offload that the target asks for; compute.offload is "
                f"{target.compute.offload}",
                fix="remove the section, or change compute.offload",
            )


def zero_config(recipe: Recipe, target: Target, *, world_size: int) -> dict[str, Any]:
    """Return the ZeRO-3 configuration of a recipe for `world_size` processes that divide its batch.

    Every number is resolved, no `auto` is left. It has no scheduler, because the engine sets the LR
    of every step from the recipe. The target's `deepspeed` keys are merged into it.
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
    for name in _offload_sections(target):
        zero[name] = {"device": "cpu", "pin_memory": on_gpu}
    config: dict[str, Any] = {
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
    return _merge(config, target.deepspeed.stated())


def config_of_process(config: dict[str, Any], *, world_size: int) -> dict[str, Any]:
    """Return a configuration with what changes the speed of a run and not its numbers.

    It is no part of a bundle's `ds_config.json`, which other trainers read, too.
    """
    # DeepSpeed's throughput timer waits for the GPU twice per micro batch; the run logs its own.
    settings = config | {"timers": {"throughput": {"enabled": False}}}
    zero = config["zero_optimization"]
    copies = ("offload_param", "zero_quantized_weights", "stage3_allgather_sequential")
    if world_size == 1 and not any(zero.get(key) for key in copies):
        # The shard of the only process is the whole parameter, and a gathered parameter is a view
        # of it. Fetching each one in every layer would wait for the GPU and save no memory.
        settings["zero_optimization"] = zero | {
            "stage3_param_persistence_threshold": sys.maxsize,
        }
    return settings


def _offload_sections(target: Target) -> tuple[str, ...]:
    """Return the sections of `zero_optimization` that `compute.offload` asks for."""
    sections = {
        "none": (),
        "optimizer": ("offload_optimizer",),
        "all": ("offload_optimizer", "offload_param"),
    }
    return sections[target.compute.offload]


def _merge(config: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with the values of another one, section by section."""
    merged = dict(config)
    for key, value in stated.items():
        merged[key] = _merge(config.get(key, {}), value) if isinstance(value, dict) else value
    return merged
