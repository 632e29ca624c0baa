"""Processes that are forked with modules imported, in place of new ones."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sweepcp.search.worker_python import WORKER_MODULES, worker_python
from sweepcp.util.fork_server import fork_server
from tests.make import experiment

SCRIPT = """
import gc, json, os, resource, signal, sys
print(json.dumps({
    "arguments": sys.argv,
    "folder": os.getcwd(),
    "variables": [os.environ.get("OF_CLIENT"), os.environ.get("OF_SERVER")],
    "imported": "colorsys" in sys.modules,
    "group": os.getpgid(0) == os.getpid(),
    "name": __name__,
    "collects": [gc.isenabled(), gc.get_freeze_count() > 1000],
    "children": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "limits": [
        resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        open("/proc/self/oom_score_adj").read(),
    ],
}))
print("to standard error", file=sys.stderr)
"""

LIMITS = "ulimit -S -n 99; echo 1000 > /proc/self/oom_score_adj"


def run(python: str, folder: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """Run the script with a command for `python`."""
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        ["bash", "-c", f"{LIMITS}; exec {python} {shlex.join(['script.py', *arguments])}"],
        capture_output=True,
        check=True,
        cwd=folder,
        env=os.environ | {"OF_CLIENT": "client"},
        text=True,
        timeout=60,
    )
    return json.loads(done.stdout), done.stderr


def test_a_fork_runs_what_its_client_was_asked_to_run(tmp_path: Path):
    with fork_server(["colorsys"], tmp_path, {"OF_SERVER": "server"}) as python:
        found, errors = run(python, tmp_path, "--a", "b c")
        again, _ = run(python, tmp_path)
    assert found == {
        "arguments": ["script.py", "--a", "b c"],
        "folder": str(tmp_path),
        "variables": ["client", None],
        "imported": True,
        "group": True,
        "name": "__main__",
        "collects": [True, True],
        "children": True,
        "limits": [99, "1000\n"],
    }
    assert errors == "to standard error\n"
    assert again["arguments"] == ["script.py"]


@pytest.mark.parametrize("modules", [["colorsys", "no_such_module"], None])
def test_without_a_server_the_client_runs_python_itself(modules: list[str] | None, tmp_path: Path):
    with fork_server(modules or [], tmp_path, {}) as python:
        if modules is None:
            (tmp_path / "fork").unlink()
        found, _ = run(python, tmp_path, "--a")
    assert (found["arguments"], found["imported"]) == (["script.py", "--a"], False)


def test_the_server_collects_no_garbage_while_it_imports(tmp_path: Path):
    (tmp_path / "imported.py").write_text("import gc\ncollects = gc.isenabled()\n")
    (tmp_path / "script.py").write_text("import imported\nprint(imported.collects)\n")
    with fork_server(["imported"], tmp_path, {"PYTHONPATH": str(tmp_path)}) as python:
        done = subprocess.run(
            [*shlex.split(python), "script.py"], capture_output=True, cwd=tmp_path, timeout=60
        )
    assert done.stdout == b"False\n"


def test_the_client_ends_with_its_fork(tmp_path: Path):
    (tmp_path / "script.py").write_text(
        "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    with fork_server([], tmp_path, {}) as python:
        client = subprocess.Popen(
            [*shlex.split(python), tmp_path / "script.py"], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout is not None
        fork = int(client.stdout.readline())
        assert client.poll() is None
        assert fork != client.pid
        os.kill(fork, signal.SIGKILL)
        client.wait(timeout=10)
        client.stdout.close()


def test_the_server_ends_with_its_parent(tmp_path: Path):
    (tmp_path / "slow_to_import.py").write_text(
        "import time\nopen(__file__ + '.began', 'w').close()\ntime.sleep(60)\n"
    )
    code = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "from sweepcp.util.fork_server import fork_server\n"
        "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "with fork_server(['slow_to_import'], Path(sys.argv[1]), {}):\n"
        "    children = Path(f'/proc/self/task/{os.getpid()}/children').read_text()\n"
        "    while not Path(sys.argv[1], 'slow_to_import.py.began').exists(): time.sleep(0.01)\n"
        "    print(children.strip(), flush=True); time.sleep(60)\n"
    )
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert parent.stdout is not None
    server = Path("/proc") / parent.stdout.readline().strip()
    assert (server / "cmdline").read_bytes()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(server) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(server)


def is_running(process: Path) -> bool:
    """Whether a process has not ended; one that has may be a zombie of a container's first."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in (process / "status").read_text()
    return False


def test_workers_of_a_cluster_and_of_gpus_start_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "ray"))
    budget = experiment().budget
    with worker_python(budget, "10.0.0.1:6379") as python:
        assert python is None
    monkeypatch.setattr("sweepcp.search.worker_python.visible_gpus", lambda: ("a GPU",))
    with worker_python(budget, None) as python:
        assert python is None
    assert not (tmp_path / "ray").exists()


def test_workers_of_this_machine_are_forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sweepcp.search.worker_python.WORKER_MODULES", ("colorsys",))
    monkeypatch.setattr("sweepcp.search.worker_python.prepare_local_ray", lambda: None)
    # The path of a socket has at most 107 characters.
    with tempfile.TemporaryDirectory() as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        with worker_python(experiment().budget, None) as python:
            assert python is not None
            assert run(python, tmp_path)[0]["imported"]
        assert not list(Path(short).iterdir())


@pytest.mark.slow  # imports torch and transformers
def test_what_workers_import_neither_imports_ray_nor_opens_devices():
    code = (
        f"import importlib, sys\nfor name in {WORKER_MODULES!r}: importlib.import_module(name)\n"
        "import torch\nprint('ray' in sys.modules, torch.cuda.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
