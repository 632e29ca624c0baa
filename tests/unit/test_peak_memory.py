"""Measured against estimated GPU memory of a full run, with stand-ins for torch.cuda."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

from sweepcp.cli.full_run import _repeat_ending
from sweepcp.full_run.ending import FINISHED, Ending
from sweepcp.full_run.peak_memory import PeakMemory
from sweepcp.promote.bundle import load_bundle
from sweepcp.promote.estimates import estimate_memory
from sweepcp.training.process_group import ProcessGroup
from tests.make import write_bundle

GIB = 2**30
GPU = torch.device("cuda", 0)


class Allocator:
    """Stands in for the peak that torch.cuda counts."""

    def __init__(self) -> None:
        self.peak = 0

    def allocate(self, size: int) -> None:
        self.peak = max(self.peak, size)

    def reset(self, device: torch.device) -> None:
        self.peak = 0


class TwoRanks(ProcessGroup):
    """The first of two ranks; the other one's step needed 5 GiB."""

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        return array + np.array([0, 5 * GIB])


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    allocator = Allocator()
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", allocator.reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: allocator.peak)
    return allocator


@pytest.mark.parametrize(
    ("group", "most", "devices"),
    [
        (ProcessGroup(device=GPU), 3, 1),
        (TwoRanks(device=GPU, world_size=2), 5, 2),
    ],
)
def test_the_most_of_all_steps_and_ranks_is_compared(
    allocator: Allocator, group: ProcessGroup, most: int, devices: int, tmp_path: Path
):
    """What scoring needs, before and between steps, does not count."""
    bundle = load_bundle(write_bundle(tmp_path)).bundle
    memory = PeakMemory(group)
    allocator.allocate(9 * GIB)
    for size in (2 * GIB, 3 * GIB, 1 * GIB):
        memory.begin_step()
        allocator.allocate(size)
        memory.end_step()
        allocator.allocate(8 * GIB)
    use = memory.compare(bundle, attention="sdpa")
    hardware = bundle.target.hardware.model_copy(update={"per_node": devices})
    target = bundle.target.model_copy(update={"hardware": hardware})
    estimated = estimate_memory(bundle.model.shape, target, isolated=True).total / GIB
    assert use == {
        "memory_gib": most,
        "estimated_memory_gib": estimated,
        "memory_ratio": most / estimated,
    }


def test_memory_is_not_compared_on_a_cpu_or_without_a_step(allocator: Allocator, tmp_path: Path):
    bundle: Any = None
    memory = PeakMemory(ProcessGroup())
    memory.begin_step()
    allocator.allocate(GIB)
    memory.end_step()
    assert memory.compare(bundle, attention="sdpa") == {}
    assert PeakMemory(ProcessGroup(device=GPU)).compare(bundle, attention="sdpa") == {}


def test_a_finished_run_shows_its_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    use: dict[str, Any] = {"memory_gib": 48.4, "estimated_memory_gib": 44.0, "memory_ratio": 1.1}
    for memory, expected in (
        (use, "48.4 GiB on the fullest GPU, 1.10 times the estimated 44.0"),
        ({}, ""),
    ):
        ending = Ending(bundle="0" * 64, status=FINISHED, step=1, reason="finished", **memory)
        with pytest.raises(typer.Exit):
            _repeat_ending(ending, tmp_path)
        shown = capsys.readouterr().out
        assert expected in shown
        assert ("GPU memory" in shown) == bool(memory)
