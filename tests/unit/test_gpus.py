"""The GPUs that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows."""

import os
from pathlib import Path

import pytest
import torch

from sweepcp.errors import InvalidInput
from sweepcp.training.device import open_device
from sweepcp.util import gpus
from sweepcp.util.gpus import Gpu, hide_gpus, visible_gpus
from tests.gpu_stand_in import H100, T4, install_nvidia_smi

CARDS = (H100, T4, H100)
LISTED = (
    Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024, (9, 0)),
    Gpu("Tesla T4", 15.0, (7, 5)),
    Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024, (9, 0)),
)


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_nvidia_smi(tmp_path, monkeypatch, *CARDS)
    assert visible_gpus() == LISTED
    assert [gpu.has_bf16 for gpu in visible_gpus()] == [True, False, True]


@pytest.mark.parametrize(
    ("allowed", "indices"),
    [
        ("", []),
        (" ", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1", [1]),
        ("2, 0", [2, 0]),
        ("0,7,1", [0]),
        ("GPU-t1,GPU-h0", [1, 0]),
        ("GPU-h", []),
        ("9,0", []),
    ],
)
def test_gpus_are_limited_by_the_variable_as_cuda_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: str, indices: list[int]
):
    install_nvidia_smi(tmp_path, monkeypatch, *CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == tuple(LISTED[index] for index in indices)


def test_an_instance_of_a_gpu_has_a_part_of_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install_nvidia_smi(tmp_path, monkeypatch, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    assert visible_gpus() == (Gpu("MIG instance", None, (9, 0)),) * 2


@pytest.mark.parametrize("allowed", ["1,1", "0,1,0", "GPU-h0,GPU-h0", "MIG-a,MIG-a"])
def test_a_gpu_that_is_allowed_twice_is_none_as_for_cuda(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    allowed: str,
):
    install_nvidia_smi(tmp_path, monkeypatch, *CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert visible_gpus() == visible_gpus() == ()
    assert [record.message for record in caplog.records] == [
        f"no GPU is used: CUDA_VISIBLE_DEVICES names one twice ({allowed})"
    ]


def test_what_nvidia_smi_does_not_know_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install_nvidia_smi(tmp_path, monkeypatch, "GPU-x, A, B, [N/A], [N/A]")
    assert visible_gpus() == (Gpu("A, B", None, None),)
    assert visible_gpus()[0].has_bf16 is None


def test_no_gpu_is_used_where_nvidia_smi_fails_or_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    install_nvidia_smi(tmp_path, monkeypatch)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho no driver >&2\nexit 9\n")
    assert visible_gpus() == ()
    assert "nvidia-smi failed (no driver)" in caplog.text
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == ()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("echo No devices were found", "lists none (No devices were found)"),
        ("echo a, b, c, d, e", "lists none (a, b, c, d, e)"),
        (r"printf '\377\033[1m, \n0'", "lists none (\N{REPLACEMENT CHARACTER}\\x1b[1m, 0)"),
        ("exec sleep 60", "failed (no answer in 0.2 s)"),
    ],
)
def test_an_answer_that_lists_no_gpu_is_reported(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: str,
    shown: str,
):
    install_nvidia_smi(tmp_path, monkeypatch)
    (tmp_path / "bin" / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    monkeypatch.setattr(gpus, "ANSWER_SECONDS", 0.2 if "sleep" in answer else 60.0)
    assert visible_gpus() == ()
    assert [record.message for record in caplog.records] == [f"no GPU is used: nvidia-smi {shown}"]


def test_hidden_gpus_are_not_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    install_nvidia_smi(tmp_path, monkeypatch, H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    hide_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert visible_gpus() == ()


def test_a_torch_that_sees_no_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_device("cpu") == torch.device("cpu")
    with pytest.raises(InvalidInput) as refused:
        open_device("cuda")
    assert refused.value.key == "budget.gpus_per_trial"
    assert torch.__version__ in str(refused.value.found)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(InvalidInput, match="built for CPUs"):
        open_device("cuda")


@pytest.mark.parametrize(("share", "caps"), [(1.0, []), (0.25, [0.25 - 0.5 / 80]), (1e-4, [0.0])])
def test_a_process_takes_its_share_of_the_memory_and_no_tf32(
    monkeypatch: pytest.MonkeyPatch, share: float, caps: list[float]
):
    class Card:
        total_memory = 80 * 2**30

    taken: list[float] = []
    precisions: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert open_device("cuda", gpu_share=share) == torch.device("cuda")
    assert taken == pytest.approx(caps)
    assert precisions == ["highest"]
    assert not torch.backends.cudnn.allow_tf32
