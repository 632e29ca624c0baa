"""The same full run, started by each launcher.

Takes minutes, so it is not part of `pytest`: run `pytest tests/launchers`.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.integration.conftest import torchrun
from tests.make import write_bundle

PYTHON = Path(sys.executable)
ENV = os.environ | {
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "PATH": f"{PYTHON.parent}:{os.environ['PATH']}",
}
TRAIN = ["-m", "sweepcp", "train"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_bundle(tmp_path_factory.mktemp("launchers"))
    process = torchrun(2, *TRAIN, folder)
    assert process.returncode == 0, process.stderr
    return folder


def free_port() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return str(unused.getsockname()[1])


def assert_same_run(out: Path, bundle: Path, tolerance: float = 0) -> None:
    """Compare weights and number of steps with the run that torchrun started."""
    weights = load_file(out / "model" / "model.safetensors")
    reference = load_file(bundle / "run" / "model" / "model.safetensors")
    assert weights.keys() == reference.keys()
    for name, tensor in reference.items():
        assert float((weights[name] - tensor).abs().max()) <= tolerance, name
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 20


def run(*command: object, env: dict[str, str] = ENV) -> str:
    words = [str(word) for word in command]
    process = subprocess.run(
        words, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def test_one_process_without_a_launcher(bundle: Path, tmp_path: Path):
    run(PYTHON, *TRAIN, bundle, "--out", tmp_path)
    # One process sums the gradients in another order than two.
    assert_same_run(tmp_path, bundle, tolerance=1e-4)


def run_together(*nodes: tuple[list[str], dict[str, str]]) -> None:
    """Run commands at the same time, each with its own variables in addition to `ENV`."""
    processes = [subprocess.Popen(command, env=ENV | variables) for command, variables in nodes]
    assert [process.wait(300) for process in processes] == [0] * len(nodes)


def deepspeed_command(bundle: Path, out: Path, *options: str) -> list[str]:
    launcher = [str(PYTHON.parent / "deepspeed"), *options]
    train = ["--no_local_rank", "--module", "sweepcp", "train", str(bundle), "--out", str(out)]
    return [*launcher, *train]


def test_deepspeed_on_one_node(bundle: Path, tmp_path: Path):
    options = ("--num_gpus", "2", "--master_port", free_port())
    run(*deepspeed_command(bundle, tmp_path, *options))
    assert_same_run(tmp_path, bundle)


def test_deepspeed_with_a_hostfile(bundle: Path, tmp_path: Path):
    """Two nodes of one process each, started on both without ssh."""
    (tmp_path / "hostfile").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    options = ["--hostfile", str(tmp_path / "hostfile"), "--no_ssh"]
    options += ["--master_addr", "127.0.0.1", "--master_port", free_port()]
    out = tmp_path / "run"
    commands = [
        deepspeed_command(bundle, out, *options, "--node_rank", rank) for rank in ("0", "1")
    ]
    run_together(*((command, {}) for command in commands))
    assert_same_run(out, bundle)


def test_the_variables_of_srun(bundle: Path, tmp_path: Path):
    """Two tasks with srun's variables, and the address that a batch script exports."""
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "MASTER_ADDR": "127.0.0.1",
    }
    common |= {"MASTER_PORT": free_port(), "SLURM_LOCALID": "0"}
    command = [str(PYTHON), *TRAIN, str(bundle), "--out", str(tmp_path)]
    run_together(*((command, common | {"SLURM_PROCID": rank}) for rank in ("0", "1")))
    assert_same_run(tmp_path, bundle)


def alarming_bundle(folder: Path) -> Path:
    """A bundle whose run is stopped by an alarm after step 3."""
    return write_bundle(
        folder,
        watch={"every": 3, "max_regression": 0.0, "stop": True},
        model={"path": str(folder / "model"), "max_lr": 50.0},
    )


def ending_of(out: Path) -> tuple[int, int]:
    """Exit status and step of the last start."""
    content = json.loads((out / "ended.json").read_text())
    return content["status"], content["step"]


def test_ray_train_ends_with_3_after_an_alarm_and_again(tmp_path: Path):
    command = [str(PYTHON), *TRAIN, str(alarming_bundle(tmp_path)), "--ray"]
    for _ in range(2):
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
        assert done.returncode == 3, done.stdout + done.stderr
        assert "Error: the run ended: step 3: held-out general" in done.stderr
        assert ending_of(tmp_path / "bundle" / "run") == (3, 3)


def test_ray_train_ends_with_2_on_invalid_input(tmp_path: Path):
    folder = write_bundle(tmp_path)
    out = folder / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "latest").write_text("step-00000005\n")
    command = [str(PYTHON), *TRAIN, str(folder), "--ray"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no checkpoints where a run begins" in done.stderr


def test_ray_train_saves_on_a_signal_and_resumes(tmp_path: Path):
    folder = write_bundle(tmp_path, tokens=300 * 512, checkpoints={"every": 1000})
    out = folder / "run"
    command = [str(PYTHON), *TRAIN, str(folder), "--ray"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=ENV, stdout=log, stderr=log)
        deadline = time.monotonic() + 200
        while steps_in(out) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(200) == 143, (tmp_path / "log").read_text()
    status, step = ending_of(out)
    assert (status, step) == (143, steps_in(out))
    assert 3 <= step < 300
    assert not list(out.glob("stop-*"))
    run(*command)
    assert ending_of(out) == (0, 300)
    assert steps_in(out) == 300


def steps_in(out: Path) -> int:
    path = out / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_ray_train(bundle: Path, tmp_path: Path):
    printed = run(PYTHON, *TRAIN, bundle, "--out", tmp_path, "--ray")
    assert_same_run(tmp_path, bundle)
    # What the first worker prints, Ray's log monitor sends to this process.
    assert "step 1/" in printed
    assert json.loads((tmp_path / "scorecard.json").read_text())
