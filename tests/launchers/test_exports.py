"""Exported files, started on processes of this machine, stopped, restarted and finished.

Takes minutes, so it is not part of `pytest`: run `pytest tests/launchers`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweepcp.config.site import Site
from sweepcp.export.write import write_export
from sweepcp.promote.bundle import load_bundle
from tests.integration.conftest import metrics
from tests.make import write_bundle

STEPS = 20
"""Steps of the bundle that `write_bundle` writes by default."""


def export(bundle: Path, out: Path, *names: str) -> Path:
    """Export a bundle into a new folder, which is returned."""
    write_export(load_bundle(bundle), names, out, site=Site(python=sys.executable))
    return out


def start(out: Path, script: str = "run.sh") -> subprocess.Popen[str]:
    """Start an exported script in the background."""
    program = "bash" if script.endswith("sh") else sys.executable
    env = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [program, str(out / script)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_to_end(out: Path, script: str = "run.sh") -> str:
    """Run an exported script, which must succeed, and return its output."""
    process = start(out, script)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


def stop_after(process: subprocess.Popen[str], pattern: str) -> str:
    """Send SIGTERM to torchrun once its output matches, and return the whole output."""
    output = ""
    assert process.stdout is not None
    for line in process.stdout:
        output += line
        if re.search(pattern, output):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    return output + rest


def printed_losses(output: str) -> list[float]:
    """Return the losses that transformers' Trainer prints, one per step."""
    return [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", output)]


def test_run_sh_starts_sweepcp_train(tmp_path):
    out = export(write_bundle(tmp_path), tmp_path / "out", "torchrun")
    run_to_end(out)
    assert (out / "run" / "scorecard.json").is_file()


@pytest.mark.parametrize(
    ("trainer", "last_file"),
    [("deepspeed", "scorecard.json"), ("hf-trainer", "model/config.json")],
)
def test_ray_train_starts_trainers_that_join_their_own_process_groups(tmp_path, trainer, last_file):
    out = export(write_bundle(tmp_path), tmp_path / "out", trainer, "ray")
    run_to_end(out, "ray_train.py")
    assert (out / "run" / last_file).is_file()


@pytest.mark.parametrize(
    ("launcher", "script", "status"), [("torchrun", "run.sh", 1), ("ray", "ray_train.py", 3)]
)
def test_an_alarm_stops_the_run_whatever_restarts_it(tmp_path, launcher, script, status):
    """torchrun restarts the processes three times, and then exits with 1 itself."""
    bundle = write_bundle(
        tmp_path,
        watch={"every": 3, "max_regression": 0.0, "stop": True},
        model={"path": str(tmp_path / "model"), "max_lr": 50.0},
    )
    out = export(bundle, tmp_path / "out", launcher)
    process = start(out, script)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output[-4000:]
    ending = json.loads((out / "run" / "ended.json").read_text())
    assert (ending["status"], ending["step"]) == (3, 3)
    assert [row["step"] for row in metrics(out / "run")] == [1, 2, 3]


@pytest.fixture(scope="module")
def hf_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[float]]:
    """Run the export for transformers' Trainer; returns bundle, output folder and losses."""
    folder = tmp_path_factory.mktemp("hf")
    bundle = write_bundle(folder)
    out = export(bundle, folder / "out", "hf-trainer")
    return bundle, out, printed_losses(run_to_end(out))


def test_the_hf_trainer_takes_the_steps_of_sweepcp_train(hf_run, tmp_path):
    """The first loss is the same, the last one is close: the LR is one step late."""
    bundle, out, losses = hf_run
    ours = export(bundle, tmp_path / "out", "torchrun")
    run_to_end(ours)
    expected = [row["loss"] for row in metrics(ours / "run")]
    assert len(losses) == STEPS
    # The Trainer prints four digits.
    assert losses[0] == pytest.approx(expected[0], abs=5e-4)
    assert losses[-1] == pytest.approx(expected[-1], abs=5e-2)
    assert (out / "run" / "model" / "model.safetensors").is_file()


def test_the_hf_trainer_resumes_after_sigterm(hf_run, tmp_path):
    bundle, _, uninterrupted = hf_run
    out = export(bundle, tmp_path / "out", "hf-trainer")
    before = printed_losses(stop_after(start(out), "'loss'"))
    assert not (out / "run" / "model").exists()
    states = [json.loads(path.read_text()) for path in out.glob("run/*/trainer_state.json")]
    saved_step = max(state["global_step"] for state in states)
    time.sleep(1)
    after = printed_losses(run_to_end(out))
    assert len(before) >= saved_step > 0
    assert len(after) == STEPS - saved_step
    assert after == pytest.approx(uninterrupted[saved_step:], abs=2e-3)


def test_torchrun_restarts_a_killed_rank_which_resumes(tmp_path):
    bundle = write_bundle(tmp_path, tokens=200 * 512, checkpoints={"every": 20})
    out = export(bundle, tmp_path / "out", "torchrun")
    process = start(out)
    assert process.stdout is not None
    for line in process.stdout:
        if "saved the checkpoint at step 20" in line:
            os.kill(process_of_rank(1, tmp_path), signal.SIGKILL)
            break
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest[-4000:]
    assert re.search(r"resuming after step \d+ of 200", rest)
    assert [row["step"] for row in metrics(out / "run")] == list(range(1, 201))


def process_of_rank(rank: int, folder: Path) -> int:
    """Return the process id of a rank of `sweepcp train` on a bundle in a folder."""
    command = ["pgrep", "-f", f"sweepcp train {folder}"]
    listed = subprocess.run(command, capture_output=True, text=True)
    for pid in listed.stdout.split():
        if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text():
            return int(pid)
    raise AssertionError(f"no process of rank {rank}: {listed.stdout}")
