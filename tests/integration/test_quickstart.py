"""The shipped quickstart, and searches that are stopped, killed and spread over nodes."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweepcp import load_run
from sweepcp.runs.run_folder import Run
from tests.integration.conftest import SHORT, set_options, sweepcp, wait_for_trials

pytestmark = pytest.mark.slow
OPTIONS = set_options(SHORT)


def test_the_front_shows_the_trade_off(quickstart: Run):
    assert len(quickstart.trials) == 16
    result = quickstart.front
    assert len(result.ids) >= 3
    first, last = quickstart.by_id[result.ids[0]], quickstart.by_id[result.ids[-1]]
    assert (last.domain or 0) >= 10
    assert (first.general or -9) >= -1.5
    assert result.choice.id is not None
    assert quickstart.trials[0].point == {"lr_fraction": 0.1, "general_share": 0.5}
    assert 4 < (quickstart.trials[0].domain or 0) < 14
    assert -4 < (quickstart.trials[0].general or 0) < -0.5


def test_the_same_seed_elsewhere_gives_the_same_trials_to_the_last_bit(short_runs: list[Path]):
    found = []
    for out in short_runs:
        trials = load_run(out).trials
        scores = [(trial.point, trial.recipe_id, trial.scorecard) for trial in trials]
        items = [(out / "trials" / trial.id / "items.json").read_text() for trial in trials]
        found.append((scores, items))
    assert found[0] == found[1]
    assert len(found[0][0]) == 6


def test_a_run_that_is_killed_twice_is_completed(quickstart: Run, tmp_path: Path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sweepcp", "search", "--out", str(out)]
    command += ["--trials", "5", *OPTIONS]
    kept: dict[Path, int] = {}
    for enough in (1, 3):
        driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_trials(out, enough)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        now = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/trial.json")}
        assert len(now) >= enough
        assert all(now[path] == stamp for path, stamp in kept.items())
        kept = now
        deadline = time.monotonic() + 15
        while leftovers(driver.pid) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert not leftovers(driver.pid)
    done = sweepcp("search", "--out", out, "--trials", 5, *OPTIONS)
    assert done.returncode == 0, done.stderr
    run = load_run(out)
    assert [trial.number for trial in run.trials] == list(range(5))
    assert {trial.status for trial in run.trials} == {"done"}
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())


def leftovers(driver: int) -> list[str]:
    """Workers and raylets of the Ray of a driver, whose id is in the name of its session folder."""
    command = ["ps", "-eo", "pid,args"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    raylets = [line for line in listed if f"_{driver}/" in line and "raylet" in line]
    raylets = [line for line in raylets if "agent" not in line]
    # Two agents of Ray's own stay for a minute.
    return raylets + [line for line in listed if "ray::" in line and "Agent" not in line]


def test_two_nodes_by_address(quickstart: Run, tmp_path: Path):
    code = f"""
import subprocess, sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, include_dashboard=False)
cluster.add_node(num_cpus=1)
command = [sys.executable, "-m", "sweepcp", "search", "--out", {str(tmp_path / "run")!r}]
command += ["--trials", "4", *{OPTIONS!r}, "--address", cluster.address]
done = subprocess.run(command)
cluster.shutdown()
sys.exit(done.returncode)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [trial.status for trial in load_run(tmp_path / "run").trials] == ["done"] * 4
