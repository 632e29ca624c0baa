"""Work on many items in parallel: on the cores of this machine, or on a Ray cluster."""

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, contextmanager
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from sweepcp.errors import WorkLost
from sweepcp.util.environment import (
    environment_integer,
    parse_environment_integer,
    set_home_for_libraries,
)
from sweepcp.util.ray_setup import (
    check_cluster,
    fewer_ray_processes,
    no_cluster,
    prepare_local_ray,
)
from sweepcp.util.signals import blocked_interrupts, kept_signal_handlers

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")
QUEUED_PER_CORE = 2
"""Items submitted per core, so that no core waits for this process."""
WORKER_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""One thread per worker: there is a worker for every core."""
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a container: microseconds of CPU time per period, or `max`, and the period (cgroup v2)."""
CPU_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
"""The same under cgroup v1: microseconds, or -1; the period is in `cpu.cfs_period_us`."""
RAY_FOLDER = "/"
"""Ray has its workers import modules from the folder in which a program connects to it. That must
not be the folder of a command, which may be somebody's data: `sentencepiece.py` there would run."""
_EXHAUSTED = object()


def usable_cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    Those of its affinity, which `taskset` and schedulers limit, within the quota of its container.
    The machine may have more.
    """
    cores = len(os.sched_getaffinity(0))
    try:
        if CPU_QUOTA.is_file():
            quota, period = map(int, CPU_QUOTA.read_text(encoding="ascii").split())
        else:
            quota = int(CPU_QUOTA_V1.read_text(encoding="ascii"))
            period = int(CPU_QUOTA_V1.with_name("cpu.cfs_period_us").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no file of either kind, or a quota of `max`
        return cores
    # The kernel counts in whole periods; a quota of -1 is none.
    return max(1, min(cores, math.ceil(quota / period))) if quota > 0 < period else cores


def threads_per_rank() -> int:
    """Return the number of threads of a rank of a full run.

    OMP_NUM_THREADS where it is set, as all exported launchers do; otherwise the rank's part of the
    usable cores.
    """
    if stated := os.environ.get("OMP_NUM_THREADS"):
        # OpenMP takes a number for each level of nesting.
        return parse_environment_integer("OMP_NUM_THREADS", stated.split(",")[0], low=1)
    return max(1, usable_cores() // environment_integer("LOCAL_WORLD_SIZE", 1, low=1))


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
    elif cores == 1 or len(items) == 1 or not _can_start_processes():
        yield from map(work, items)
    else:
        yield from _map_on_cores(work, items, min(cores, len(items)))


def call_in_child(work: Callable[[T], R], item: T) -> R:
    """Apply `work` to an item in a process of its own, which leaves nothing behind in this one."""
    if not _can_start_processes():
        return work(item)
    (result,) = _map_on_cores(work, [item], 1)
    return result


def _can_start_processes() -> bool:
    """Return whether the interpreter can be started again.

    A command that has changed its user (`setpriv`, some containers) may have an interpreter in a
    home folder that it can no longer open.
    """
    return os.access(sys.executable, os.X_OK)


def _map_on_cores(work: Callable[[T], R], items: Sequence[T], cores: int) -> Iterator[R]:
    waiting = iter(items)
    pool = ProcessPoolExecutor(
        cores,
        # A forked child would inherit locks that threads of this process hold at that moment.
        multiprocessing.get_context("spawn"),
        initializer=_initialize_worker,
        initargs=(os.getpid(),),
    )

    def submit(item: T) -> Future[R]:
        # The pool starts a process when an item is submitted and no process is idle.
        with blocked_interrupts():
            return pool.submit(work, item)

    # It is started with the first process otherwise, and then unblocks interrupts.
    resource_tracker.ensure_running()
    try:
        running = {submit(item) for item in islice(waiting, QUEUED_PER_CORE * cores)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                if (item := next(waiting, _EXHAUSTED)) is not _EXHAUSTED:
                    running.add(submit(item))  # type: ignore[arg-type]
                yield future.result()
    except BrokenProcessPool:
        raise WorkLost(
            "a process that worked on a core of this machine was killed, as the system does when "
            "memory runs out"
        ) from None
    except BaseException:
        # An item takes up to minutes, and what is unfinished is of no use.
        for process in pool._processes.values():
            process.kill()
        raise
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
            yield task_result(finished)


@contextmanager
def ray_connection(address: str | None, **options: Any) -> Iterator[None]:
    """Connect to a Ray cluster, or start Ray on this machine if `address` is None.

    A process that is connected already keeps its connection.

    Args:
        address: Of the cluster.
        **options: Further arguments of `ray.init`.

    Raises:
        InvalidInput: There is no Ray cluster at `address` that accepts this process.
        WorkLost: Ray does not start on this machine.
    """
    if address is None:
        prepare_local_ray()
    else:
        set_home_for_libraries()
    import ray

    if ray.is_initialized():
        yield
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR} | options
    with kept_signal_handlers():
        if address is None:
            _start_ray(options)
        else:
            _connect_ray(address, options)
    try:
        yield
    finally:
        ray.shutdown()


def _start_ray(options: dict[str, Any]) -> None:
    import ray

    if cluster := os.environ.get("RAY_ADDRESS"):
        logger.info("running on this machine, not on RAY_ADDRESS %s: add --address auto", cluster)
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": usable_cores()}
    try:
        with chdir(RAY_FOLDER), fewer_ray_processes(prints_logs=options["log_to_driver"]):
            ray.init(address="local", **local | options)
    except OSError as error:
        # Ray raises a TimeoutError or a ConnectionError where one of its processes has ended.
        if error.errno is not None:
            raise
        raise WorkLost(_start_failure(error)) from error
    # Ray raises a bare Exception where a process did not start in time.
    except Exception as error:
        raise WorkLost(_start_failure(error)) from error


def _start_failure(error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"Ray did not start on this machine ({reason}); its logs are in $RAY_TMPDIR/ray"


def _connect_ray(address: str, options: dict[str, Any]) -> None:
    import ray

    check_cluster(address)
    try:
        with chdir(RAY_FOLDER):
            ray.init(address=address, **options)
    # A RuntimeError says that versions of Python or Ray differ.
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise no_cluster(address, str(error)) from None


def task_result(reference: Any) -> Any:
    """Return the result of a task on a Ray cluster, or raise its exception.

    Raises:
        WorkLost: Its process was killed, or its node was lost.
    """
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise WorkLost(f"the process of a Ray task was lost ({reason})") from None
