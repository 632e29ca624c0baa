"""The processes of a distributed run: the rank of this one, and collectives over all of them."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

CPU = torch.device("cpu")
FILES_TIMEOUT = timedelta(hours=3)
"""How long a rank waits for the others in a collective, before the run ends, while files are read
or written: one rank fetches the model and hashes the token stores, and all hash checkpoints. 2 TB
at 200 MB/s take 2.8 hours."""
STEPS_TIMEOUT = timedelta(minutes=30)
"""The same between files, while the run takes steps and scores held-out text: a node that hangs
costs all others this time."""


@dataclass(frozen=True, kw_only=True)
class ProcessGroup:
    """The processes of a run, as one of them sees it.

    By default a run of one process, which needs no initialised `torch.distributed`.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """The number of this process among those of its node."""
    device: torch.device = CPU
    """Where this process computes, and where the tensors of its collectives are placed."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files that all ranks share."""
        return self.rank == 0

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        """Return the sum of a float64 array of any shape over all ranks, equal on every rank."""
        if self.world_size == 1:
            return array
        # `as_tensor` may share memory with the array, which `all_reduce` would overwrite.
        tensor = torch.as_tensor(array, dtype=torch.float64, device=self.device).clone()
        dist.all_reduce(tensor)
        return np.asarray(tensor.cpu().numpy())

    def all_reduce_any(self, flag: bool) -> bool:  # noqa: FBT001 - the flag is the operand, as in `any`
        """Return whether the flag is set on any rank, equal on every rank."""
        return bool(self.all_reduce_sum(np.array([flag], dtype=np.float64))[0])

    def set_timeout(self, timeout: timedelta) -> None:
        """Limit the time of every collective from here on; all ranks call this together."""
        if self.world_size == 1:
            return
        # No rank may have the shorter limit while another one is still busy under the longer.
        self.barrier()
        # DeepSpeed reduces gradients in groups of its own, which it creates with torch's default.
        for group in distributed_c10d._pg_map:
            distributed_c10d._set_pg_timeout(timeout, group)

    def barrier(self) -> None:
        """Block until every rank gets here."""
        # An all-reduce rather than `dist.barrier`: that one has to guess a device under NCCL.
        self.all_reduce_sum(np.zeros(1))


ALONE = ProcessGroup()
"""The group of a process that is not part of a distributed run."""
