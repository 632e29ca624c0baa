"""What launchers state in the environment: complete, contradictory, or for a single process."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sweepcp.errors import InvalidInput
from sweepcp.full_run import preflight
from sweepcp.training.launcher import (
    LaunchedProcess,
    launched_process,
    set_rendezvous_environment,
)
from sweepcp.util import parallel
from sweepcp.util.parallel import threads_per_rank, usable_cores

MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
STEP = {"SLURM_STEP_NODELIST": "node7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "1234567"}
TASK = {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4"}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without a launcher, restored afterwards."""
    before = dict(os.environ)
    for name in (*VARIABLES, *MASTER, *(name for name in os.environ if name.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    os.environ.clear()
    os.environ.update(before)


def place(process: LaunchedProcess) -> tuple[int, int, int]:
    return process.rank, process.world_size, process.local_rank


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1, 0)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **MASTER}, (5, 8, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "SLURM_LOCALID": "1", **MASTER}, (3, 4, 1)),
        ({**TASK, **STEP}, (3, 4, 3)),
        # the shell that `salloc` opens: an interactive step of one task in an allocation of four
        ({**TASK, **STEP, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
        # torchrun in a batch script
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", **MASTER, **TASK}, (1, 2, 1)),
    ],
)
def test_the_place_of_a_process(
    env: dict[str, str], expected: tuple[int, int, int], environment: pytest.MonkeyPatch
):
    for name, value in env.items():
        environment.setenv(name, value)
    process = set_rendezvous_environment()
    assert place(process) == expected
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == [
        str(number) for number in expected
    ]
    assert os.environ["MASTER_ADDR"]
    assert 0 < int(os.environ["MASTER_PORT"]) < 65536
    assert set_rendezvous_environment() == LaunchedProcess(
        rank=process.rank,
        world_size=process.world_size,
        local_rank=process.local_rank,
        owns_gpus="TORCHELASTIC_RUN_ID" not in env
        and env.get("SLURM_LOCALID") == str(process.local_rank),
    )


def test_slurm_tasks_meet_on_the_first_node_at_a_port_of_the_job(environment: pytest.MonkeyPatch):
    for name, value in {**TASK, **STEP}.items():
        environment.setenv(name, value)
    set_rendezvous_environment()
    assert os.environ["MASTER_ADDR"] == "node7"
    assert os.environ["MASTER_PORT"] == str(20000 + 1234567 % 20000)


@pytest.mark.parametrize(
    ("env", "key"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "RANK"),
        ({"RANK": "", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "RANK"),
        ({"RANK": "-1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **MASTER}, "RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2", **MASTER}, "LOCAL_RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "one", **MASTER}, "LOCAL_RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, "MASTER_ADDR"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost"},
            "MASTER_PORT",
        ),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "70000"}, "MASTER_PORT"),
        (TASK, "SLURM_STEP_NODELIST"),
        ({**TASK, "SLURM_NTASKS": "many"}, "SLURM_NTASKS"),
        ({**TASK, **STEP, "SLURM_PROCID": "4"}, "SLURM_PROCID"),
        ({**TASK, **STEP, "SLURM_LOCALID": ""}, "SLURM_LOCALID"),
        ({**TASK, **STEP, "SLURM_JOB_ID": ""}, "SLURM_JOB_ID"),
        ({**TASK, **STEP, "SLURM_STEP_NODELIST": "node[1-2]", "PATH": "/nowhere"}, "MASTER_ADDR"),
    ],
)
def test_incomplete_or_contradictory_variables_are_refused_by_name(
    env: dict[str, str], key: str, environment: pytest.MonkeyPatch
):
    for name, value in env.items():
        environment.setenv(name, value)
    with pytest.raises(InvalidInput) as refused:
        set_rendezvous_environment()
    assert refused.value.key == key
    assert refused.value.fix


@pytest.mark.parametrize(
    ("env", "visible", "index"),
    [
        ({**TASK, **STEP}, 8, 3),
        ({**TASK, **STEP}, 4, 3),
        ({**TASK, **STEP}, 1, 0),  # --gpus-per-task=1: each task sees its own GPU alone
        ({**TASK, **STEP}, 2, None),
        ({**TASK, **STEP}, 0, None),
        # a task whose script has copied Slurm's variables to those of torch
        ({**TASK, **STEP, "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}, 1, 0),
        # torchrun starts two processes on a machine with one GPU, also as a task of Slurm
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1, None),
        (
            {
                **{**TASK, **STEP, "SLURM_LOCALID": "1"},
                **{"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "a"},
            },
            1,
            None,
        ),
        ({}, 1, 0),
    ],
)
def test_the_gpu_of_a_process(
    env: dict[str, str], visible: int, index: int | None, environment: pytest.MonkeyPatch
):
    for name, value in env.items():
        environment.setenv(name, value)
    assert launched_process().gpu_index(visible) == index
    environment.setattr(torch.cuda, "device_count", lambda: visible)
    hardware = SimpleNamespace(device="cuda")
    content = SimpleNamespace(target=SimpleNamespace(hardware=hardware))
    bundle = SimpleNamespace(bundle=content, path=Path("bundle"))
    if index is None:
        with pytest.raises(InvalidInput, match="a GPU for each process"):
            preflight.check_gpu(bundle)  # type: ignore[arg-type]
    else:
        preflight.check_gpu(bundle)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_NUM_THREADS", "abc"),
        ("OMP_NUM_THREADS", "0"),
        ("OMP_NUM_THREADS", "-2"),
        ("OMP_NUM_THREADS", ",4"),
        ("LOCAL_WORLD_SIZE", "two"),
        ("LOCAL_WORLD_SIZE", "0"),
    ],
)
def test_numbers_of_threads_that_are_none_are_refused(
    name: str, value: str, environment: pytest.MonkeyPatch
):
    environment.delenv("OMP_NUM_THREADS", raising=False)
    environment.setenv(name, value)
    with pytest.raises(InvalidInput) as refused:
        threads_per_rank()
    assert refused.value.key == name


@pytest.mark.parametrize(
    ("v2", "v1", "cores"),
    [
        ("200000 100000\n", None, 2),
        ("max 100000\n", None, 8),
        ("max\n", None, 8),
        ("", None, 8),
        ("nonsense 1\n", None, 8),
        ("100000 0\n", None, 8),
        (None, ("250000\n", "100000\n"), 3),
        (None, ("-1\n", "100000\n"), 8),
        (None, ("250000\n", None), 8),
        (None, None, 8),
    ],
)
def test_the_quota_of_either_kind_of_control_group(
    v2: str | None,
    v1: tuple[str | None, ...] | None,
    cores: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(parallel, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(parallel, "CPU_QUOTA_V1", tmp_path / "cpu.cfs_quota_us")
    files = dict(zip(("cpu.cfs_quota_us", "cpu.cfs_period_us"), v1 or (), strict=False))
    for name, content in {**files, "cpu.max": v2}.items():
        if content is not None:
            (tmp_path / name).write_text(content)
    assert usable_cores() == cores
