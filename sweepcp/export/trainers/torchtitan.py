"""torchtitan: a configuration function, and a data loader that reads the run's stream."""

import re
from string import Template
from typing import Any

from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import (
    ExportInput,
    ExportPlan,
    download_commands,
    dropout_notes,
    monitoring_notes,
    python_literal,
    tracking_differences,
)

FLAVORS = {
    (2048, 16, 32, 8, 8192, 128_256, True): "1B",
    (3072, 28, 24, 8, 8192, 128_256, True): "3B",
    (4096, 32, 32, 8, 14_336, 128_256, False): "8B",
    (8192, 80, 64, 8, 28_672, 128_256, False): "70B",
    (16_384, 126, 128, 8, 53_248, 128_256, False): "405B",
}
"""Hidden size, layers, heads, key-value heads, MLP size, vocabulary, tied embeddings → flavor.

As in `torchtitan.models.llama3`.
"""
DECAY_TYPES = {"cosine": "cosine", "wsd-1-sqrt": "sqrt"}
"""Schedule of a recipe → `decay_type`, which is linear for the others."""
NORM_PARAMETERS = r"(^|.*\.)(attention_norm|ffn_norm|norm)\.weight$"
MODULE = Template('''\
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.metrics import MetricsProcessor
from torchtitan.components.optimizer import (
    LRSchedulersContainer,
    OptimizersContainer,
    ParamGroupConfig,
)
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.models.llama3 import model_registry
from torchtitan.trainer import Trainer


class StreamLoader(BaseDataLoader):
    """This data-parallel rank's sequences in stream order: the token shares hold at every step."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        bundle: str = ""
        bundle_hash: str = ""

    def __init__(
        self, config: Config, *, dp_world_size: int, dp_rank: int, local_batch_size: int, **_: Any
    ):
        from sweepcp.data.stream import MixtureStream
        from sweepcp.data.token_store import TokenStore
        from sweepcp.promote.bundle import load_bundle

        opened = load_bundle(Path(config.bundle))
        if opened.id != config.bundle_hash:
            raise ValueError(f"{config.bundle} is not the exported bundle; export again")
        self.recipe = opened.bundle.recipe
        self.stream = MixtureStream(
            self.recipe, [TokenStore(Path(str(c.store)), c.name) for c in opened.bundle.corpora]
        )
        self.rank, self.ranks, self.micro_batch = dp_rank, dp_world_size, local_batch_size
        # Micro batches yielded so far.
        self.given = 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        pieces = self.recipe.sequences // (self.ranks * self.micro_batch)
        for step in range(self.given // pieces + 1, self.recipe.steps + 1):
            batch = self.stream.batch(step, self.rank, self.ranks)
            for first in range(0, len(batch.input_ids), self.micro_batch):
                rows = slice(first, first + self.micro_batch)
                self.given += 1
                inputs, positions = (
                    torch.tensor(batch.input_ids[rows]),
                    torch.tensor(batch.position_ids[rows]),
                )
                yield {"input": inputs, "positions": positions}, torch.tensor(batch.targets[rows])

    # The state counts steps, not micro batches, so that a run resumes on any number of ranks.
    def state_dict(self) -> dict[str, Any]:
        pieces = self.recipe.sequences // (self.ranks * self.micro_batch)
        return {"steps": self.given // pieces}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.given = state["steps"] * (self.recipe.sequences // (self.ranks * self.micro_batch))


def run() -> Trainer.Config:
    model_spec = model_registry($model_spec_flavor, attn_backend=$attention_backend)
    return Trainer.Config(
        model_spec=model_spec,
        loss=ChunkedLossWrapper.Config(
            loss_fn=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(model_spec)),
        ),
        hf_assets_path=$hf_assets_path,
        dump_folder=$dump_folder,
        dataloader=StreamLoader.Config(
            bundle=$dataloader_bundle,
            bundle_hash=$dataloader_bundle_hash,
        ),
        optimizer=OptimizersContainer.Config(
            param_groups=[
                ParamGroupConfig(
                    pattern=$optimizer_param_groups_0_pattern,
                    optimizer_name=$optimizer_param_groups_0_optimizer_name,
                    optimizer_kwargs=$optimizer_param_groups_0_optimizer_kwargs,
                ),
                ParamGroupConfig(
                    pattern=$optimizer_param_groups_1_pattern,
                    optimizer_name=$optimizer_param_groups_1_optimizer_name,
                    optimizer_kwargs=$optimizer_param_groups_1_optimizer_kwargs,
                ),
            ],
        ),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=$lr_scheduler_warmup_steps,
            decay_ratio=$lr_scheduler_decay_ratio,
            decay_type=$lr_scheduler_decay_type,
            min_lr_factor=$lr_scheduler_min_lr_factor,
        ),
        training=TrainingConfig(
            local_batch_size=$training_local_batch_size,
            global_batch_size=$training_global_batch_size,
            seq_len=$training_seq_len,
            max_norm=$training_max_norm,
            steps=$training_steps,
            dtype=$training_dtype,
            mixed_precision_param=$training_mixed_precision_param,
            disable_cuda_graphs=$training_disable_cuda_graphs,
        ),
        parallelism=ParallelismConfig(
            tensor_parallel_degree=$parallelism_tensor_parallel_degree,
            pipeline_parallel_degree=$parallelism_pipeline_parallel_degree,
            pipeline_parallel_microbatch_size=$parallelism_pipeline_parallel_microbatch_size,
        ),
        checkpoint=CheckpointManager.Config(
            enable=$checkpoint_enable,
            interval=$checkpoint_interval,
            keep_latest_k=$checkpoint_keep_latest_k,
            initial_load_path=$checkpoint_initial_load_path,
            initial_load_in_hf=$checkpoint_initial_load_in_hf,
            last_save_in_hf=$checkpoint_last_save_in_hf,
            export_dtype=$checkpoint_export_dtype,
        ),
        activation_checkpoint=$activation_checkpoint,
        metrics=MetricsProcessor.Config(
            enable_tensorboard=$metrics_enable_tensorboard,
            enable_wandb=$metrics_enable_wandb,
        ),
        debug=DebugConfig(seed=$debug_seed),
    )
''')


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan `sweepcp_run.py`, which holds the configuration function `run`.

    Raises:
        InvalidInput: torchtitan has no flavor with the model's dimensions.
    """
    settings = _settings(export_input)
    literals = {re.sub(r"\W", "_", key): python_literal(value) for key, value in settings.items()}
    recompute = export_input.bundle.target.compute.recompute
    literals["activation_checkpoint"] = "FullAC.Config()" if recompute else "None"
    return ExportPlan(
        files={"sweepcp_run.py": MODULE.substitute(literals)},
        command=("-m", "torchtitan.train", "--module", "sweepcp_run", "--config", "run"),
        settings=settings,
        differences=tracking_differences(export_input, ("wandb",)),
        notes=(*monitoring_notes(export_input), *dropout_notes(export_input)),
        prepare=download_commands(export_input),
        env={"PYTHONPATH": str(export_input.out)},
        # Distributed checkpoints are complete once their metadata are written.
        complete_checkpoint=f"{export_input.checkpoint_folder}/checkpoint/step-*/.metadata",
    )


def _settings(export_input: ExportInput) -> dict[str, Any]:
    """Return everything that is set, by its path in `Trainer.Config`."""
    bundle, target = export_input.bundle, export_input.bundle.target
    return {
        **_optimizer_settings(export_input),
        "model_spec.flavor": _flavor(export_input),
        "attention backend": "flex",
        "activation_checkpoint": "FullAC" if target.compute.recompute else None,
        "hf_assets_path": export_input.model_folder,
        "dump_folder": export_input.checkpoint_folder,
        "dataloader.bundle": str(export_input.loaded.path),
        "dataloader.bundle_hash": export_input.loaded.id,
        **_schedule_settings(export_input),
        **_training_settings(export_input),
        **_checkpoint_settings(export_input),
        "metrics.enable_tensorboard": True,
        "metrics.enable_wandb": "wandb" in target.tracking,
        "debug.seed": bundle.recipe.seed,
    }


def _optimizer_settings(export_input: ExportInput) -> dict[str, Any]:
    """Return AdamW's settings: norms without weight decay first, as the first match counts."""
    recipe = export_input.bundle.recipe
    adamw = {"lr": export_input.max_lr, "betas": list(recipe.betas), "eps": recipe.epsilon}
    groups = {
        NORM_PARAMETERS: adamw | {"weight_decay": 0.0},
        ".*": adamw | {"weight_decay": recipe.weight_decay},
    }
    settings: dict[str, Any] = {}
    for number, (pattern, kwargs) in enumerate(groups.items()):
        path = f"optimizer.param_groups.{number}"
        settings[f"{path}.pattern"] = pattern
        settings[f"{path}.optimizer_name"] = "AdamW"
        settings[f"{path}.optimizer_kwargs"] = kwargs
    return settings


