"""What the integration tests share: the command line, and a real run of the quickstart."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweepcp import load_run
from sweepcp.runs.run_folder import Run
from sweepcp.util.files import shipped_folder
from tests.integration.analytic import Silent

SHORT = ["--set", "budget.tokens=10_240"]
for suite in ("domain", "general"):
    SHORT += ["--set", f"suites.{suite}.1.items=40", "--set", f"suites.{suite}.2.items=40"]
"""A trial of a few seconds."""


class Nobody(Silent):
    """A view that shows nothing."""

    def note(self, text: str) -> None: ...

    def stage(self, name: str, done: int, of: int, text: str) -> None: ...

    def trials(self, finished: int, of: int) -> None: ...


def sweepcp(*args: object, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweepcp", *map(str, args)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"COLUMNS": "120"},
    )


def together(*commands: list[object]) -> list[subprocess.CompletedProcess[str]]:
    """Commands of sweepcp that run side by side."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda args: sweepcp(*args), commands))


def torchrun(
    processes: int, *args: object, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Processes of a full run; `args` are a script and its arguments, or `-m sweepcp train ...`."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        *map(str, args),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The steps of a trial or a full run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What `sweepcp search` makes on this machine."""
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    done = sweepcp("search", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "Choice (most domain gain, general regression ≤ 2 %)" in done.stdout
    assert "sweepcp front" in done.stdout
    return load_run(out)


@pytest.fixture(scope="session")
def short_runs(quickstart: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of six short trials of the quickstart, by its name and by a copy of its file elsewhere."""
    folder = tmp_path_factory.mktemp("short")
    copy = yaml.safe_load((shipped_folder("experiments") / "quickstart.yaml").read_text()) | {
        "name": "mine"
    }
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "mine.yaml").write_text(yaml.safe_dump(copy).replace("'3e-3'", "3e-3"))
    names, outs = (
        ("quickstart", folder / "elsewhere" / "mine.yaml"),
        [folder / "one", folder / "two"],
    )
    sets = ["--trials", 6, *SHORT, "--set", "budget.concurrency=1"]
    ended = together(
        *(["search", name, "--out", out, *sets] for name, out in zip(names, outs, strict=True))
    )
    for done in ended:
        assert done.returncode == 0, done.stderr
    return outs
