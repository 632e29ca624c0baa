# sweepcp recipe: 16494d4c2447810c
# sweepcp bundle: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
# sweepcp for: torchtitan on kubeflow
# sweepcp status: NOT VERIFIED
# sweepcp run: kubectl apply -f /shared/export/trainjob.yaml
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
    model_spec = model_registry("70B", attn_backend="flex")
    return Trainer.Config(
        model_spec=model_spec,
        loss=ChunkedLossWrapper.Config(
            loss_fn=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(model_spec)),
        ),
        hf_assets_path="/shared/export/model",
        dump_folder="/shared/export/run",
        dataloader=StreamLoader.Config(
            bundle="/shared/bundle",
            bundle_hash="bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        ),
        optimizer=OptimizersContainer.Config(
            param_groups=[
                ParamGroupConfig(
                    pattern="(^|.*\\.)(attention_norm|ffn_norm|norm)\\.weight$",
                    optimizer_name="AdamW",
                    optimizer_kwargs={'lr': 1.5e-05, 'betas': [0.9, 0.95], 'eps': 1e-08, 'weight_decay': 0.0},
                ),
                ParamGroupConfig(
                    pattern=".*",
                    optimizer_name="AdamW",
                    optimizer_kwargs={'lr': 1.5e-05, 'betas': [0.9, 0.95], 'eps': 1e-08, 'weight_decay': 0.1},
                ),
            ],
        ),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=1700,
            decay_ratio=None,
            decay_type="cosine",
            min_lr_factor=0.1,
        ),
        training=TrainingConfig(
            local_batch_size=96,
            global_batch_size=1440,
            seq_len=8192,
            max_norm=1.0,
            steps=85000,
            dtype="float32",
            mixed_precision_param="bfloat16",
            disable_cuda_graphs=True,
        ),
        parallelism=ParallelismConfig(
            tensor_parallel_degree=8,
            pipeline_parallel_degree=4,
            pipeline_parallel_microbatch_size=1,
        ),
        checkpoint=CheckpointManager.Config(
            enable=True,
            interval=500,
            keep_latest_k=3,
            initial_load_path="/shared/export/model",
            initial_load_in_hf=True,
            last_save_in_hf=True,
            export_dtype="bfloat16",
        ),
        activation_checkpoint=FullAC.Config(),
        metrics=MetricsProcessor.Config(
            enable_tensorboard=True,
            enable_wandb=False,
        ),
        debug=DebugConfig(seed=0),
    )
