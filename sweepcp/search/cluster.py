"""Ray for a search: on this machine or a cluster, and work in a process of its own.

Ray Tune, which takes a second to import, is not needed for it.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import ray

from sweepcp.config.budget import Budget
from sweepcp.search.devices import Node, TrialSlots, trial_slots
from sweepcp.util.gpus import Gpu, visible_gpus
from sweepcp.util.parallel import ray_connection, task_result

T = TypeVar("T")
GPU_TYPE = "accelerator_type:"
"""Ray has a resource of this name and the type of the GPU on each node with GPUs."""


@contextmanager
def ray_cluster(
    address: str | None, budget: Budget, *, python: str | None = None
) -> Iterator[TrialSlots]:
    """Start Ray on this machine, or connect to the cluster at `address`.

    Args:
        address: Of the cluster.
        budget: What a trial needs.
        python: A command that starts the processes of workers, instead of this interpreter.

    Yields:
        What each trial computes on, and how many run at a time.

    Raises:
        InvalidInput: No cluster answers, or a trial needs more than its nodes have.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # Snapshots of all trials, for a `Tuner.restore` that is never used.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "inf")
    # Task files may name data relative to the folder that the command was started in.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # The ledger records and reports failed trials; Ray Tune would print them a second time.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    gpus = visible_gpus() if address is None else ()
    options: dict[str, Any] = {"num_gpus": len(gpus)} if address is None else {}
    if python is not None:
        options["runtime_env"] = {"py_executable": python}
        # Ray would start idle workers with the interpreter itself, which nothing would use.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    with ray_connection(address, **options):
        yield trial_slots(budget, [_node(node, gpus) for node in ray.nodes() if node["Alive"]])


def _node(node: dict[str, Any], gpus: Sequence[Gpu]) -> Node:
    """Return the resources of a node of Ray; `gpus` are those of this machine, if it is the node.

    Of a cluster's GPUs, Ray knows no more than their number and the type.
    """
    resources: dict[str, float] = node["Resources"]
    count = int(resources.get("GPU", 0))
    if len(gpus) != count:
        types = [name for name in resources if name.startswith(GPU_TYPE)]
        name = types[0].removeprefix(GPU_TYPE) if types else "GPU"
        gpus = [Gpu(name, memory_gib=None, capability=None)] * count
    return Node(resources.get("CPU", 0.0), tuple(gpus))


def run_in_task(
    work: Callable[[], Iterator[T]], *, cpus: int, gpus: int, ends_process: bool = True
) -> Iterator[T]:
    """Yield what `work` yields in a process of its own, for which Ray reserves CPUs and GPUs.

    Args:
        work: Runs in the process.
        cpus: CPUs to reserve.
        gpus: GPUs to reserve; if there are any, the process sees no others.
        ends_process: Whether the process ends with the work, so that its GPU memory is free for the
            next one. If not, the next work with the same needs may run in it.

    Raises:
        WorkLost: The process was killed, or its node was lost.
    """
    # Ray would start by itself, in its own way.
    assert ray.is_initialized()

    # It sends a function of a module by its name: the process would import this module.
    def yield_items() -> Iterator[T]:
        yield from work()

    task: Any = ray.remote(
        num_cpus=cpus,
        num_gpus=gpus,
        max_calls=1 if ends_process else 0,
        max_retries=0,
        num_returns="streaming",
    )(yield_items)
    for item in task.remote():
        yield task_result(item)
