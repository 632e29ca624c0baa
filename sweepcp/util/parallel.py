"""Work on many items in parallel: on the cores of this machine, or on a Ray cluster."""

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sweepcp.errors import InvalidInput

T = TypeVar("T")
R = TypeVar("R")
QUEUED_PER_CORE = 2
"""Items submitted per core, so that no core waits for this process."""
WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""One thread per worker: there is a worker for every core."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container: microseconds of CPU time per period, or `max`, and the period (cgroup v2)."""
_EXHAUSTED = object()


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    Those of its affinity, which `taskset` and schedulers limit, within the quota of its container.
    The machine may have more.
    """
    cores = len(os.sched_getaffinity(0))
    quota, period = CPU_QUOTA.read_text().split() if CPU_QUOTA.is_file() else ("max", "")
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


def threads_per_rank() -> int:
    """Return the number of threads of a rank of a full run.

    OMP_NUM_THREADS where it is set, as all exported launchers do; otherwise the rank's part of the
    usable cores.
    """
    if stated := os.environ.get("OMP_NUM_THREADS"):
        return int(stated.split(",")[0])
    return max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def parallel_map(work: Callable[[T], R], items: Sequence[T], address: str | None) -> Iterator[R]:
    """Apply `work` to every item in parallel and yield results as they complete.

    The first exception cancels the remaining items and is re-raised.

    Args:
        work: A picklable function. It may start no threads that outlive it: processes are killed
            when this one ends, in whatever way.
        items: Its arguments, one per call.
        address: A Ray cluster, on which each item is a task of one core and must find its files;
            None for the cores of this machine.

    Raises:
        InvalidInput: There is no Ray cluster at `address`.
    """
    if not items:
        return
    cores = usable_cores()
    if address is not None:
        yield from _map_on_cluster(work, items, address)
    elif cores == 1 or len(items) == 1:
        yield from map(work, items)
    else:
        yield from _map_on_cores(work, items, min(cores, len(items)))


def _map_on_cores(work: Callable[[T], R], items: Sequence[T], cores: int) -> Iterator[R]:
    waiting = iter(items)
    pool = ProcessPoolExecutor(
        cores,
        # A forked child would inherit locks that threads of this process hold at that moment.
        multiprocessing.get_context("spawn"),
        initializer=_initialize_worker,
        initargs=(os.getpid(),),
    )
    try:
        running = {pool.submit(work, item) for item in islice(waiting, QUEUED_PER_CORE * cores)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                if (item := next(waiting, _EXHAUSTED)) is not _EXHAUSTED:
                    running.add(pool.submit(work, item))  # type: ignore[arg-type]
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _initialize_worker(parent: int) -> None:
    os.environ.update(WORKER_ENVIRONMENT)
    # Ctrl-C reaches the whole process group. The parent handles it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    # A parent that is killed cannot shut its pool down; its workers then have another parent.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _map_on_cluster(work: Callable[[T], R], items: Sequence[T], address: str) -> Iterator[R]:
    import ray

    with ray_connection(address):
        task: Any = ray.remote(
            num_cpus=1, max_retries=1, runtime_env={"env_vars": WORKER_ENVIRONMENT}
        )(lambda item: work(item))
        cores = int(ray.cluster_resources().get("CPU", 1))
        waiting = iter(items)
        running = [task.remote(item) for item in islice(waiting, QUEUED_PER_CORE * cores)]
        while running:
            (finished,), running = ray.wait(running)
            if (item := next(waiting, _EXHAUSTED)) is not _EXHAUSTED:
                running.append(task.remote(item))
            yield _task_result(finished)


@contextmanager
def ray_connection(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine if `address` is None.

    A process that is connected already keeps its connection.

    Raises:
        InvalidInput: There is no Ray cluster at `address`.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores()}
    options = {} if address else local
    try:
        ray.init(
            address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options
        )
    except (ConnectionError, ValueError) as error:
        raise InvalidInput(
            file="--address",
            key="--address",
            found=address,
            rule=f"the address of a running Ray cluster ({str(error).splitlines()[0]})",
            fix="pass the address that `ray start --head` prints, or omit --address to run here",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _task_result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InvalidInput) else error) from None
