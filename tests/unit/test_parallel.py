"""How many cores a process may use, and who is told."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch

from sweepcp.corpora.experiment import load_experiment
from sweepcp.errors import InvalidInput, WorkLost
from sweepcp.full_run import ray_launcher
from sweepcp.full_run.ray_launcher import run_with_ray
from sweepcp.models import loading
from sweepcp.promote.bundle import load_bundle
from sweepcp.runs.run_folder import read_run
from sweepcp.search import rescore, trial_runner
from sweepcp.search.search import run_search
from sweepcp.training import zero_engine
from sweepcp.util import parallel
from sweepcp.util.parallel import (
    call_in_child,
    parallel_map,
    ray_connection,
    threads_per_rank,
    usable_cores,
)
from sweepcp.util.progress import NoProgress
from tests.make import experiment, write_bundle
from tests.make_run import write_run


@pytest.fixture
def eight_of_many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that may run on eight of the machine's cores; returns its quota file."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(parallel, "CPU_QUOTA", tmp_path / "cpu.max")
    return tmp_path / "cpu.max"


def test_cores_are_those_of_the_affinity_within_the_quota(eight_of_many: Path):
    assert usable_cores() == 8
    for content, cores in (
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("250000 100000\n", 3),
        ("1000000 100000\n", 8),
        ("5000 100000\n", 1),
    ):
        eight_of_many.write_text(content)
        assert usable_cores() == cores


def test_work_is_done_in_this_process_where_the_interpreter_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    interpreter = tmp_path / "python"
    interpreter.touch(mode=0o600)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    monkeypatch.setattr(parallel, "usable_cores", lambda: 2)
    assert call_in_child(lambda _: os.getpid(), 0) == os.getpid()
    assert list(parallel_map(lambda item: (item, os.getpid()), [1, 2], None)) == [
        (1, os.getpid()),
        (2, os.getpid()),
    ]


@pytest.mark.usefixtures("eight_of_many")
def test_ray_is_told_the_usable_cores(monkeypatch: pytest.MonkeyPatch):
    told: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: told.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(parallel, "prepare_local_ray", lambda: None)
    monkeypatch.setattr(parallel, "check_cluster", lambda _: None)
    with ray_connection(None):
        assert told["num_cpus"] == 8
    told.clear()
    with ray_connection("10.0.0.1:6379"):
        assert "num_cpus" not in told


@pytest.mark.usefixtures("eight_of_many")
@pytest.mark.parametrize(
    ("env", "threads"),
    [
        ({}, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 2),
        ({"LOCAL_WORLD_SIZE": "16"}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "6,2"}, 6),
    ],
)
def test_ranks_share_the_cores_unless_the_launcher_states_threads(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], threads: int
):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert threads_per_rank() == threads


@pytest.mark.usefixtures("eight_of_many")
def test_a_trial_of_more_threads_than_cores_is_refused_before_anything_is_written(tmp_path: Path):
    loaded, files = load_experiment("quickstart", ["budget.cpus_per_trial=9"])
    with pytest.raises(InvalidInput, match="at most the 8 CPUs") as caught:
        run_search(loaded, files, tmp_path / "run", progress=NoProgress())
    assert caught.value.key == "budget.cpus_per_trial"
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("eight_of_many")
def test_a_full_run_under_ray_is_refused_more_processes_than_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle = load_bundle(write_bundle(tmp_path))
    ray_launcher._check_cores(bundle)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with pytest.raises(InvalidInput, match="at most the 1 CPUs"):
        run_with_ray(bundle, tmp_path / "run", None)
    assert not (tmp_path / "run").exists()


class Began(Exception):
    """Raised in place of the first step after a process has stated its threads."""


def begin(*_: object, **__: object) -> None:
    raise Began(torch.get_num_threads())


@pytest.fixture
def threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("eight_of_many", "threads_restored")
@pytest.mark.parametrize(("stated", "taken"), [(3, 3), (12, 8)])
def test_a_score_takes_the_threads_of_a_trial_at_most_the_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stated: int, taken: int
):
    monkeypatch.setattr(loading, "load_tokenizer", begin)
    searched = experiment(f"budget.cpus_per_trial={stated}")
    run = read_run(write_run(tmp_path / "run", 1))
    monkeypatch.setattr(rescore, "stores_of_run", lambda _: {})
    monkeypatch.setattr(rescore, "experiment_scoring_spec", lambda *_, **__: None)
    torch.set_num_threads(1)
    with pytest.raises(Began, match=f"^{taken}$"):
        rescore._make_scorer(tmp_path, replace(run, experiment=searched))


@pytest.mark.usefixtures("threads_restored")
def test_a_worker_takes_the_threads_of_a_trial(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trial_runner, "load_tokenizer", begin)
    torch.set_num_threads(1)
    with pytest.raises(Began, match=r"^2$"):
        trial_runner.TrialRunner(SimpleNamespace(threads=2, base=None, device="cpu", gpu_share=0.0))  # type: ignore[arg-type]


@pytest.mark.usefixtures("eight_of_many", "threads_restored")
def test_a_rank_takes_its_part_of_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zero_engine, "set_rendezvous_environment", begin)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    with pytest.raises(Began, match=r"^4$"):
        zero_engine.join_process_group("cpu")


def test_a_lost_task_is_reported_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    def lose(_: object) -> None:
        raise ray.exceptions.WorkerCrashedError

    monkeypatch.setattr(ray, "get", lose)
    with pytest.raises(WorkLost, match=r"^the process of a Ray task was lost \(The .*[^.]\)$"):
        parallel.task_result(None)
