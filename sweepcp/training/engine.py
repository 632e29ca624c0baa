"""Training on one device: AdamW with fp32 master weights, and the loss of packed documents."""

from inspect import signature
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
    """A model and its optimizer in one process on one device.

    Weights and optimizer state are fp32. In bf16 precision the forward and backward passes run
    under autocast.
    """

    def __init__(
        self, model: PreTrainedModel, recipe: Recipe, *, micro_batch: int | None, precision: str
    ) -> None:
        """Put the model into training mode and create its optimizer.

        Args:
            model: A causal LM with fp32 weights, which are trained in place.
            recipe: Optimizer settings and the batch size.
            micro_batch: Sequences in one forward pass; None for the whole batch.
            precision: `fp32`, `bf16` or `auto`, see `computes_in_bf16`.
        """
        self.model = model.train()
        self.device = model.device
        self.group = ProcessGroup(device=model.device)
        self.clip = recipe.clip
        self.micro_batch = micro_batch or recipe.sequences
        self.autocast = autocast_context(self.device, precision)
        self.optimizer = build_adamw(model, recipe)

    def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
        """Take one optimizer step, see `TrainingEngine.step`.

        Micro batches are weighted by their target tokens, so the result does not depend on how
        the batch is split.
        """
        row_losses = []
        for first in range(0, len(batch.input_ids), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            with self.autocast:
                summed = token_losses(self.model, self.device, batch, rows).sum(1)
            (summed.sum() / target_tokens).backward()
            row_losses.append(summed.detach())
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return torch.cat(row_losses).double().cpu().numpy(), float(grad_norm)


def build_adamw(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Build the recipe's AdamW: matrices decay, vectors do not. The LR is set at every step."""
    decayed: list[nn.Parameter] = []
    undecayed: list[nn.Parameter] = []
    for parameter in model.parameters():
        # Under ZeRO-3 `shape` is that of an empty tensor; DeepSpeed keeps the whole one here.
        shape = getattr(parameter, "ds_shape", parameter.shape)
        (decayed if len(shape) >= 2 else undecayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=recipe.betas,
        eps=recipe.epsilon,
        weight_decay=recipe.weight_decay,
        fused=True,
    )


def computes_in_bf16(device: torch.device, precision: str) -> bool:
    """Return whether `precision` means bf16 here: `auto` is bf16 on a GPU and fp32 on a CPU."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def autocast_context(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision, which does nothing unless it means bf16."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=computes_in_bf16(device, precision)
    )


def token_losses(
    model: Any, device: torch.device, batch: Batch, rows: slice | np.ndarray
) -> torch.Tensor:
    """Compute the negative log-likelihood of each target.

    Packed documents are separated by positions that restart, so the model is called without an
    attention mask and without a cache.

    Args:
        model: A causal LM, or an engine that wraps one.
        device: Where the model expects its inputs.
        batch: Packed sequences.
        rows: The sequences of the batch to compute.

    Returns:
        Nats in fp32, shape (rows, seq_len), 0 where the target is ignored.
    """
    inputs = torch.as_tensor(batch.input_ids[rows]).to(device)
    targets = torch.as_tensor(batch.targets[rows]).to(device)
    positions = torch.as_tensor(batch.position_ids[rows]).to(device)
    # transformers reads document boundaries from positions for flash attention only when there is
    # one sequence; in a larger batch documents would attend across boundaries without any warning.
    if "flash" in str(getattr(model, "module", model).config._attn_implementation):
        inputs, positions = inputs.flatten()[None], positions.flatten()[None]
    arguments = {"input_ids": inputs, "use_cache": False}
    # Architectures without positions (ALiBi, state-space models) cannot separate documents, which
    # `check_isolation` finds; others would not take the argument.
    if "position_ids" in signature(getattr(model, "module", model).forward).parameters:
        arguments["position_ids"] = positions
    logits = model(**arguments).logits
    losses = cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(targets)
