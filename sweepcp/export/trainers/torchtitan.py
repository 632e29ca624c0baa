"""torchtitan: a configuration function, and a loader that reads the stream of the run."""

import re
from string import Template
from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import (
    ExportInput,
    ExportPlan,
    fetch_model,
    python_literal,
    tracking_differences,
    unwatched_notes,
)

FLAVORS = {
    (2048, 16, 32, 8, 8192, 128_256, True): "1B",
    (3072, 28, 24, 8, 8192, 128_256, True): "3B",
    (4096, 32, 32, 8, 14_336, 128_256, False): "8B",
    (8192, 80, 64, 8, 28_672, 128_256, False): "70B",
    (16_384, 126, 128, 8, 53_248, 128_256, False): "405B",
}
"""Hidden size, layers, heads, key-value heads, MLP, vocabulary, tied embeddings → as torchtitan.models.llama3 says."""
NORMS = r"(^|.*\.)(attention_norm|ffn_norm|norm)\.weight$"
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
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.config import DebugConfig, ParallelismConfig, TrainingConfig
from torchtitan.distributed.activation_checkpoint import FullAC
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.models.llama3 import model_registry
from torchtitan.trainer import Trainer


class StreamLoader(BaseDataLoader):
    """This data-parallel rank's sequences of each step, in the order of the stream: shares are met at every step."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        bundle: str = ""
        bundle_hash: str = ""

    def __init__(self, config: Config, *, dp_world_size: int, dp_rank: int, local_batch_size: int, **_: Any):
        from sweepcp.data.store import Store
        from sweepcp.data.stream import Stream
        from sweepcp.promote.bundle import open_bundle

        opened = open_bundle(Path(config.bundle))
        if opened.id != config.bundle_hash:
            raise ValueError(f"{config.bundle} is not the bundle that was exported; export again")
        self.recipe = opened.bundle.recipe
        self.stream = Stream(self.recipe, [Store(Path(str(c.store)), c.name) for c in opened.bundle.corpora])
        self.rank, self.ranks, self.micro_batch = dp_rank, dp_world_size, local_batch_size
        self.given = 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        pieces = self.recipe.sequences // (self.ranks * self.micro_batch)
        for step in range(self.given // pieces + 1, self.recipe.steps + 1):
            batch = self.stream.batch(step, self.rank, self.ranks)
            for first in range(0, len(batch.input_ids), self.micro_batch):
                rows = slice(first, first + self.micro_batch)
                self.given += 1
                inputs, positions = torch.tensor(batch.input_ids[rows]), torch.tensor(batch.position_ids[rows])
                yield {"input": inputs, "positions": positions}, torch.tensor(batch.targets[rows])

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


def write(source: ExportInput) -> ExportPlan:
    """`sweepcp_run.py` with the function `run`. Raises `BadInput` for a shape that its Llama 3 does not have."""
    settings = _settings(source)
    literals = {re.sub(r"\W", "_", key): python_literal(value) for key, value in settings.items()}
    literals["activation_checkpoint"] = (
        "FullAC.Config()" if source.bundle.target.compute.recompute else "None"
    )
    return ExportPlan(
        files={"sweepcp_run.py": MODULE.substitute(literals)},
        command=("-m", "torchtitan.train", "--module", "sweepcp_run", "--config", "run"),
        settings=settings,
        differences=tracking_differences(source, ("wandb",)),
        notes=unwatched_notes(source),
        prepare=fetch_model(source),
        env={"PYTHONPATH": str(source.out)},
    )


def _settings(source: ExportInput) -> dict[str, Any]:
    """Everything that is set, by its place in `Trainer.Config`."""
    recipe, target = source.bundle.recipe, source.bundle.target
    parallel, compute = target.parallelism, target.compute
    ratio, kind = _decay(recipe)
    replicas = target.hardware.world // (parallel.tensor * parallel.pipeline)
    dtype = "bfloat16" if compute.precision == "bf16" else "float32"
    adamw = {"lr": source.peak, "betas": list(recipe.betas), "eps": 1e-8}
    groups = {
        NORMS: adamw | {"weight_decay": 0.0},
        ".*": adamw | {"weight_decay": recipe.weight_decay},
    }
    optimizer: dict[str, Any] = {}
    for i, (pattern, kwargs) in enumerate(groups.items()):
        place = f"optimizer.param_groups.{i}"
        optimizer |= {
            f"{place}.pattern": pattern,
            f"{place}.optimizer_name": "AdamW",
            f"{place}.optimizer_kwargs": kwargs,
        }
    return optimizer | {
        "model_spec.flavor": _flavor(source),
        "attention backend": "flex",
        "activation_checkpoint": "FullAC" if compute.recompute else None,
        "hf_assets_path": source.model_folder,
        "dump_folder": source.saves,
        "dataloader.bundle": str(source.opened.path),
        "dataloader.bundle_hash": source.opened.id,
        "lr_scheduler.warmup_steps": recipe.warmup_steps,
        "lr_scheduler.decay_ratio": ratio,
        "lr_scheduler.decay_type": kind,
        "lr_scheduler.min_lr_factor": recipe.final_fraction,
        "training.local_batch_size": recipe.sequences // replicas
        if parallel.pipeline > 1
        else compute.micro_batch,
        "training.global_batch_size": recipe.sequences,
        "training.seq_len": recipe.seq_len,
        "training.max_norm": recipe.clip,
        "training.steps": recipe.steps,
        "training.dtype": "float32",
        "training.mixed_precision_param": dtype,
        "training.disable_cuda_graphs": True,
        "parallelism.tensor_parallel_degree": parallel.tensor,
        "parallelism.pipeline_parallel_degree": parallel.pipeline,
        "parallelism.pipeline_parallel_microbatch_size": compute.micro_batch,
        "checkpoint.enable": True,
        "checkpoint.interval": target.checkpoints.every,
        "checkpoint.keep_latest_k": target.checkpoints.keep,
        "checkpoint.initial_load_path": source.model_folder,
        "checkpoint.initial_load_in_hf": True,
        "checkpoint.last_save_in_hf": True,
        "checkpoint.export_dtype": dtype,
        "metrics.enable_tensorboard": True,
        "metrics.enable_wandb": "wandb" in target.tracking,
        "debug.seed": recipe.seed,
    }


def _flavor(source: ExportInput) -> str:
    shape = source.bundle.model.shape
    sizes = (
        shape.hidden_size,
        shape.num_hidden_layers,
        shape.num_attention_heads,
        shape.num_key_value_heads,
    )
    flavor = FLAVORS.get(
        (*sizes, shape.intermediate_size, shape.vocab_size, shape.tie_word_embeddings)
    )
    if flavor is None or shape.model_type != "llama":
        rule = f"a model of Llama 3.1 or 3.2, whose sizes torchtitan has: {', '.join(FLAVORS.values())}"
        fix = "export to another trainer, or add the model to torchtitan"
        raise InvalidInput(
            file=source.opened.path / "bundle.json",
            key="model.shape",
            found=f"{shape.model_type} {sizes}",
            rule=rule,
            fix=fix,
        )
    return flavor


def _decay(recipe: Recipe) -> tuple[float | None, str]:
    """Share of the steps over which the LR falls, None for all after the warmup, and how it falls."""
    ratio = {"wsd": recipe.decay, "constant": 0.0}.get(recipe.schedule)
    return ratio, "cosine" if recipe.schedule == "cosine" else "linear"
