"""The same full run, started by each launcher. Long, so not part of `pytest`: run `pytest tests/launchers`."""

import json
import os
import socket
import subprocess
import sys
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
    done = torchrun(2, *TRAIN, folder)
    assert done.returncode == 0, done.stderr
    return folder


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def same(out: Path, bundle: Path, exact: bool = True) -> None:
    """Weights and steps are those of the run that torchrun started."""
    mine, reference = (
        load_file(folder / "model" / "model.safetensors") for folder in (out, bundle / "run")
    )
    assert max(float((mine[n] - reference[n]).abs().max()) for n in reference) <= (
        0 if exact else 1e-4
    )
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 20


def run(*command: object, env: dict[str, str] = ENV) -> None:
    done = subprocess.run(
        [str(c) for c in command], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_process_by_hand(bundle: Path, tmp_path: Path):
    run(PYTHON, *TRAIN, bundle, "--out", tmp_path)
    same(tmp_path, bundle, exact=False)


def together(*nodes: tuple[list[str], dict[str, str]]) -> None:
    """Commands that wait for each other, each with variables of its own."""
    started = [subprocess.Popen(command, env=ENV | own) for command, own in nodes]
    assert [node.wait(300) for node in started] == [0] * len(nodes)


def deepspeed(bundle: Path, out: Path, *where: str) -> list[str]:
    launcher = [str(PYTHON.parent / "deepspeed"), *where, "--no_local_rank", "--module", "sweepcp"]
    return [*launcher, "train", str(bundle), "--out", str(out)]


def test_deepspeed_on_one_node(bundle: Path, tmp_path: Path):
    run(*deepspeed(bundle, tmp_path, "--num_gpus", "2", "--master_port", free_port()))
    same(tmp_path, bundle)


def test_deepspeed_with_a_hostfile(bundle: Path, tmp_path: Path):
    """Two nodes of one process each, started on each without ssh."""
    (tmp_path / "hostfile").write_text("127.0.0.1 slots=1\nlocalhost slots=1\n")
    where = ["--hostfile", str(tmp_path / "hostfile"), "--no_ssh", "--master_addr", "127.0.0.1"]
    where += ["--master_port", free_port()]
    out = tmp_path / "run"
    together(*((deepspeed(bundle, out, *where, "--node_rank", rank), {}) for rank in ("0", "1")))
    same(out, bundle)


def test_what_srun_sets(bundle: Path, tmp_path: Path):
    """Two tasks with the variables that srun gives them, and the address that a batch script exports."""
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "n[1-2]",
        "MASTER_ADDR": "127.0.0.1",
    }
    common |= {"MASTER_PORT": free_port(), "SLURM_LOCALID": "0"}
    command = [str(PYTHON), *TRAIN, str(bundle), "--out", str(tmp_path)]
    together(*((command, common | {"SLURM_PROCID": rank}) for rank in ("0", "1")))
    same(tmp_path, bundle)


def test_ray_train(bundle: Path, tmp_path: Path):
    run(PYTHON, *TRAIN, bundle, "--out", tmp_path, "--ray")
    same(tmp_path, bundle)
    assert json.loads((tmp_path / "scorecard.json").read_text())
