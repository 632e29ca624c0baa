"""GPU memory of a full run: what its steps allocated, and what was estimated."""

from typing import Any

import numpy as np
import torch

from sweepcp.promote.bundle import Bundle
from sweepcp.promote.estimates import estimate_memory
from sweepcp.training.process_group import ProcessGroup
from sweepcp.util.memory import GIB


class PeakMemory:
    """The most that this rank allocated on its GPU in a step of training, without scoring."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self._bytes = 0

    def begin_step(self) -> None:
        """Forget what was allocated before the step that follows."""
        if self.group.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.group.device)

    def end_step(self) -> None:
        """Count the step that has just ended."""
        if self.group.device.type == "cuda":
            self._bytes = max(self._bytes, torch.cuda.max_memory_allocated(self.group.device))

    def compare(self, bundle: Bundle, *, attention: str) -> dict[str, Any]:
        """Compare the most of any rank with the estimate; every rank calls this.

        Args:
            bundle: What is run.
            attention: The implementation of attention that the target's setting became.

        Returns:
            What `Ending` records of it: nothing on CPUs, or where no step was left to train.
        """
        peaks = np.zeros(self.group.world_size)
        peaks[self.group.rank] = self._bytes
        measured = float(self.group.all_reduce_sum(peaks).max()) / GIB
        if not measured:
            return {}
        estimated = _estimated_gib(bundle, self.group.world_size, attention)
        return {
            "memory_gib": measured,
            "estimated_memory_gib": estimated,
            "memory_ratio": measured / estimated,
        }


def _estimated_gib(bundle: Bundle, world_size: int, attention: str) -> float:
    # The run may have another number of processes than its target.
    target = bundle.target
    hardware = target.hardware.model_copy(update={"nodes": 1, "per_node": world_size})
    compute = target.compute.model_copy(update={"attention": attention})
    target = target.model_copy(update={"hardware": hardware, "compute": compute})
    isolated = not bundle.recipe.cross_documents
    return estimate_memory(bundle.model.shape, target, isolated=isolated).total / GIB
