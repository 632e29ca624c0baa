"""Training on one device: AdamW with fp32 master weights, in micro batches that fit the memory."""

import gc
import logging
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from sweepcp.config.recipe import Recipe
from sweepcp.data.stream import Batch
from sweepcp.errors import InvalidInput
from sweepcp.training.batches import to_micro_batches
from sweepcp.training.device import is_out_of_memory
from sweepcp.training.loss import token_losses
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.gpus import BF16_CAPABILITY

logger = logging.getLogger(__name__)


class PlainEngine:
    """A model and its optimizer in one process on one device.

    Weights and optimizer state are fp32. In bf16 precision the forward and backward passes run
    under autocast.

    Attributes:
        micro_batch: Sequences of a forward pass now.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        recipe: Recipe,
        *,
        micro_batch: int | None,
        precision: str,
        halves: bool = False,
    ) -> None:
        """Put the model into training mode and create its optimizer.

        Args:
            model: A causal LM with fp32 weights, which are trained in place.
            recipe: Optimizer settings and the batch size.
            micro_batch: Sequences in one forward pass; None for the whole batch.
            precision: `fp32`, `bf16` or `auto`, see `computes_in_bf16`.
            halves: Whether to repeat a step in micro batches of half the size when the memory of
                the device is used up.
        """
        self.model = model.train()
        self.device = model.device
        self.group = ProcessGroup(device=model.device)
        self.clip = recipe.clip
        self.micro_batch = micro_batch or recipe.sequences
        self.halves = halves
        self.autocast = autocast_context(self.device, precision)
        self.optimizer = build_adamw(model, recipe)

    def step(self, batch: Batch, *, target_tokens: int, lr: float) -> tuple[np.ndarray, float]:
        """Take one optimizer step, see `TrainingEngine.step`.

        Micro batches are weighted by their target tokens, so the result does not depend on how
        the batch is split.
        """
        row_losses = self._accumulate_gradients(batch, target_tokens)
        while row_losses is None:
            self._halve_micro_batch()
            row_losses = self._accumulate_gradients(batch, target_tokens)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return copy_to_host(row_losses, grad_norm)

    def _accumulate_gradients(self, batch: Batch, target_tokens: int) -> list[torch.Tensor] | None:
        """Sum the gradients of all micro batches.

        Returns:
            The summed losses of the rows of each micro batch; None if they did not fit the memory
            and smaller ones may.
        """
        try:
            row_losses = []
            for micro_batch in to_micro_batches(batch, rows=self.micro_batch, device=self.device):
                with self.autocast:
                    summed = token_losses(self.model, micro_batch).sum(1)
                (summed.sum() / target_tokens).backward()
                row_losses.append(summed.detach())
        except RuntimeError as error:
            if not is_out_of_memory(error) or not self.halves or self.micro_batch == 1:
                raise
            return None
        return row_losses

    def _halve_micro_batch(self) -> None:
        # Outside of the handler of the error, whose traceback refers to the activations.
        self.optimizer.zero_grad()
        gc.collect()  # what a pass that was broken off left in cycles
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            # The peak that a trial records is that of the size it was trained at.
            torch.cuda.reset_peak_memory_stats()
        tried, self.micro_batch = self.micro_batch, (self.micro_batch + 1) // 2
        logger.warning(
            "out of memory with %d sequences per forward pass: the step is repeated with %d",
            tried,
            self.micro_batch,
        )


def copy_to_host(row_losses: list[torch.Tensor], grad_norm: Any) -> tuple[np.ndarray, float]:
    """Copy the results of a step to the host at once, for which it waits for the device.

    Args:
        row_losses: Summed losses of the rows of each micro batch.
        grad_norm: The norm of the gradient: a tensor on the device, or on the host already.

    Returns:
        Losses in fp64, shape (rows,), and the norm.
    """
    losses = torch.cat(row_losses).double()
    if not isinstance(grad_norm, torch.Tensor) or grad_norm.device != losses.device:
        return losses.cpu().numpy(), float(grad_norm)
    values = torch.cat([losses, grad_norm.double().reshape(1)]).cpu().numpy()
    return values[:-1], float(values[-1])


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
    """Return whether `precision` means bf16 on a device.

    `auto` is bf16 on a GPU that computes in it, and fp32 on other GPUs and on a CPU.

    Raises:
        InvalidInput: bf16 is asked for on a GPU without it. The error names neither file nor key.
    """
    # Models without weights are on the meta device.
    if device.type != "cuda" or precision == "fp32":
        return precision == "bf16"
    capability = torch.cuda.get_device_capability(device)
    if capability >= BF16_CAPABILITY:
        return True
    if precision == "bf16":
        raise InvalidInput(
            found=f"bf16 on a GPU of compute capability {capability[0]}.{capability[1]}",
            rule="a GPU of compute capability 8.0 or higher",
            fix="set the precision to fp32 or auto",
        )
    return False


def autocast_context(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a precision, which does nothing unless it means bf16."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=computes_in_bf16(device, precision)
    )