def _schedule_settings(export_input: ExportInput) -> dict[str, Any]:
    recipe = export_input.bundle.recipe
    # None: the LR decays over all steps after the warmup.
    decay_ratio = {"wsd": recipe.decay, "wsd-1-sqrt": recipe.decay, "constant": 0.0}
    return {
        "lr_scheduler.warmup_steps": recipe.warmup_length,
        "lr_scheduler.decay_ratio": decay_ratio.get(recipe.schedule),
        "lr_scheduler.decay_type": DECAY_TYPES.get(recipe.schedule, "linear"),
        "lr_scheduler.min_lr_factor": export_input.final_factor,
    }


def _training_settings(export_input: ExportInput) -> dict[str, Any]:
    recipe, target = export_input.bundle.recipe, export_input.bundle.target
    parallelism, compute = target.parallelism, target.compute
    # A pipeline splits its local batch into micro batches itself.
    pipelined = parallelism.pipeline > 1
    local_batch_size = recipe.sequences // target.replicas if pipelined else compute.micro_batch
    return {
        "training.local_batch_size": local_batch_size,
        "training.global_batch_size": recipe.sequences,
        "training.seq_len": recipe.seq_len,
        "training.max_norm": recipe.clip,
        "training.steps": recipe.steps,
        "training.dtype": "float32",
        "training.mixed_precision_param": _dtype(export_input),
        "training.disable_cuda_graphs": True,
        "parallelism.tensor_parallel_degree": parallelism.tensor,
        "parallelism.pipeline_parallel_degree": parallelism.pipeline,
        "parallelism.pipeline_parallel_microbatch_size": compute.micro_batch,
    }


