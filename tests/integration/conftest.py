"""What the integration tests share: the command line, a short run, and one of the quickstart."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from sweepcp import load_run
from sweepcp.runs.run_folder import Run
from sweepcp.util.files import shipped_folder

SHORT = ["budget.tokens=10_240", "suites.domain.1.items=40", "suites.domain.2.items=40"]
SHORT += ["suites.general.1.items=40", "suites.general.2.items=40"]
"""Overrides for trials of 10 steps and suites of a few items: a trial takes a second or two."""
SMALL = [*SHORT, "budget.trials=6", "base.pretrain.tokens=204_800"]
"""Overrides for a whole search of less than a minute: the base is pretrained for 100 steps."""


def set_options(overrides: list[str]) -> list[str]:
    """Overrides as options of the command line."""
    options = []
    for override in overrides:
        options += ["--set", override]
    return options


def sweepcp(*args: object, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweepcp", *map(str, args)]
    env = os.environ | {"COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def side_by_side(*commands: list[object]) -> list[subprocess.CompletedProcess[str]]:
    """Commands of sweepcp that run at the same time."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda args: sweepcp(*args), commands))


def torchrun(
    processes: int, *args: object, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Processes of a full run; `args` are a script and its arguments, or `-m sweepcp train ...`."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", str(processes), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)


def wait_for_trials(out: Path, count: int) -> None:
    """Wait until a run folder has so many finished trials, at most three minutes."""
    deadline = time.monotonic() + 180
    while len(list(out.glob("trials/*/trial.json"))) < count and time.monotonic() < deadline:
        time.sleep(0.1)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The steps of a trial or a full run."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the quickstart with few steps and items, by the command line."""
    out = tmp_path_factory.mktemp("runs") / "small"
    done = sweepcp("search", "--out", out, *set_options(SMALL))
    assert done.returncode == 0, done.stderr
    assert "Choice (most domain gain, general regression ≤ 2 %)" in done.stdout
    assert "sweepcp front" in done.stdout
    return load_run(out)


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What `sweepcp search` makes on this machine. For slow tests."""
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    done = sweepcp("search", "--out", out)
    assert done.returncode == 0, done.stderr
    return load_run(out)


@pytest.fixture(scope="session")
def short_runs(quickstart: Run, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of six short trials: of the quickstart, and of a copy of its file elsewhere."""
    folder = tmp_path_factory.mktemp("short")
    copy = yaml.safe_load((shipped_folder("experiments") / "quickstart.yaml").read_text())
    elsewhere = folder / "elsewhere" / "mine.yaml"
    elsewhere.parent.mkdir()
    elsewhere.write_text(yaml.safe_dump(copy | {"name": "mine"}).replace("'3e-3'", "3e-3"))
    outs = [folder / "one", folder / "two"]
    options = ["--trials", 6, *set_options([*SHORT, "budget.concurrency=1"])]
    finished = side_by_side(
        ["search", "quickstart", "--out", outs[0], *options],
        ["search", elsewhere, "--out", outs[1], *options],
    )
    for done in finished:
        assert done.returncode == 0, done.stderr
    return outs
