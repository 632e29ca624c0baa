"""A full run that is killed, signalled, damaged or moved to other numbers of ranks ends the same.

Long, so not part of `pytest`: run `pytest tests/faults`. Each run starts processes with DeepSpeed,
which takes most of its time.
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
from sweepcp.full_run.preflight import stores_of_bundle
from sweepcp.promote.bundle import load_bundle
from tests.integration.conftest import metrics, torchrun
from tests.make import write_bundle

FAULTY = Path(__file__).with_name("faulty.py")
BAD = 11
"""The step of the stream whose data spoil the loss in a test of spikes."""


def train(
    bundle: Path, out: Path, processes: int = 2, fault: str = "none", restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    return torchrun(processes, "--max-restarts", restarts, FAULTY, fault, bundle, "--out", out)


def ended(out: Path) -> tuple[int, int]:
    """Exit status and step of the last start."""
    content = json.loads((out / "ended.json").read_text())
    return content["status"], content["step"]


def output_of(done: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a run that must have succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def latest(out: Path) -> str:
    return (out / "checkpoints" / "latest").read_text().strip()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def undisturbed(bundle: Path) -> Path:
    """A run that nothing happens to."""
    out = bundle / "run"
    output_of(train(bundle, out))
    return out


@pytest.fixture(scope="module")
def killed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which rank 1 was killed in step 12."""
    out = tmp_path_factory.mktemp("killed") / "run"
    done = train(bundle, out, fault="kill")
    assert done.returncode != 0
    assert latest(out) == "step-00000010"
    assert not (out / "scorecard.json").exists()
    return out


def check_same(out: Path, reference: Path, exact: bool = True) -> None:
    """Steps, losses and final weights are those of the reference run."""
    steps, expected = metrics(out), metrics(reference)
    assert [row["step"] for row in steps] == list(range(1, 21))
    for key in ("tokens", "lr"):
        assert [row[key] for row in steps] == [row[key] for row in expected]
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(steps, expected, strict=True)]
    assert max(differences) <= (0 if exact else 1e-5)
    weights = load_file(out / "model" / "model.safetensors")
    expected_weights = load_file(reference / "model" / "model.safetensors")
    for name, values in expected_weights.items():
        if exact:
            assert torch.equal(weights[name], values)
        else:
            assert torch.allclose(weights[name], values, atol=1e-5)


def test_lr_and_mixture_of_every_step_are_the_plan(bundle: Path, undisturbed: Path):
    plan = [json.loads(line) for line in (bundle / "plan.jsonl").read_text().splitlines()]
    steps = [{key: row[key] for key in ("step", "lr", "tokens")} for row in metrics(undisturbed)]
    assert steps == plan


def test_row_22_a_killed_rank(bundle: Path, undisturbed: Path, killed: Path, tmp_path: Path):
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    assert "resuming after step 10 of 20" in output_of(train(bundle, out))
    check_same(out, undisturbed)


@pytest.mark.parametrize("fault", ["kill-shard", "kill-manifest", "kill-pointer"])
def test_row_23_killed_while_saving(bundle: Path, undisturbed: Path, tmp_path: Path, fault: str):
    out = tmp_path / "run"
    assert train(bundle, out, fault=fault).returncode != 0
    output = output_of(train(bundle, out))
    if fault == "kill-pointer":
        assert "the newest complete checkpoint is step-00000010" in output
    else:
        assert "resuming after step 5 of 20" in output
    check_same(out, undisturbed)


def test_row_24_and_27_two_ranks_one_rank_two_ranks_through_the_epochs(
    bundle: Path, undisturbed: Path, tmp_path: Path
):
    """`docs` has 20 sequences and a step reads 6.4 of them: each stop is in another epoch."""
    out = tmp_path / "run"
    for processes, step in ((2, 7), (1, 14)):
        done = train(bundle, out, processes, "signal")
        assert "exitcode  : 140" in done.stderr  # 128 + SIGUSR2
        assert ended(out) == (140, step)
        assert latest(out) == f"step-{step:08d}"
    message = "planned for 2 processes, running on 1: each computes 8 micro batches per step"
    assert message in done.stdout
    assert "resuming after step 7 of 20" in done.stdout
    output_of(train(bundle, out))
    check_same(out, undisturbed, exact=False)
    assert metrics(out)[6]["tokens"]["docs"] > 20 * 32


def test_a_run_in_bf16_with_its_optimizer_on_the_host_resumes_exactly(tmp_path: Path):
    """fp32 master weights and moments are in the checkpoint, not the bf16 weights."""
    compute = {"micro_batch": 2, "precision": "bf16", "recompute": True, "offload": "optimizer"}
    bundle = write_bundle(tmp_path, compute=compute)
    output_of(train(bundle, tmp_path / "whole", processes=1))
    train(bundle, tmp_path / "run", processes=1, fault="signal")
    output = output_of(train(bundle, tmp_path / "run", processes=1))
    assert "resuming after step 7 of 20" in output
    check_same(tmp_path / "run", tmp_path / "whole")


