"""Exported files, started: on processes of this machine, stopped, started again, finished."""

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


def written(folder: Path, *names: str, **changes: object) -> Path:
    bundle = write_bundle(folder, **changes)
    write_export(
        load_bundle(bundle), names, Site(python=sys.executable), None, folder / "out", (), False
    )
    return folder / "out"


def started(out: Path, script: str = "run.sh") -> subprocess.Popen[str]:
    command = (
        ["bash", str(out / script)]
        if script.endswith("sh")
        else [sys.executable, str(out / script)]
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(
        command, env=os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}, **pipes
    )


def finished(out: Path, script: str = "run.sh") -> str:
    process = started(out, script)
    text, _ = process.communicate(timeout=600)
    assert process.returncode == 0, text[-4000:]
    return text


def stopped_after(process: subprocess.Popen[str], pattern: str) -> str:
    """Send TERM to torchrun once it has printed a pattern; what it printed."""
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, text):
            process.send_signal(signal.SIGTERM)
            break
    rest, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    return text + rest


def test_run_sh_starts_sweepcp_train(tmp_path):
    out = written(tmp_path, "torchrun")
    finished(out)
    assert (out / "run" / "scorecard.json").is_file()


@pytest.mark.parametrize(
    ("trainer", "last"), [("deepspeed", "scorecard.json"), ("hf-trainer", "model/config.json")]
)
def test_ray_train_starts_trainers_with_process_groups_of_their_own(tmp_path, trainer, last):
    out = written(tmp_path, trainer, "ray")
    finished(out, "ray_train.py")
    assert (out / "run" / last).is_file()


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"'loss': '?([0-9.]+)", text)]


def test_the_hf_trainer_takes_the_same_steps_and_goes_on_after_term(tmp_path):
    """The first loss is that of `sweepcp train`, the last close to it: the LR is a step late. Then TERM on the way."""
    ours = written(tmp_path, "torchrun")
    finished(ours)
    wanted = [row["loss"] for row in metrics(ours / "run")]
    out = tmp_path / "hf"
    write_export(
        load_bundle(tmp_path / "bundle"),
        ["hf-trainer"],
        Site(python=sys.executable),
        None,
        out,
        (),
        False,
    )
    found = losses(finished(out))
    assert len(found) == 20
    assert found[0] == pytest.approx(wanted[0], abs=5e-4)  # it prints four digits
    assert found[-1] == pytest.approx(wanted[-1], abs=5e-2)
    assert (out / "run" / "model" / "model.safetensors").is_file()

    again = tmp_path / "again"
    write_export(
        load_bundle(tmp_path / "bundle"),
        ["hf-trainer"],
        Site(python=sys.executable),
        None,
        again,
        (),
        False,
    )
    before = losses(stopped_after(started(again), "'loss'"))
    assert not (again / "run" / "model").exists()
    saved = [
        json.loads(path.read_text())["global_step"]
        for path in again.glob("run/*/trainer_state.json")
    ]
    time.sleep(1)
    after = losses(finished(again))
    assert len(after) == 20 - max(saved)
    assert len(before) >= max(saved) > 0
    assert after == pytest.approx(found[max(saved) :], abs=2e-3)


def test_a_killed_rank_is_started_again_by_itself_and_goes_on(tmp_path):
    out = written(tmp_path, "torchrun", tokens=200 * 512, checkpoints={"every": 20})
    process = started(out)
    for line in process.stdout:
        if "checkpoint at step 20" in line:
            found = subprocess.run(
                ["pgrep", "-f", f"sweepcp train {tmp_path}"], capture_output=True, text=True
            )
            ranks = [
                pid
                for pid in found.stdout.split()
                if "RANK=1" in Path(f"/proc/{pid}/environ").read_text()
            ]
            os.kill(int(ranks[0]), signal.SIGKILL)
            break
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest[-4000:]
    assert re.search(r"going on after step \d+ of 200", rest)
    assert [row["step"] for row in metrics(out / "run")] == list(range(1, 201))
