"""Searches on a machine that seems to have a GPU, by a stand-in for nvidia-smi."""

from pathlib import Path

import pytest

from sweepcp import load_run
from tests.gpu_stand_in import H100, install_nvidia_smi
from tests.integration.conftest import SMALL, set_options, sweepcp

pytestmark = pytest.mark.slow


def test_a_search_leaves_a_visible_gpu_alone_that_it_was_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install_nvidia_smi(tmp_path, monkeypatch, H100)
    overrides = set_options([*SMALL, "budget.trials=1", "budget.gpus_per_trial=0"])
    done = sweepcp("search", *overrides, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("budget.gpus_per_trial is 0, and 1 GPU is visible") == 1
    run = load_run(tmp_path / "run")
    assert run.base is not None
    assert run.base.environment["device"] == "cpu"
    assert run.trials[0].cost is not None
    assert ", CPU, " in run.trials[0].cost.worker


def test_a_torch_that_cannot_use_the_visible_gpu_is_refused_before_stores_are_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install_nvidia_smi(tmp_path, monkeypatch, H100)
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))
    done = sweepcp("search", *set_options(SMALL), "--out", tmp_path / "run")
    assert done.returncode == 2, done.stderr
    assert "budget.gpus_per_trial" in done.stderr
    assert "which sees no GPU" in done.stderr
    assert not list((tmp_path / "cache").glob("stores/*"))
