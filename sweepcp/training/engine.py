"""What a training step runs on: one process, one device, AdamW with fp32 master weights."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import IGNORED, Batch
from sweepcp.training.process_group import ProcessGroup


class PlainEngine:
    """A model with its optimizer.

    Weights and optimizer state stay in fp32; on a GPU the forward and backward pass compute in bf16 (autocast).
    """

    def __init__(
        self, model: PreTrainedModel, recipe: Recipe, micro_batch: int | None, precision: str
    ) -> None:
        self.model = model.train()
        self.device = model.device
        self.ranks = ProcessGroup(device=model.device)
        self.clip = recipe.clip
        self.micro_batch = micro_batch or recipe.sequences
        self.autocast = autocast(self.device, precision)
        self.optimizer = build_adamw(model, recipe)

    def step(self, batch: Batch, targets: int, lr: float) -> tuple[np.ndarray, float]:
        """One optimizer step; returns the loss of each sequence, summed in nats, and the gradient norm before clipping.

        Micro batches weigh by their target tokens, so the result does not depend on how the batch is cut.
        """
        losses = []
        for first in range(0, len(batch.input_ids), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            with self.autocast:
                summed = token_losses(self.model, self.device, batch, rows).sum(1)
            (summed.sum() / targets).backward()
            losses.append(summed.detach())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.cat(losses).double().cpu().numpy(), float(norm)


def build_adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW as a recipe states it: matrices decay, vectors do not. The LR is set at every step."""
    parameters = list(model.parameters())
    shapes = [
        getattr(p, "ds_shape", p.shape) for p in parameters
    ]  # of a partitioned parameter only ds_shape is whole
    decayed = [p for p, shape in zip(parameters, shapes, strict=True) if len(shape) >= 2]
    plain = [p for p, shape in zip(parameters, shapes, strict=True) if len(shape) < 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(
        groups, lr=0.0, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Whether `precision` means bf16 on a device: `auto` is bf16 on a GPU and fp32 on a CPU."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bf16 autocast where `precision` asks for it."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=computes_in_bf16(device, precision)
    )


def token_losses(
    model: Any, device: torch.device, batch: Batch, rows: slice | np.ndarray
) -> torch.Tensor:
    """Negative log-likelihood in nats of each target, 0 where it is ignored; shape (rows, seq_len), fp32.

    Packed documents are told apart by positions that restart, which needs: no attention mask, no cache. Flash
    attention reads positions so for one sequence only, so there the rows are put into one, end to end.
    """
    inputs, targets, positions = (
        torch.as_tensor(array[rows]).to(device)
        for array in (batch.input_ids, batch.targets, batch.position_ids)
    )
    if "flash" in str(getattr(model, "module", model).config._attn_implementation):
        inputs, positions = inputs.flatten()[None], positions.flatten()[None]
    logits = model(input_ids=inputs, position_ids=positions, use_cache=False).logits
    losses = cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets)
