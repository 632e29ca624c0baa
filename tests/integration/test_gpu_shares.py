"""Trials and pretraining under a Ray that believes it has a GPU, with a stand-in for torch.cuda."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from sweepcp import load_run
from sweepcp.errors import Diverged, InvalidInput, WorkLost
from sweepcp.search.cluster import run_in_task
from sweepcp.util.gpus import Device
from sweepcp.util.ray_setup import prepare_local_ray

pytestmark = pytest.mark.slow
CPUS = 5
"""More than a GPU has room for at a share of 0.25."""


@pytest.fixture(autouse=True, scope="module")
def ray_with_a_gpu() -> Iterator[None]:
    # A process keeps the token that it has first connected with. Later tests of this process start
    # Ray with the one of a search.
    prepare_local_ray()
    ray.init(
        num_cpus=CPUS,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def make_runner(folder: Path, device: Device, gpu_share: float) -> Any:
    """Make a worker's runner as a search does, but one that trains nothing."""
    from sweepcp.search.worker import make_trial_runner

    stand_in: Any = SimpleNamespace(TrialRunner=recording_runner)
    sys.modules["sweepcp.search.trial_runner"] = stand_in
    spec: Any = SimpleNamespace(device=device, gpu_share=gpu_share, folder=folder)
    return make_trial_runner(spec, 1)


def recording_runner(spec: Any, **_: Any) -> Any:
    imported = "torch" in sys.modules
    import torch

    from sweepcp.training.device import open_device
    from tests.integration.analytic import AnalyticRunner

    caps: list[float] = []
    card = SimpleNamespace(total_memory=80 * 2**30)
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.get_device_properties = lambda _: card
    cuda.set_per_process_memory_fraction = caps.append
    device = open_device(spec.device, gpu_share=spec.gpu_share)

    class Recorder(AnalyticRunner):
        def run(self, recipe: Any, **settings: Any) -> Iterator[Any]:
            began = time.time()
            time.sleep(0.5)
            record = {
                "pid": os.getpid(),
                "torch was imported": imported,
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "device": device.type,
                "caps": caps,
                "began": began,
                "ended": time.time(),
            }
            (spec.folder / f"{recipe.id}.json").write_text(json.dumps(record))
            yield from super().run(recipe, **settings)

    return Recorder({})


def most_at_a_time(records: list[dict[str, Any]]) -> int:
    return max(
        sum(other["began"] <= record["began"] < other["ended"] for other in records)
        for record in records
    )


@pytest.mark.parametrize(
    ("share", "visible", "caps", "most"),
    [
        (0.0, "", [], CPUS),
        (0.25, "0", [0.25 - 0.5 / 80], 4),
        (1.0, "0", [], 1),
    ],
)
def test_workers_see_the_gpu_they_share_and_no_other(
    tmp_path: Path, share: float, visible: str, caps: list[float], most: int
):
    from tests.integration import analytic

    device: Device = "cuda" if share else "cpu"
    make = partial(make_runner, tmp_path, device, share)
    trials = 3 if most == 1 else 8
    analytic.run(tmp_path / "run", trials, concurrency=None, gpus_per_trial=share, make_runner=make)
    assert {trial.status for trial in load_run(tmp_path / "run").trials} == {"done"}
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(records) == trials
    assert {record["visible"] for record in records} == {visible}
    assert {record["device"] for record in records} == {device}
    assert {tuple(record["caps"]) for record in records} == {tuple(caps)}
    # A process that has imported torch may have looked for GPUs already.
    assert not any(record["torch was imported"] for record in records)
    assert len({record["pid"] for record in records}) <= most
    assert most_at_a_time(records) <= most
    assert most_at_a_time(records) > 1 or most == 1


def collect(work: Callable[[], Iterator[Any]], gpus: int) -> list[Any]:
    return list(run_in_task(work, cpus=1, gpus=gpus))


def yield_process() -> Iterator[Any]:
    yield os.getpid()
    yield os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_task_has_a_whole_gpu_and_its_process_ends_with_it():
    pid, visible = collect(yield_process, gpus=1)
    assert visible == "0"
    next_pid, _ = collect(yield_process, gpus=1)
    assert next_pid != pid
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def refuse() -> Iterator[int]:
    yield 1
    raise InvalidInput(file="a file", key="a key", found=3, rule="a rule", fix="a fix")


def diverge() -> Iterator[int]:
    yield 1
    raise Diverged("loss nan", 7)


def die() -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_ends_a_task_is_raised_as_it_is():
    seen: list[int] = []
    with pytest.raises(InvalidInput) as refused:
        seen.extend(run_in_task(refuse, cpus=1, gpus=0))
    assert (refused.value.key, refused.value.found) == ("a key", 3)
    with pytest.raises(Diverged, match="loss nan"):
        collect(diverge, gpus=0)
    with pytest.raises(WorkLost, match="lost"):
        collect(die, gpus=0)
