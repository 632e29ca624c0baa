"""The memory of a worker's trials: the micro batch that they start with, and their estimates."""

from dataclasses import dataclass

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import Recipe
from sweepcp.models.memory import TrainingMemory, largest_micro_batch, training_memory
from sweepcp.util.memory import GIB


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
        dimensions = self.dimensions
        if dimensions is None:
            return recipe.sequences

        def memory_of(*, micro_batch: int) -> TrainingMemory:
            return self._estimate(dimensions, recipe, micro_batch=micro_batch)

        return largest_micro_batch(
            memory_of, sequences=recipe.sequences, available_bytes=self.available
        )

    def estimate_gib(self, recipe: Recipe, *, micro_batch: int) -> float | None:
        """Estimate the peak of allocated memory in training."""
        if self.dimensions is None:
            return None
        return self._estimate(self.dimensions, recipe, micro_batch=micro_batch).total / GIB

    def _estimate(
        self, dimensions: ModelDimensions, recipe: Recipe, *, micro_batch: int
    ) -> TrainingMemory:
        return training_memory(
            dimensions,
            micro_batch=micro_batch,
            seq_len=recipe.seq_len,
            in_bf16=self.in_bf16,
            attention=self.attention,
            recompute=self.recompute,
            isolated=self.isolated,
        )
