"""Training under DeepSpeed ZeRO-3: weights, gradients and optimizer are partitioned over the ranks.

The API and the internals that are used here are those of DeepSpeed 0.19, which is pinned. Of a
partitioned parameter p, `p.shape` and `p.data` are empty; `p.ds_shape` and `p.ds_numel` are those
of the whole tensor, and `p.ds_tensor` is this rank's shard, padded so that it is equally long on
every rank.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import prevent_arange_dtype_change

from sweepcp.config.recipe import Recipe
from sweepcp.config.types import Attention
from sweepcp.data.stream import Batch
from sweepcp.errors import InvalidInput, WorkLost, located
from sweepcp.models.architecture import build_model, read_model_config
from sweepcp.models.attention import resolve_attention
from sweepcp.models.checkpoint import MatchedTensor, match_tensors
from sweepcp.models.files import SafetensorsFile, read_config
from sweepcp.models.randomness import format_settings, random_settings
from sweepcp.training.batches import to_micro_batches
from sweepcp.training.deepspeed_config import config_of_process
from sweepcp.training.device import switch_off_tf32
from sweepcp.training.engine import build_adamw, copy_to_host
from sweepcp.training.isolation import ensure_isolation
from sweepcp.training.launcher import LaunchedProcess, set_rendezvous_environment
from sweepcp.training.loss import token_losses
from sweepcp.training.process_group import FILES_TIMEOUT, ProcessGroup
from sweepcp.training.sharded_weights import (
    read_weights,
    refuse_converted,
    shard_range,
    write_weights,
)
from sweepcp.util.environment import set_home_for_libraries
from sweepcp.util.parallel import threads_per_rank

logger = logging.getLogger(__name__)
MOMENTS = ("exp_avg", "exp_avg_sq")
"""What torch's AdamW keeps per element besides the weight."""


def join_process_group(device: str) -> ProcessGroup:
    """Join the process group that the launcher started, over NCCL on `cuda` and gloo on `cpu`."""
    deepspeed = _import_deepspeed(device)
    torch.set_num_threads(threads_per_rank())
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", message=".*deprecated.*", module="torch.distributed")
    process = set_rendezvous_environment()
    rank, world_size = process.rank, process.world_size
    if device == "cpu":
        # `init_distributed` asks this table whether it can compile its shared-memory collectives.
        # Filling the table runs compilers for every op of DeepSpeed, and gloo needs none of them.
        deepspeed.ops.__compatible_ops__ = {}
        _meet(process, "gloo")
        return ProcessGroup(rank=rank, world_size=world_size, local_rank=process.local_rank)
    local = torch.device("cuda", process.gpu_index(torch.cuda.device_count()) or 0)
    torch.cuda.set_device(local)
    switch_off_tf32()
    # DeepSpeed takes LOCAL_RANK for the index of the GPU, which is 0 for every task that sees its
    # own GPU alone.
    os.environ["LOCAL_RANK"] = str(local.index)
    _meet(process, "nccl")
    return ProcessGroup(
        rank=rank, world_size=world_size, local_rank=process.local_rank, device=local
    )


def check_zero_settings(settings: dict[str, Any], device: str) -> None:
    """Check `zero_optimization` with the installed DeepSpeed.

    Raises:
        InvalidInput: It takes other keys or values than those that promotion knows.
    """
    deepspeed = _import_deepspeed(device)
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InvalidInput(
            key=".".join(map(str, problem["loc"])),
            found=problem["input"],
            rule=f"what DeepSpeed {deepspeed.__version__} takes: {problem['msg']}",
            fix="change the key in the target, and promote again",
        ) from None


def _import_deepspeed(device: str) -> Any:
    if device == "cpu":
        # DeepSpeed chooses its accelerator when it is imported.
        os.environ["DS_ACCELERATOR"] = "cpu"
    set_home_for_libraries()
    import deepspeed

    return deepspeed


def _meet(process: LaunchedProcess, backend: str) -> None:
    import deepspeed

    try:
        deepspeed.init_distributed(backend, timeout=FILES_TIMEOUT)
    except (torch.distributed.DistStoreError, torch.distributed.DistNetworkError) as error:
        place = f"MASTER_ADDR {os.environ['MASTER_ADDR']}, MASTER_PORT {os.environ['MASTER_PORT']}"
        raise WorkLost(
            f"the {process.world_size} processes of the run did not meet at {place} "
            f"({str(error).splitlines()[0]})"
        ) from error