def _checkpoint_settings(export_input: ExportInput) -> dict[str, Any]:
    checkpoints = export_input.bundle.target.checkpoints
    return {
        "checkpoint.enable": True,
        "checkpoint.interval": checkpoints.every,
        "checkpoint.keep_latest_k": checkpoints.keep,
        "checkpoint.initial_load_path": export_input.model_folder,
        "checkpoint.initial_load_in_hf": True,
        "checkpoint.last_save_in_hf": True,
        "checkpoint.export_dtype": _dtype(export_input),
    }


def _dtype(export_input: ExportInput) -> str:
    return "bfloat16" if export_input.bundle.target.compute.precision == "bf16" else "float32"


def _flavor(export_input: ExportInput) -> str:
    dimensions = export_input.bundle.model.shape
    sizes = (
        dimensions.hidden_size,
        dimensions.num_hidden_layers,
        dimensions.num_attention_heads,
        dimensions.num_key_value_heads,
    )
    key = (
        *sizes,
        dimensions.intermediate_size,
        dimensions.vocab_size,
        dimensions.tie_word_embeddings,
    )
    flavor = FLAVORS.get(key)
    if flavor is None or dimensions.model_type != "llama":
        raise InvalidInput(
            key="model.shape",
            found=f"{dimensions.model_type} {sizes}",
            rule=f"a Llama 3.1 or 3.2 model of torchtitan's sizes: {', '.join(FLAVORS.values())}",
            fix="export to another trainer, or add the model to torchtitan",
        )
    return flavor
