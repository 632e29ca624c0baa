"""What launchers state in the environment: complete, contradictory, or for a single process."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import deepspeed
import pytest
import torch

from sweepcp.config.target import load_target
from sweepcp.errors import InvalidInput
from sweepcp.full_run import preflight
from sweepcp.training.launcher import (
    LaunchedProcess,
    launched_process,
    set_rendezvous_environment,
)
from sweepcp.training.process_group import FILES_TIMEOUT, ProcessGroup
from sweepcp.training.zero_engine import join_process_group
from sweepcp.util import parallel
from sweepcp.util.parallel import threads_per_rank, usable_cores
from tests.make import recipe as make_recipe

MASTER = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
STEP = {"SLURM_STEP_NODELIST": "node7", "SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_ID": "1234567"}
TASK = {"SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_NTASKS": "4"}
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without a launcher, restored afterwards."""
    before = dict(os.environ)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
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
    if index is None:
        with pytest.raises(InvalidInput, match="a GPU for each process"):
            preflight.check_compute(gpu_bundle())
    else:
        preflight.check_compute(gpu_bundle())


def gpu_bundle(attention: str = "auto", precision: str = "bf16") -> Any:
    """What `check_compute` reads of a bundle for GPUs."""
    target, _ = load_target("llama-3.1-8b-4x8")
    compute = target.compute.model_copy(update={"attention": attention, "precision": precision})
    target = target.model_copy(update={"compute": compute})
    content = SimpleNamespace(target=target, model=SimpleNamespace(path=None), recipe=make_recipe())
    return SimpleNamespace(bundle=content, path=Path("bundle"))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_bf16_on_a_gpu_without_it_is_refused(precision: str, environment: pytest.MonkeyPatch):
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    environment.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    if precision == "fp32":
        preflight.check_compute(gpu_bundle(precision=precision))
        return
    with pytest.raises(InvalidInput, match=r"compute capability 7\.5") as refused:
        preflight.check_compute(gpu_bundle(precision=precision))
    assert refused.value.key == "target.compute.precision"


@pytest.mark.parametrize(
    ("attention", "precision", "rule"),
    [("flash_attention_2", "bf16", "installed"), ("varlen", "fp32", "precision")],
)
def test_attention_that_cannot_run_is_refused_before_the_group_is_joined(
    attention: str, precision: str, rule: str, environment: pytest.MonkeyPatch
):
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    environment.setattr("sweepcp.config.attention.find_spec", lambda _: None)
    with pytest.raises(InvalidInput, match=f"rule:  an implementation that .*{rule}") as refused:
        preflight.check_compute(gpu_bundle(attention, precision))
    assert refused.value.file == "bundle/bundle.json"
    assert refused.value.key == "target.compute.attention"
    for other in ("auto", "sdpa", "eager"):
        preflight.check_compute(gpu_bundle(other, precision))


def test_what_the_installed_deepspeed_does_not_take_is_refused(environment: pytest.MonkeyPatch):
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    bundle = gpu_bundle()
    settings = {"zero_optimization": {"stage": 3, "renamed": 1}}
    environment.setattr(preflight, "zero_config", lambda *_, **__: settings)
    with pytest.raises(InvalidInput, match=r"what DeepSpeed 0\..* takes") as refused:
        preflight.check_compute(bundle)
    assert refused.value.key == "target.deepspeed.zero_optimization.renamed"
    assert refused.value.found == 1


def test_a_task_that_sees_its_own_gpu_alone_uses_it(environment: pytest.MonkeyPatch):
    """As with --gpus-per-task=1: the fourth task of a node, whose only GPU has the index 0."""
    for name, value in {**TASK, **STEP}.items():
        environment.setenv(name, value)
    joined: dict[str, Any] = {}
    environment.setattr(torch.cuda, "device_count", lambda: 1)
    environment.setattr(torch.cuda, "set_device", lambda device: joined.update(device=device))
    environment.setattr(torch, "set_num_threads", lambda _: None)

    def join(backend: str, **options: Any) -> None:
        joined.update(backend=backend, **options)

    environment.setattr(deepspeed, "init_distributed", join)
    environment.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.set_float32_matmul_precision("high")
    preflight.check_compute(gpu_bundle())
    with warnings.catch_warnings():
        group = join_process_group("cuda")
    assert joined == {
        "device": torch.device("cuda", 0),
        "backend": "nccl",
        "timeout": FILES_TIMEOUT,
    }
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert (group.rank, group.world_size, group.local_rank) == (3, 4, 3)
    assert group.device == torch.device("cuda", 0)
    # The index of the GPU that DeepSpeed computes on; see `deepspeed.zero.Init`.
    assert os.environ["LOCAL_RANK"] == "0"


@pytest.mark.parametrize(("local_rank", "order"), [(0, "download, wait"), (3, "wait, download")])
def test_the_first_process_of_a_node_downloads_before_the_others(
    local_rank: int, order: str, monkeypatch: pytest.MonkeyPatch
):
    done: list[str] = []

    class Group(ProcessGroup):
        def barrier(self) -> None:
            done.append("wait")

    monkeypatch.setenv("LOCAL_RANK", "0")  # that of a task that sees its own GPU alone
    monkeypatch.setattr(preflight, "fetch_hub_model", lambda *_: done.append("download"))
    monkeypatch.setattr(preflight, "read_config", lambda _: None)
    monkeypatch.setattr(preflight, "read_shards", lambda _: [])
    monkeypatch.setattr(preflight, "check_on_first_rank", lambda *_: None)
    model = SimpleNamespace(path=None, hub="a/b", revision="c", fingerprint=None)
    bundle: Any = SimpleNamespace(bundle=SimpleNamespace(model=model), path=Path("bundle"))
    preflight.fetch_model_files(bundle, Group(local_rank=local_rank))
    assert ", ".join(done[:2]) == order


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
