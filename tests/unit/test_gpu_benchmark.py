"""`benchmarks/gpu`: its parts exist, none stops another, and goals compare what was measured."""

import inspect
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "gpu"
LOOPING = """
import pathlib, subprocess, sys, time
child = subprocess.Popen(["bash", "-c", "trap '' TERM; sleep 60"])
pathlib.Path(sys.argv[-1], "child").write_text(str(child.pid))
print("about to wait", flush=True)
time.sleep(60)
"""


def benchmark(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *arguments]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("TINY", "1")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("gpu_parts.runner")


def test_every_part_is_a_function_that_takes_its_arguments(runner: ModuleType, tmp_path: Path):
    for part in runner.BY_NAME.values():
        module, name = part.function.split(".")
        function = getattr(import_module(f"gpu_parts.{module}"), name)
        inspect.signature(function).bind(tmp_path, **part.arguments)
        assert function.__doc__
        assert part.rehearsed_by is None or runner.BY_NAME[part.rehearsed_by].rehearsed_by is None


def test_the_parts_take_about_eight_minutes_and_are_listed(runner: ModuleType):
    listed = benchmark("--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == [part.name for part in runner.PARTS]
    assert len(runner.BY_NAME) == len(runner.PARTS) + 1


def test_an_unknown_part_is_refused_before_anything_is_run(tmp_path: Path):
    done = benchmark("packed", "pakced", "--out", str(tmp_path / "out.json"))
    assert done.returncode == 2
    assert "no such part: pakced" in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_part_that_takes_too_long_is_stopped_with_its_processes(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = tmp_path / "part.py"
    script.write_text(LOOPING)
    monkeypatch.setattr(runner, "PROGRAM", script)
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.3)
    result = runner.run_apart(runner.PARTS[0], tmp_path, tmp_path / "log", limit=2.0)
    assert (result.status, result.text) == ("timed out", "not done in 2 s; about to wait")
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 20
    while is_alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(child)


def test_a_part_that_dies_is_failed_with_its_last_lines(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = tmp_path / "part.py"
    script.write_text("import sys; print('one'); sys.exit('no driver')")
    monkeypatch.setattr(runner, "PROGRAM", script)
    result = runner.run_apart(runner.PARTS[0], tmp_path, tmp_path / "log", limit=20.0)
    assert (result.status, result.line) == ("failed", "FAILED, status 1; one | no driver")


def test_one_failure_fails_the_benchmark_and_the_rest_is_run(
    runner: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    statuses = {"machine": "failed", "plain": "done", "goals": "done"}

    def run_apart(part, work, log, *, limit):
        return runner.Result(statuses[part.name], "text", {"limit": limit}, 1.0)

    monkeypatch.setattr(runner, "run_apart", run_apart)
    chosen = [runner.BY_NAME[name] for name in ("machine", "plain", "135m")]
    out = tmp_path / "out.json"
    assert not runner.run_parts(chosen, tmp_path, tmp_path, out)
    parts = json.loads(out.read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "machine": "failed",
        "plain": "done",
        "135m": "skipped",
        "goals": "done",
    }
    statuses["machine"] = "done"
    assert runner.run_parts(chosen, tmp_path, tmp_path, out)
    monkeypatch.setattr(runner, "TOTAL", 4.0)
    assert runner.run_parts(chosen, tmp_path, tmp_path, out)
    said = capsys.readouterr().out
    assert "RESULT plain: skipped: the 4 s are used up; name the part to run it" in said
    assert said.count("RESULT machine: FAILED, text") == 1


def test_goals_are_ratios_of_what_was_measured(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    goals = import_module("gpu_parts.goals")
    monkeypatch.setattr(goals, "TINY", False)
    measured = {
        "plain": {"tokens_per_second": 100.0},
        "unpacked": {"tokens_per_second": 96.0, "memory_ratio": 1.14},
        "packed": {"tokens_per_second": 84.0, "memory_ratio": 0.84},
        "agreement": {"fp32": {"scores": {"a": 2e-5, "b": 9e-5}}},
    }
    for name, numbers in measured.items():
        runner.write_result(tmp_path, name, runner.Result("done", "", numbers))
    found = goals.goals(tmp_path)
    verdicts = {name: goal["met"] for name, goal in found.numbers.items()}
    assert verdicts == {
        "eager, without packing": True,
        "packed and isolated": False,
        "memory of packed": False,
        "memory of unpacked": True,
        "scores in fp32": True,
    }
    assert found.numbers["packed and isolated"]["value"] == pytest.approx(0.84)
    assert "not measured: compiled, four at 0.25, 0.1 M, four at 0.25, 15 M" in found.text


@pytest.mark.slow
def test_the_rehearsal_measures_steps_and_halves_a_micro_batch(tmp_path: Path):
    names = ("isolation", "agreement", "plain", "packed", "varlen", "zero", "out-of-memory")
    out = tmp_path / "out.json"
    done = benchmark(*names, "--out", str(out), TINY="1", LOGS=str(tmp_path))
    assert done.returncode == 0, done.stdout
    parts = json.loads(out.read_text())["parts"]
    assert {parts[name]["status"] for name in names} == {"done"}
    numbers = {name: part["numbers"] for name, part in parts.items()}
    assert numbers["isolation"]["sdpa fp32"]["nats"] < 1e-5
    assert numbers["isolation"]["varlen bf16"]["same_gradients"]
    assert numbers["agreement"]["fp32"]["bits"] == 0.0
    assert numbers["packed"]["loss"] == pytest.approx(numbers["varlen"]["loss"], abs=0.01)
    assert numbers["out-of-memory"]["first"] == [8, 2]
    assert numbers["out-of-memory"]["second"] == [2, 2]
    assert numbers["goals"]["packed and isolated"]["value"] > 0


@pytest.mark.slow
def test_without_a_gpu_the_benchmark_fails_and_says_why(tmp_path: Path):
    out = tmp_path / "out.json"
    hidden = {"CUDA_VISIBLE_DEVICES": "", "TINY": "0", "LOGS": str(tmp_path)}
    done = benchmark("machine", "promote", "--out", str(out), **hidden)
    assert done.returncode == 1
    assert "RESULT machine: FAILED, InvalidInput" in done.stdout
    assert "RESULT promote: skipped: the part quickstart has left no trial" in done.stdout