def test_hierarchical_partitioning_changes_no_number_and_resumes_exactly(tmp_path: Path):
    """Two groups of two processes; every parameter is partitioned, also the small ones."""
    hardware = {"device": "cpu", "nodes": 2, "per_node": 2}
    zero = {"stage3_param_persistence_threshold": 0}
    outs = []
    for name, more in (("plain", {}), ("groups", {"zero_hpz_partition_size": 2})):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"zero_optimization": zero | more}
        bundle = write_bundle(folder, hardware=hardware, deepspeed=settings)
        outs.append(folder / "run")
        output_of(train(bundle, outs[-1], processes=4))
    plain, groups = outs
    check_same(groups, plain)
    for name in ("items.json", "held_out.jsonl"):
        assert (groups / name).read_bytes() == (plain / name).read_bytes()
    train(bundle, tmp_path / "run", processes=4, fault="signal")
    output = output_of(train(bundle, tmp_path / "run", processes=4))
    assert "resuming after step 7 of 20" in output
    check_same(tmp_path / "run", plain)


def test_row_25_a_lost_pointer(bundle: Path, killed: Path, tmp_path: Path):
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    before = metrics(out)
    for content in (None, ""):
        pointer = out / "checkpoints" / "latest"
        pointer.unlink() if content is None else pointer.write_text(content)
        done = train(bundle, out, processes=1)
        assert "exitcode  : 2" in done.stderr
        assert "write `step-00000010` into it" in done.stderr
        assert metrics(out) == before


def test_row_26_a_flipped_bit(bundle: Path, undisturbed: Path, killed: Path, tmp_path: Path):
    out = Path(shutil.copytree(killed, tmp_path / "run"))
    file = out / "checkpoints" / "step-00000010" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    output = output_of(train(bundle, out))
    message = "step-00000010 is damaged (rank-00001.safetensors); using the checkpoint before it"
    assert message in output
    assert "resuming after step 5 of 20" in output
    check_same(out, undisturbed)


def test_a_spike_is_skipped_and_stays_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_bundle(tmp_path, spikes={"factor": 2.0, "window": 4}, checkpoints={"every": 4})
    bundle = load_bundle(folder).bundle
    stream = MixtureStream(bundle.recipe, stores_of_bundle(bundle))
    for rank in (0, 1):
        monkeypatch.setenv(f"BAD_{rank}", str(int(stream.batch(BAD, rank, 2).input_ids.sum())))
    out = tmp_path / "run"
    output = output_of(train(folder, out, fault="spike"))
    assert "rolled back to step 8, skipping 3 steps of the stream" in output
    manifest = json.loads((out / "checkpoints" / "step-00000020" / "manifest.json").read_text())
    assert manifest["skipped"] == [9, 10, 11]
    fed = np.zeros(2, dtype=int)
    for row, step in zip(metrics(out), [*range(1, 9), *range(12, 24)], strict=True):
        fed += np.bincount(stream.batch(step).source, minlength=2) * bundle.recipe.seq_len
        assert row["tokens"] == dict(zip(("code", "docs"), fed.tolist(), strict=True))


def test_a_loss_that_is_not_finite_ends_the_run(bundle: Path, tmp_path: Path):
    done = train(bundle, tmp_path / "run", fault="nan")
    assert "exitcode  : 3" in done.stderr
    assert "step 12 of 20: loss nan" in done.stderr
    assert latest(tmp_path / "run") == "step-00000010"
    assert ended(tmp_path / "run") == (3, 12)


def test_an_alarm_stops_the_run_with_its_state_saved_whatever_restarts_it(tmp_path: Path):
    """A run that torchrun restarted trained on, up to alarms at steps 6 and 9."""
    bundle = write_bundle(
        tmp_path,
        watch={"every": 3, "max_regression": 0.0, "stop": True},
        model={"path": str(tmp_path / "model"), "max_lr": 50.0},
    )
    done = train(bundle, tmp_path / "run", restarts=2)
    assert "exitcode  : 3" in done.stderr
    assert done.stderr.count("held-out general") == 3
    assert done.stdout.count("scoring the model at step 0") == 1
    assert latest(tmp_path / "run") == "step-00000003"
    assert ended(tmp_path / "run") == (3, 3)


def test_another_bundle_in_the_same_folder_is_refused(
    killed: Path, undisturbed: Path, tmp_path: Path
):
    other = write_bundle(tmp_path, name="other")
    for number, reference in enumerate((killed, undisturbed)):
        out = Path(shutil.copytree(reference, tmp_path / str(number)))
        done = train(other, out, processes=1)
        assert "exitcode  : 2" in done.stderr
        assert "name another --out" in done.stderr


def test_a_number_of_ranks_that_does_not_divide_the_batch(bundle: Path, tmp_path: Path):
    done = train(bundle, tmp_path / "run", processes=3)
    assert "exitcode  : 2" in done.stderr
    assert "a number of processes that divides 8 micro batches of a step" in done.stderr
    assert not (tmp_path / "run" / "base.json").exists()
