"""Work on many items at once: on the cores of this machine, or on a Ray cluster."""

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from typing import Any, TypeVar

from sweepcp.errors import InvalidInput

T = TypeVar("T")
R = TypeVar("R")
QUEUED_PER_CORE = 2
"""Items that wait for each core, so that none is idle."""


def parallel_map(work: Callable[[T], R], items: Sequence[T], address: str | None) -> Iterator[R]:
    """Results of `work` on every item, as they come; what `work` raises is raised here, and the rest is dropped.

    On a Ray cluster (`address`) each item is a task of one core, and must find its files there. `work` may start no
    threads that outlive it: processes are killed when this one ends, in whatever way.
    """
    cores = len(os.sched_getaffinity(0))
    if not items:
        return
    if address is not None:
        yield from _on_cluster(work, items, address)
    elif cores == 1 or len(items) == 1:
        yield from map(work, items)
    else:
        yield from _on_cores(work, items, min(cores, len(items)))


def _on_cores(work: Callable[[T], R], items: Sequence[T], cores: int) -> Iterator[R]:
    context = multiprocessing.get_context("spawn")
    left = iter(items)
    pool = ProcessPoolExecutor(
        cores, context, initializer=_exit_with_parent, initargs=(os.getpid(),)
    )
    try:
        running = {pool.submit(work, item) for item in islice(left, QUEUED_PER_CORE * cores)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                if (item := next(left, _EXHAUSTED)) is not _EXHAUSTED:
                    running.add(pool.submit(work, item))  # type: ignore[arg-type]
                yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_EXHAUSTED = object()


def _exit_with_parent(parent: int) -> None:
    """End this process when its parent has gone; and leave the cores to the processes, one each."""
    os.environ.update(TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent ends what runs

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_cluster(work: Callable[[T], R], items: Sequence[T], address: str) -> Iterator[R]:
    import ray

    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError) as error:
            rule = f"a Ray cluster that answers ({str(error).splitlines()[0]})"
            raise InvalidInput(
                file="--address", key="--address", found=address, rule=rule, fix="check it"
            ) from None
    try:
        environment = {"env_vars": {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}}
        task: Any = ray.remote(num_cpus=1, max_retries=1, runtime_env=environment)(
            lambda item: work(item)
        )
        cores = int(ray.cluster_resources().get("CPU", 1))
        left = iter(items)
        running = [task.remote(item) for item in islice(left, QUEUED_PER_CORE * cores)]
        while running:
            (first,), running = ray.wait(running)
            if (item := next(left, _EXHAUSTED)) is not _EXHAUSTED:
                running.append(task.remote(item))
            yield _result(ray, first)
    finally:
        if started:
            ray.shutdown()


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InvalidInput) else error) from None
