"""The `deepspeed` section of a target: what of DeepSpeed's configuration a target may add.

The classes name every key that passes; `refused_keys` names those of DeepSpeed 0.19 that do not,
and why. A test compares both with DeepSpeed's own fields.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sweepcp.config.types import PositiveInt
from sweepcp.config.validation import ConfigModel

Elements = Annotated[int, Field(ge=0)]
STATED = "a key that does not follow from the target and the recipe"
WITHOUT_EFFECT = "a key that has an effect in a full run, which is ZeRO-3 with torch's AdamW"
LOADS_CODE = "a key that neither loads code nor writes files of its own"


def _stated_by(keys: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {key: (STATED, f"remove it, and use `{place}`") for key, place in keys.items()}


def _refused(rule: str, *keys: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(keys, (rule, "remove it"))


class OffloadSettings(ConfigModel):
    """How states that `compute.offload` names are kept in host memory."""

    pin_memory: bool | None = None
    """Page-locked host memory, which copies faster; by default on GPUs."""

    refused_keys: ClassVar = {
        **_stated_by({"device": "compute.offload"}),
        **_refused(
            "a key of an offload to host memory; weights and states on NVMe cannot be loaded",
            *("nvme_path", "buffer_count", "buffer_size", "max_in_cpu"),
            *("pipeline_read", "pipeline_write", "fast_init"),
        ),
        **_refused(WITHOUT_EFFECT, "ratio", "super_offload", "cpuadam_cores_perc"),
    }


class ZeroSettings(ConfigModel):
    """`zero_optimization` of DeepSpeed's configuration, without what sweepcp states itself."""

    zero_hpz_partition_size: PositiveInt | None = None
    """Hierarchical partitioning: the number of consecutive processes, as a rule those of a node,
    that hold a second copy of the weights together, from which all but the first forward pass of a
    step gather them. It divides the number of processes."""
    zero_quantized_weights: bool | None = None
    """Whether weights are gathered in 8 bits. It changes the numbers of the run. On GPUs only;
    DeepSpeed compiles a kernel for it."""
    overlap_comm: bool | None = None
    """Whether gradients are reduced during the backward pass; by default on GPUs."""
    contiguous_gradients: bool | None = None
    """Whether gradients are copied into one buffer as they are produced; by default they are."""
    reduce_scatter: bool | None = None
    """Whether gradients are reduced by reduce-scatter; by default they are."""
    reduce_bucket_size: PositiveInt | None = None
    """Elements of gradients that are reduced at a time; by default 64 Mi."""
    sub_group_size: PositiveInt | None = None
    """Elements of the optimizer's state that are updated at a time; by default 1e9."""
    stage3_prefetch_bucket_size: Elements | None = None
    """Elements of weights that are gathered ahead of their use; by default 48 Mi."""
    stage3_param_persistence_threshold: Elements | None = None
    """Parameters with fewer elements stay gathered; by default 100,000. With one process all of
    them do, unless weights are offloaded, quantised or gathered sequentially."""
    stage3_model_persistence_threshold: Elements | None = None
    """Elements of all parameters that stay gathered together, at most."""
    stage3_max_live_parameters: Elements | None = None
    """Elements that are gathered at a time, at most; by default 1e9."""
    stage3_max_reuse_distance: Elements | None = None
    """A parameter stays gathered if it is used again within this many elements; by default 1e9."""
    stage3_module_granularity_threshold: Elements | None = None
    """Modules with fewer elements per submodule are gathered as a whole; by default none is."""
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    """Whether weights are gathered by all-reduce; by default they are not."""
    stage3_allgather_sequential: bool | None = None
    """Whether weights are gathered one parameter at a time, in less memory; by default they are
    not."""
    memory_efficient_linear: bool | None = None
    """Whether linear layers keep no gathered weight for the backward pass; by default they do
    not keep it."""
    log_trace_cache_warnings: bool | None = None
    """Whether DeepSpeed logs that the order of modules has changed."""
    enable_sanity_checks: bool | None = None
    """Whether DeepSpeed checks its own state at every step."""
    offload_param: OffloadSettings | None = None
    """For `compute.offload: all`."""
    offload_optimizer: OffloadSettings | None = None
    """For `compute.offload: optimizer` or `all`."""

    refused_keys: ClassVar = {
        **_refused("a key that is not fixed: a full run is ZeRO stage 3", "stage"),
        **_stated_by(
            dict.fromkeys(
                ("cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
                "compute.offload",
            )
        ),
        **_refused(
            "fp32 gradients between processes; DeepSpeed's kernel would read them as fp16",
            "zero_quantized_gradients",
        ),
        **_refused(
            "a key of DeepSpeed's own checkpoints; sweepcp writes and reads its own",
            *("load_from_fp32_weights", "elastic_checkpoint", "pipeline_loading_checkpoint"),
            "stage3_gather_16bit_weights_on_model_save",
            "stage3_gather_fp16_weights_on_model_save",
        ),
        **_refused(LOADS_CODE, "leaf_module"),
        **_refused(
            "weights that are read from files, and not initialised", "override_module_apply"
        ),
        **_refused(
            WITHOUT_EFFECT,
            *("use_multi_rank_bucket_allreduce", "allgather_partitions", "allgather_bucket_size"),
            *("compute_grad_norm", "ignore_unused_parameters", "legacy_stage1", "zenflow"),
            *("round_robin_gradients", "parameter_alignment"),
            *("zero_quantized_nontrainable_weights", "save_muon_momentum_buffer_in_memory"),
        ),
    }


class DeepSpeedSettings(ConfigModel):
    """Keys that are merged into DeepSpeed's configuration of a full run."""

    zero_optimization: ZeroSettings = ZeroSettings()
    """How weights, gradients and optimizer are partitioned and communicated."""
    wall_clock_breakdown: bool | None = None
    """Whether DeepSpeed logs the time of forward, backward and step, for which it synchronises."""
    memory_breakdown: bool | None = None
    """Whether DeepSpeed logs the memory before and after them."""

    refused_keys: ClassVar = {
        **_stated_by(
            {
                "train_batch_size": "batch_tokens",
                "train_micro_batch_size_per_gpu": "compute.micro_batch",
                "gradient_accumulation_steps": "batch_tokens",
                "managed_gradient_accumulation": "batch_tokens",
                "activation_checkpointing": "compute.recompute",
                "bf16": "compute.precision",
                "bfloat16": "compute.precision",
                "fp16": "compute.precision",
                "amp": "compute.precision",
                "torch_autocast": "compute.precision",
                "data_types": "compute.precision",
                "checkpoint": "checkpoints",
                "tensor_parallel": "parallelism",
                "pipeline": "parallelism",
                "tensorboard": "tracking",
                "wandb": "tracking",
                "comet": "tracking",
                "csv_monitor": "tracking",
            }
        ),
        **_refused(
            "a key that does not change how the recipe trains: a full run trains as trials did",
            *("optimizer", "scheduler", "gradient_clipping", "zero_allow_untested_optimizer"),
            *("zero_force_ds_cpu_optimizer", "weight_quantization", "compression_training"),
            *("data_efficiency", "curriculum_learning", "progressive_layer_drop", "eigenvalue"),
            *("sparse_attention", "sparse_gradients", "quantize_training", "dataloader_drop_last"),
        ),
        **_refused(
            "gradients that are summed in fp32 and averaged over the targets of the batch",
            *("communication_data_type", "prescale_gradients", "gradient_predivide_factor"),
            *("gradient_allreduce_op", "seq_parallel_communication_data_type"),
        ),
        **_refused("a key that every supported version of DeepSpeed has", "disable_python_gc"),
        **_refused(
            "a key that leaves the log to the run",
            *("steps_per_print", "dump_state", "timers", "log_level", "comms_logger"),
        ),
        **_refused(
            LOADS_CODE,
            *("autotuning", "flops_profiler", "nebula", "datastates_ckpt", "hybrid_engine"),
            *("elasticity", "compile"),
        ),
        **_refused(
            WITHOUT_EFFECT,
            *("aio", "disable_allgather", "graph_harvesting", "sequence_parallel_size"),
            *("expert_parallel", "use_data_before_expert_parallelism", "vocabulary_size"),
        ),
    }

    def stated(self) -> dict[str, Any]:
        """Return the keys that the target states, as DeepSpeed names them."""
        return self.model_dump(mode="json", exclude_none=True)
