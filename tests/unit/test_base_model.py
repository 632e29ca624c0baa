"""A small base is pretrained in a task of Ray, with what a trial has."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sweepcp.errors import InvalidInput
from sweepcp.search import base_model, cluster
from sweepcp.search.base_model import check_base, find_or_pretrain_base
from sweepcp.training import pretraining
from sweepcp.training.loop import StepMetrics
from sweepcp.util.gpus import Device
from sweepcp.util.progress import NoProgress
from tests.make import experiment

METRICS = StepMetrics(1, 0.1, 2.0, 1.0, {"python-docs": 8}, {"general": 2.0})


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The needs of the tasks that were run, each in this process."""
    needs: list[dict[str, Any]] = []

    def run(work: Callable[[], Iterator[Any]], **settings: Any) -> Iterator[Any]:
        needs.append(settings)
        return work()

    monkeypatch.setattr(cluster, "run_in_task", run)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return needs


@pytest.mark.parametrize(("device", "gpus", "visible"), [("cpu", 0, ""), ("cuda", 1, "0")])
def test_pretraining_has_the_threads_of_a_trial_and_a_whole_gpu(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: list[dict[str, Any]],
    device: Device,
    gpus: int,
    visible: str,
):
    seen: list[Any] = []

    def pretrain(*_: Any, device: torch.device) -> Iterator[StepMetrics]:
        seen.append((torch.get_num_threads(), device.type, os.environ["CUDA_VISIBLE_DEVICES"]))
        yield METRICS

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pretraining, "pretrain_base", pretrain)
    monkeypatch.setattr(base_model, "pretrained_path", lambda *_: tmp_path)
    searched = experiment("budget.cpus_per_trial=3", "budget.gpus_per_trial=0.25")
    before = torch.get_num_threads()
    try:
        found = find_or_pretrain_base(searched, {}, {}, device=device, progress=NoProgress())
    finally:
        torch.set_num_threads(before)
    assert found == str(tmp_path)
    assert seen == [(3, device, visible)]
    assert tasks == [{"cpus": 3, "gpus": gpus, "ends_process": True}]


@pytest.mark.usefixtures("tasks")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("2 GiB"), RuntimeError("another")])
def test_a_base_that_does_not_fit_the_gpu_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
):
    def pretrain(*_: Any, **__: Any) -> Iterator[StepMetrics]:
        yield METRICS
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(pretraining, "pretrain_base", pretrain)
    monkeypatch.setattr(base_model, "pretrained_path", lambda *_: tmp_path)
    with pytest.raises((InvalidInput, RuntimeError)) as raised:
        find_or_pretrain_base(experiment(), {}, {}, device="cuda", progress=NoProgress())
    if isinstance(error, torch.OutOfMemoryError):
        assert isinstance(raised.value, InvalidInput)
        assert raised.value.key == "base.pretrain.config"
    else:
        assert raised.value is error


def test_a_base_in_the_cache_needs_no_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[dict[str, Any]]
):
    (tmp_path / "config.json").touch()
    monkeypatch.setattr(base_model, "pretrained_path", lambda *_: tmp_path)
    check_base(experiment(), {}, device="cuda")
    find_or_pretrain_base(experiment(), {}, {}, device="cuda", progress=NoProgress())
    assert not tasks


@pytest.mark.parametrize(("device", "visible"), [("cpu", ""), ("cuda", "0")])
def test_the_check_opens_the_device_of_trials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: list[dict[str, Any]],
    device: Device,
    visible: str,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(base_model, "pretrained_path", lambda *_: tmp_path)
    check_base(experiment(), {}, device=device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible
    assert len(tasks) == 1


def test_a_torch_without_cuda_is_found_by_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[dict[str, Any]]
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(base_model, "pretrained_path", lambda *_: tmp_path)
    with pytest.raises(InvalidInput, match="which sees no GPU") as refused:
        check_base(experiment(), {}, device="cuda")
    assert refused.value.key == "budget.gpus_per_trial"
    # The process that has imported torch may pretrain the base.
    assert tasks == [{"cpus": 1, "gpus": 1, "ends_process": False}]