class ZeroEngine:
    """A model and its optimizer, partitioned over the ranks of a group.

    Each rank reads its own shard of each tensor. In bf16 the fp32 master weights start from the
    bf16 ones.
    """

    def __init__(
        self,
        shards: list[SafetensorsFile],
        recipe: Recipe,
        config: dict[str, Any],
        group: ProcessGroup,
        *,
        attention: Attention,
        recompute: bool,
    ) -> None:
        """Build the model, read its weights and partition its optimizer.

        Args:
            shards: The model's files; its configuration is in the same folder.
            recipe: Optimizer settings.
            config: DeepSpeed's configuration, with every number resolved.
            group: The ranks, which call this together.
            attention: Implementation of attention, see `resolve_attention`.
            recompute: Whether activations are checkpointed.

        Raises:
            InvalidInput: The files do not hold exactly the model's parameters, or the model cannot
                compute with the implementation of attention, or does not isolate packed documents.
        """
        import deepspeed

        self.group, self.shards = group, shards
        self.micro_batch = int(config["train_micro_batch_size_per_gpu"])
        folder = shards[0].path.parent
        if settings := random_settings(read_config(folder)):
            logger.warning("%s/config.json has %s: set to 0", folder, format_settings(settings))
        self.model = _build_partitioned_model(folder, config, group, recipe, attention=attention)
        if recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        # A tied parameter is here under each of its names: a file may use any of them.
        self.parameters: dict[str, Any] = dict(self.model.named_parameters(remove_duplicate=False))
        matched = match_tensors(shards, self.model)
        refuse_converted(matched)
        self.trained = [tensor for tensor in matched if tensor.name in self.parameters]
        self._load_buffers([tensor for tensor in matched if tensor.name not in self.parameters])
        # `initialize` copies the shards into its fp32 master weights, so they are read before.
        self._load_base()
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=build_adamw(self.model, recipe),
            config=config_of_process(config, world_size=group.world_size),
        )
        with located(folder):
            ensure_isolation(
                self.model,
                group,
                wanted=attention,
                seq_len=recipe.seq_len,
                packed=not recipe.cross_documents,
            )

    def _load_base(self) -> None:
        """Read this rank's shard of every parameter."""

        def put(name: str, values: torch.Tensor) -> None:
            parameter = self.parameters[name]
            parameter.ds_tensor.data[: len(values)].copy_(values)
            # Padding is not initialised, and would be scaled with the weights when they are
            # quantised.
            parameter.ds_tensor.data[len(values) :].zero_()
            # In hierarchical partitioning zero.Init has made the second copy, too, of weights that
            # were not there yet. Without one, the next forward pass gathers the weights from all
            # ranks and makes it.
            parameter.ds_secondary_tensor = None

        read_weights(self.trained, self.group, put)

    def _load_buffers(self, tensors: list[MatchedTensor]) -> None:
        """Read the persistent buffers, which are not partitioned: every rank has all of them."""
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        for tensor in tensors:
            with safe_open(tensor.shard.path, framework="pt") as file:
                buffers[tensor.name].copy_(file.get_tensor(tensor.info.name))

    def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
        """Take one optimizer step, see `TrainingEngine.step`."""
        self.engine.train()
        micro_batches = len(batch.input_ids) // self.micro_batch
        # DeepSpeed divides by the accumulation steps in `backward` and by the ranks when it reduces
        # gradients: a mean of means, whatever the numbers of targets. Multiplying by both, and
        # dividing by the targets of all ranks, leaves the mean per target token.
        scale = self.group.world_size * micro_batches / target_tokens
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        row_losses = []
        for micro_batch in to_micro_batches(batch, rows=self.micro_batch, device=self.group.device):
            summed = token_losses(self.engine, micro_batch).sum(1)
            self.engine.backward(summed.sum() * scale)
            # Counts micro batches, and updates the weights after the last one of the batch.
            self.engine.step()
            row_losses.append(summed.detach())
        return copy_to_host(row_losses, self.engine.get_global_grad_norm())

    def save_weights(self, out: Path) -> None:
        """Write the model in the Hugging Face format from the fp32 masters, all ranks together."""
        from deepspeed.utils import safe_get_full_fp32_param

        def gather(name: str) -> torch.Tensor:
            values: torch.Tensor = safe_get_full_fp32_param(self.parameters[name])
            return values

        write_weights(self.shards, self.trained, out, self.group, gather)

    def state(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Iterate over the fp32 master weights and the optimizer's moments.

        Yields:
            Name, number of elements of the whole tensor, and this rank's shard, shape (elements,)
            without padding, so that another number of ranks can read it.
        """
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        parameter: Any  # DeepSpeed adds attributes to it
        for name, parameter in self.model.named_parameters():
            size = int(parameter.ds_numel)
            first, last = shard_range(size, rank=self.group.rank, world_size=self.group.world_size)
            yield f"master/{name}", size, safe_get_local_fp32_param(parameter)[: last - first]
            for moment in MOMENTS:
                values = safe_get_local_optimizer_state(parameter, moment)
                yield f"{moment}/{name}", size, values[: last - first]

    def set_state(self, state: Iterable[tuple[str, torch.Tensor]], *, steps: int) -> None:
        """Restore a state, on all ranks together.

        Args:
            state: Name and this rank's shard of every tensor that `state` yields.
            steps: Optimizer steps that had been taken.
        """
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        self._fill_optimizer_state(steps)
        # Small parameters stay gathered between steps. The prologue drops these whole copies and
        # the epilogue gathers them again, from the restored shards.
        self.optimizer.checkpoint_event_prologue()
        parameters: dict[str, Any] = dict(self.model.named_parameters())
        for key, values in state:
            kind, _, name = key.partition("/")
            parameter = parameters[name]
            # DeepSpeed sets shards of the padded length only.
            padded = torch.zeros(
                parameter.ds_tensor.numel(), dtype=torch.float32, device=self.group.device
            )
            padded[: len(values)] = values.to(self.group.device)
            if kind == "master":
                # The weights that compute are derived from the masters only at the end of a step,
                # so both are set.
                parameter.ds_tensor.data.copy_(padded)
                safe_set_local_fp32_param(parameter, padded)
            else:
                safe_set_local_optimizer_state(parameter, padded, kind)
        self.optimizer.checkpoint_event_epilogue()

    def _fill_optimizer_state(self, steps: int) -> None:
        """Create AdamW's state, with zero moments, as it is after some steps."""
        # torch's AdamW creates its state in its first step, and DeepSpeed can only set moments that
        # exist. DeepSpeed hands it one flat fp32 tensor for each sub-group of parameters in place
        # of the parameters, so the state has that key. `step` drives the bias correction.
        adamw = self.optimizer.optimizer
        for flat in self.optimizer.fp32_partitioned_groups_flat:
            adamw.state[flat] = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            adamw.state[flat]["step"] = torch.tensor(float(steps), device=flat.device)


def _build_partitioned_model(
    folder: Path,
    config: dict[str, Any],
    group: ProcessGroup,
    recipe: Recipe,
    *,
    attention: Attention,
) -> PreTrainedModel:
    """Build the model of a configuration, partitioned over the ranks and without its weights."""
    import deepspeed

    in_bf16 = bool(config.get("bf16", {}).get("enabled"))
    model_config = read_model_config(folder)
    with located(folder, "compute.attention"):
        resolved = resolve_attention(
            attention,
            model_config,
            device=group.device,
            in_bf16=in_bf16,
            seq_len=recipe.seq_len,
            isolated=not recipe.cross_documents,
        )
    logger.info("attention: %s", resolved)
    # zero.Init partitions each module's parameters as soon as the module is built, so the whole
    # model is never in memory. Random initialisation would be wasted work, and transformers' own
    # comes at the end, when there are only empty tensors left to initialise. RoPE frequencies are
    # computed from `arange`, which zero.Init would cast to bf16.
    with (
        no_init_weights(),
        prevent_arange_dtype_change(),
        deepspeed.zero.Init(config_dict_or_path=config),
    ):
        dtype = torch.bfloat16 if in_bf16 else torch.float32
        model = build_model(model_config, attention=resolved, dtype=dtype)
    # transformers ties weights where it initialises them, which was switched off.
    model.tie_weights()
    return model
