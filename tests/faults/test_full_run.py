"""A full run that is killed, signalled, damaged and moved to other numbers of ranks ends like one that never was.

Long, so not part of `pytest`: run `pytest tests/faults`. Each run starts processes with DeepSpeed, which takes most of
its time.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sweepcp.data.stream import MixtureStream
from sweepcp.data.token_store import TokenStore
from sweepcp.promote.bundle import load_bundle
from tests.integration.conftest import metrics, torchrun
from tests.make import write_bundle

FAULTY = Path(__file__).with_name("faulty.py")
BAD = 11
"""The step of the stream whose data spoil the loss in a test of spikes."""


def train(
    bundle: Path, out: Path, processes: int = 2, fault: str = "none"
) -> subprocess.CompletedProcess[str]:
    return torchrun(processes, FAULTY, fault, bundle, "--out", out)


def finished(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def whole(bundle: Path) -> Path:
    """A run that nothing happens to."""
    out = bundle / "run"
    finished(train(bundle, out))
    return out


@pytest.fixture(scope="module")
def halfway(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which rank 1 was killed in step 12."""
    out = tmp_path_factory.mktemp("halfway") / "run"
    done = train(bundle, out, fault="kill")
    assert done.returncode != 0
    assert (out / "checkpoints" / "latest").read_text().strip() == "step-00000010"
    assert not (out / "scorecard.json").exists()
    return out


def same(out: Path, whole: Path, exact: bool = True) -> None:
    """Steps, losses and final weights are those of the run that nothing happened to."""
    ours, theirs = metrics(out), metrics(whole)
    assert [row["step"] for row in ours] == list(range(1, 21))
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert [row["lr"] for row in ours] == [row["lr"] for row in theirs]
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(ours, theirs, strict=True)]
    assert max(differences) <= (0 if exact else 1e-5)
    mine, reference = (load_file(folder / "model" / "model.safetensors") for folder in (out, whole))
    for name in reference:
        if exact:
            assert torch.equal(mine[name], reference[name])
        else:
            assert torch.allclose(mine[name], reference[name], atol=1e-5)


def test_lr_and_mixture_of_every_step_are_the_plan(bundle: Path, whole: Path):
    plan = [json.loads(line) for line in (bundle / "plan.jsonl").read_text().splitlines()]
    assert [{key: row[key] for key in ("step", "lr", "tokens")} for row in metrics(whole)] == plan


def test_row_22_a_killed_rank(bundle: Path, whole: Path, halfway: Path, tmp_path: Path):
    out = Path(shutil.copytree(halfway, tmp_path / "run"))
    assert "going on after step 10 of 20" in finished(train(bundle, out))
    same(out, whole)


@pytest.mark.parametrize("fault", ["kill-shard", "kill-manifest", "kill-pointer"])
def test_row_23_killed_while_saving(bundle: Path, whole: Path, tmp_path: Path, fault: str):
    out = tmp_path / "run"
    assert train(bundle, out, fault=fault).returncode != 0
    said = finished(train(bundle, out))
    if fault == "kill-pointer":
        assert "the newest complete checkpoint is step-00000010" in said
    else:
        assert "going on after step 5 of 20" in said
    same(out, whole)


def test_row_24_and_27_two_ranks_one_rank_two_ranks_through_the_epochs(
    bundle: Path, whole: Path, tmp_path: Path
):
    """`docs` has 20 sequences, of which a step reads 6.4, so each stop is in another epoch of it."""
    out = tmp_path / "run"
    for processes, step in ((2, 7), (1, 14)):
        done = train(bundle, out, processes, "signal")
        assert "exitcode  : 140" in done.stderr  # 128 + SIGUSR2
        assert (out / "checkpoints" / "latest").read_text().strip() == f"step-{step:08d}"
    assert "planned for 2 processes, running on 1: 8 micro batches a step on each" in done.stdout
    assert "going on after step 7 of 20" in done.stdout
    finished(train(bundle, out))
    same(out, whole, exact=False)
    assert metrics(out)[6]["tokens"]["docs"] > 20 * 32


