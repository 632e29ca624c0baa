"""The memory of a worker's trials: the micro batch that they start with, and their estimates."""

from dataclasses import dataclass

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.models.memory import largest_micro_batch, training_memory

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class TrialMemory:
    """What decides the memory of a trial besides its recipe."""

    dimensions: ModelDimensions | None
    """None if the base's configuration does not state them; then nothing is estimated."""
    available: float
    """Bytes that a trial may use."""
    in_bf16: bool
    attention: str
    recompute: bool
    isolated: bool

    def largest_micro_batch(self, recipe: Recipe) -> int:
        """Return the micro batch that fits by estimate: the batch, halved until it does."""
        if self.dimensions is None:
            return recipe.sequences
        return largest_micro_batch(
            self.dimensions,
            sequences=recipe.sequences,
            available_bytes=self.available,
            seq_len=recipe.seq_len,
            in_bf16=self.in_bf16,
            attention=self.attention,
            recompute=self.recompute,
            isolated=self.isolated,
        )

    def estimate_gib(self, recipe: Recipe, *, micro_batch: int) -> float | None:
        """Estimate the peak of allocated memory in training."""
        if self.dimensions is None:
            return None
        memory = training_memory(
            self.dimensions,
            micro_batch=micro_batch,
            seq_len=recipe.seq_len,
            in_bf16=self.in_bf16,
            attention=self.attention,
            recompute=self.recompute,
            isolated=self.isolated,
        )
        return memory.total / GIB
