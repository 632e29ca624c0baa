"""Ray's workers as forks of a process that has imported libraries."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sweepcp.errors import WorkLost
from sweepcp.search.cluster import ray_cluster, run_in_task
from sweepcp.util.fork_server import fork_server
from tests.make import experiment

pytestmark = pytest.mark.slow


def test_tasks_run_in_forks_and_one_that_is_killed_is_lost():
    # Functions of the test itself are sent by value: a worker cannot import the tests.
    def imported() -> Iterator[tuple[bool, str, int]]:
        yield "colorsys" in sys.modules, os.environ.get("OF_SERVER", ""), os.getppid()

    def killed() -> Iterator[None]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield

    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    with (
        tempfile.TemporaryDirectory(dir="/tmp") as folder,
        fork_server(["colorsys"], Path(folder), {"OF_SERVER": "server"}) as python,
    ):
        (server,) = set(children.read_text().split()) - before
        with ray_cluster(None, experiment().budget, python=python):
            node: Any = import_module("ray._private.worker")._global_node
            started = node.all_processes
            assert "raylet" in started
            assert not {"monitor", "log_monitor"} & started.keys()
            for _ in range(2):
                assert list(run_in_task(imported, cpus=1, gpus=0)) == [(True, "", int(server))]
            with pytest.raises(WorkLost):
                list(run_in_task(killed, cpus=1, gpus=0))
            assert list(run_in_task(imported, cpus=1, gpus=0)) == [(True, "", int(server))]