def test_a_run_in_bf16_with_its_optimizer_on_the_host_goes_on_exactly(tmp_path: Path):
    """fp32 master weights and moments are in the checkpoint, not the bf16 weights."""
    compute = {"micro_batch": 2, "precision": "bf16", "recompute": True, "offload": "optimizer"}
    bundle = write_bundle(tmp_path, compute=compute)
    finished(train(bundle, tmp_path / "whole", processes=1))
    train(bundle, tmp_path / "run", processes=1, fault="signal")
    assert "going on after step 7 of 20" in finished(train(bundle, tmp_path / "run", processes=1))
    same(tmp_path / "run", tmp_path / "whole")


def test_row_25_a_lost_pointer(bundle: Path, halfway: Path, tmp_path: Path):
    out = Path(shutil.copytree(halfway, tmp_path / "run"))
    before = metrics(out)
    for content in (None, ""):
        pointer = out / "checkpoints" / "latest"
        pointer.unlink() if content is None else pointer.write_text(content)
        done = train(bundle, out, processes=1)
        assert "exitcode  : 2" in done.stderr
        assert "write `step-00000010` into it" in done.stderr
        assert metrics(out) == before


def test_row_26_a_flipped_bit(bundle: Path, whole: Path, halfway: Path, tmp_path: Path):
    out = Path(shutil.copytree(halfway, tmp_path / "run"))
    file = out / "checkpoints" / "step-00000010" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    said = finished(train(bundle, out))
    assert (
        "step-00000010 is damaged (rank-00001.safetensors); going back to the checkpoint before"
        in said
    )
    assert "going on after step 5 of 20" in said
    same(out, whole)


def test_a_spike_is_gone_around_and_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = write_bundle(tmp_path, spikes={"factor": 2.0, "window": 4}, checkpoints={"every": 4})
    found = load_bundle(bundle).bundle
    stream = MixtureStream(
        found.recipe, [TokenStore(Path(str(c.store)), c.name) for c in found.corpora]
    )
    for rank in (0, 1):
        monkeypatch.setenv(f"BAD_{rank}", str(int(stream.batch(BAD, rank, 2).input_ids.sum())))
    said = finished(train(bundle, tmp_path / "run", fault="spike"))
    assert "back to step 8, passing over 3 steps of the stream" in said
    manifest = json.loads(
        (tmp_path / "run" / "checkpoints" / "step-00000020" / "manifest.json").read_text()
    )
    assert manifest["skipped"] == [9, 10, 11]
    fed = np.zeros(2, dtype=int)
    for row, place in zip(metrics(tmp_path / "run"), [*range(1, 9), *range(12, 24)], strict=True):
        fed += np.bincount(stream.batch(place).source, minlength=2) * found.recipe.seq_len
        assert row["tokens"] == dict(zip(("code", "docs"), fed.tolist(), strict=True))


def test_a_loss_that_is_not_finite_ends_the_run(bundle: Path, tmp_path: Path):
    done = train(bundle, tmp_path / "run", fault="nan")
    assert "exitcode  : 3" in done.stderr
    assert "step 12 of 20: loss nan" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == "step-00000010"


def test_an_alarm_stops_the_run_with_its_state_saved(tmp_path: Path):
    bundle = write_bundle(
        tmp_path,
        watch={"every": 3, "max_regression": 0.0, "stop": True},
        model={"path": str(tmp_path / "model"), "max_lr": 50.0},
    )
    done = train(bundle, tmp_path / "run")
    assert "exitcode  : 3" in done.stderr
    assert "held-out general" in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().strip() == "step-00000003"


def test_another_bundle_in_the_same_folder_is_refused(bundle: Path, halfway: Path, tmp_path: Path):
    other = write_bundle(tmp_path, name="other")
    out = Path(shutil.copytree(halfway, tmp_path / "run"))
    done = train(other, out, processes=1)
    assert "exitcode  : 2" in done.stderr
    assert "name another --out" in done.stderr


def test_a_number_of_ranks_that_does_not_divide_the_batch(bundle: Path, tmp_path: Path):
    done = train(bundle, tmp_path / "run", processes=3)
    assert "exitcode  : 2" in done.stderr
    assert "a number of processes that divides 8 micro batches of a step" in done.stderr
    assert not (tmp_path / "run" / "base.json").exists()
