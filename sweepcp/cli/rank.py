"""Which of the processes that a launcher started this one is."""

import os


def launcher_rank() -> str:
    """Return this process's rank as its launcher states it; `0` without a launcher."""
    return os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0")
