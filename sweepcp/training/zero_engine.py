"""What a step of the full run runs on: DeepSpeed ZeRO-3, a part of weights, gradients and optimizer on each rank."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.integrations.deepspeed import prevent_arange_dtype_change

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import Batch
from sweepcp.errors import InvalidInput
from sweepcp.models.files import SafetensorsFile
from sweepcp.training.engine import build_adamw, token_losses
from sweepcp.training.process_group import ProcessGroup, set_rendezvous_environment
from sweepcp.training.sharded_weights import read_weights, shard_range, write_weights

MOMENTS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of every element besides the weight."""


def join_process_group(device: str) -> ProcessGroup:
    """Join the process group of the launcher, over NCCL on `cuda` and over gloo on `cpu`."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    warnings.filterwarnings(
        "ignore", message=".*deprecated.*", module="torch.distributed"
    )  # what DeepSpeed calls
    set_rendezvous_environment()
    if device == "cpu":
        deepspeed.ops.__compatible_ops__ = {}  # gloo needs none of the ops that would be compiled here
        deepspeed.init_distributed("gloo")
        return ProcessGroup(
            int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), torch.device("cpu")
        )
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(local)
    deepspeed.init_distributed("nccl")
    return ProcessGroup(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), local)


class ZeroEngine:
    """A model and its optimizer, spread over the ranks.

    `config` is DeepSpeed's, with every number resolved. Each rank reads its own part of each shard; in bf16 the fp32
    master weights start from the bf16 ones.
    """

    def __init__(
        self,
        shards: list[SafetensorsFile],
        recipe: Recipe,
        config: dict[str, Any],
        attention: str,
        recompute: bool,
        ranks: ProcessGroup,
    ) -> None:
        import deepspeed

        self.ranks, self.shards = ranks, shards
        self.micro_batch = int(config["train_micro_batch_size_per_gpu"])
        dtype = torch.bfloat16 if config.get("bf16", {}).get("enabled") else torch.float32
        settings = AutoConfig.from_pretrained(shards[0].path.parent, trust_remote_code=False)
        with (
            no_init_weights(),
            prevent_arange_dtype_change(),
            deepspeed.zero.Init(config_dict_or_path=config),
        ):
            self.model = AutoModelForCausalLM.from_config(
                settings, dtype=dtype, attn_implementation=attention
            )
        self.model.tie_weights()
        if recompute:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self._load_base()
        self.engine, self.optimizer, *_ = deepspeed.initialize(
            model=self.model, optimizer=build_adamw(self.model, recipe), config=config
        )

    def step(self, batch: Batch, targets: int, lr: float) -> tuple[np.ndarray, float]:
        """One optimizer step; as `sweepcp.train.Steps` says.

        DeepSpeed takes the mean over ranks and micro batches of what it is handed, so the sum of the losses times both
        over all target tokens is handed to it, which makes that mean the loss per target token.
        """
        self.engine.train()
        pieces = len(batch.input_ids) // self.micro_batch
        losses = []
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for first in range(0, len(batch.input_ids), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            summed = token_losses(self.engine, self.ranks.device, batch, rows).sum(1)
            self.engine.backward(summed.sum() * (self.ranks.ranks * pieces / targets))
            self.engine.step()
            losses.append(summed.detach())
        return torch.cat(losses).double().cpu().numpy(), float(self.engine.get_global_grad_norm())

    def _load_base(self) -> None:
        """Read this rank's part of the model's files into the partitions."""
        read: set[int] = set()

        def put(name: str, values: torch.Tensor) -> None:
            parameter = self.parameters[name]
            parameter.ds_tensor.data[: len(values)].copy_(values)
            read.add(id(parameter))

        read_weights(
            self.shards, {n: tuple(p.ds_shape) for n, p in self.parameters.items()}, self.ranks, put
        )
        for name, parameter in self.parameters.items():
            if id(parameter) not in read:
                rule = "a tensor for every parameter of the model"
                fix = "save the model again with `save_pretrained` of this version of transformers"
                raise InvalidInput(
                    file=self.shards[0].path.parent, key=name, found="missing", rule=rule, fix=fix
                )

    def save_weights(self, out: Path) -> None:
        """Write the model in the Hugging Face format, from the fp32 masters; all ranks together."""
        from deepspeed.utils import safe_get_full_fp32_param

        write_weights(
            self.shards,
            out,
            self.ranks,
            lambda name: safe_get_full_fp32_param(self.parameters[name]),
        )

    def state(self) -> Iterator[tuple[str, int, torch.Tensor]]:
        """Name, whole size and this rank's part of the fp32 master weights and the optimizer's moments."""
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        for name, parameter in self.model.named_parameters():
            size = int(parameter.ds_numel)
            first, last = shard_range(size, self.ranks.rank, self.ranks.ranks)
            yield f"master/{name}", size, safe_get_local_fp32_param(parameter)[: last - first]
            for moment in MOMENTS:
                yield (
                    f"{moment}/{name}",
                    size,
                    safe_get_local_optimizer_state(parameter, moment)[: last - first],
                )

    def set_state(self, steps: int, state: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Go back, or on, to a state after `steps` optimizer steps: parts as `state` gives them, by name."""
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        inner = self.optimizer.optimizer
        for flat in self.optimizer.fp32_partitioned_groups_flat:
            inner.state[flat] = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            inner.state[flat]["step"] = torch.tensor(float(steps), device=flat.device)
        self.optimizer.checkpoint_event_prologue()
        names = dict(self.model.named_parameters())
        for key, values in state:
            kind, _, name = key.partition("/")
            parameter = names[name]
            padded = torch.zeros(
                parameter.ds_tensor.numel(), dtype=torch.float32, device=self.ranks.device
            )
            padded[: len(values)] = values.to(self.ranks.device)
            if kind == "master":
                parameter.ds_tensor.data.copy_(padded)
                safe_set_local_fp32_param(parameter, padded)
            else:
                safe_set_local_optimizer_state(parameter, padded, kind)
        self.optimizer.checkpoint_event_epilogue()
