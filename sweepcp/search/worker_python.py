"""How the processes of workers start on this machine: with their libraries imported."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweepcp.config.budget import Budget
from sweepcp.util.fork_server import fork_server
from sweepcp.util.gpus import visible_gpus
from sweepcp.util.ray_setup import prepare_local_ray
from sweepcp.util.temporary import temporary_folder

WORKER_MODULES = (
    "sweepcp.search.trial_runner",
    "sweepcp.scoring.lm_eval_tasks",
    "sweepcp.training.pretraining",
    "pandas",
    "requests",
    "jsonschema",
)
"""What a worker imports. Ray cannot be among them: it reads the environment of its process while it
is imported. The last three are what takes longest in it."""


@contextmanager
def worker_python(budget: Budget, address: str | None) -> Iterator[str | None]:
    """Start the process that imports libraries for all workers of this machine.

    Args:
        budget: The CPUs of a trial.
        address: A Ray cluster, or None for this machine.

    Yields:
        The command that starts the process of a worker; None on a cluster, and where there are
        GPUs: a library may open them when it is imported, and a fork could not use them then.
    """
    if address is not None or visible_gpus():
        yield None
        return
    prepare_local_ray()
    folder = Path(os.environ["RAY_TMPDIR"])
    folder.mkdir(parents=True, exist_ok=True)
    # Ray sets it in a worker before torch is imported there.
    threads = os.environ.get("OMP_NUM_THREADS", str(budget.cpus_per_trial))
    with (
        temporary_folder(folder, "sweepcp-fork") as private,
        fork_server(WORKER_MODULES, private, {"OMP_NUM_THREADS": threads}) as python,
    ):
        yield python
