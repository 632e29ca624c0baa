"""Seconds from typing a command to its end, or to the first training step of a search.

    python benchmarks/startup.py [RUN]
    python benchmarks/startup.py first-step [--against CHECKOUT] [--rounds N]

The first form takes the commands that should answer at once: median and range of nine starts of
each, in turn, beside a bare `python -c pass`.

The second one starts `sweepcp search quickstart` with its stores and its base in the cache, and
waits for the first step of a trial on a worker: seconds, and CPU seconds of all processes together.
Searches of this checkout and of another one run in turn. Before they are measured, each has run
once, so a base whose scores are cached is not scored again.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from measuring import (
    ROOT,
    Goal,
    add_output_options,
    describe_machine,
    finish,
    markdown_table,
    ratios_of,
    spread_of,
)

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "--version": [sys.executable, "-m", "sweepcp", "--version"],
    "plan --help": [sys.executable, "-m", "sweepcp", "plan", "--help"],
    "a bad key": [sys.executable, "-m", "sweepcp", "search", "--set", "budget.trails=1"],
    "a missing file": [sys.executable, "-m", "sweepcp", "search", "missing.yaml"],
}
GOAL = 0.6
"""Largest ratio of the seconds to the first step of this checkout to those of the other one."""
LIMIT = 300.0
"""Seconds after which a search without a first step is given up."""
MARK, STEP_FILE = "SWEEPCP_BENCHMARK", "SWEEPCP_FIRST_STEP"
HOOK = f'''
import importlib.abc, importlib.util, os, sys, time

NAME = "sweepcp.training.loop"


class Finder(importlib.abc.MetaPathFinder):
    """Has the training loop note the time of its first step."""

    def find_spec(self, name, path, target=None):
        if name != NAME:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(NAME)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            module.run_training = noting_first_step(module.run_training)

        spec.loader.exec_module = exec_module
        return spec


def noting_first_step(run_training):
    def run(*arguments, **options):
        for metrics in run_training(*arguments, **options):
            note(os.environ.get("{STEP_FILE}", ""))
            yield metrics

    return run


def note(file):
    if file and not os.path.exists(file):
        temporary = f"{{file}}.{{os.getpid()}}"
        with open(temporary, "w") as stream:
            stream.write(repr(time.time()))
        os.replace(temporary, file)


sys.meta_path.insert(0, Finder())
'''


@dataclass(frozen=True)
class Start:
    """One search, up to its first training step."""

    seconds: float
    cpu_seconds: float
    """Of all its processes."""


def main() -> None:
    """Measure what the command line asks for."""
    if sys.argv[1:2] == ["first-step"]:
        measure_first_steps(sys.argv[2:])
    else:
        measure_commands(*sys.argv[1:2])


def measure_commands(run: str | None = None) -> None:
    """Print the seconds of commands that should answer at once."""
    commands = dict(COMMANDS)
    if run is not None:
        commands["front RUN"] = [sys.executable, "-m", "sweepcp", "front", run]
        commands["front RUN --json"] = [*commands["front RUN"], "--json"]
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(9):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:<18} {middle:.2f} s  ({low:.2f} to {high:.2f})")


def measure_first_steps(arguments: list[str]) -> None:
    """Print the seconds to the first training step of a search, of one checkout or of two."""
    parser = argparse.ArgumentParser(prog="startup.py first-step")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    add_output_options(parser)
    asked = parser.parse_args(arguments)
    machine = describe_machine()
    checkouts = {"this": ROOT}
    if asked.against is not None:
        checkouts["other"] = asked.against.resolve()
    starts: dict[str, list[Start]] = {name: [] for name in checkouts}
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="first-step-") as name:
        work = Path(name)
        (work / "hook").mkdir()
        (work / "hook" / "sitecustomize.py").write_text(HOOK)
        fill_caches(work, checkouts)
        for number in range(asked.rounds):
            for arm, checkout in checkouts.items():
                starts[arm].append(start_search(work, arm, checkout))
                shown = starts[arm][-1]
                print(
                    f"round {number + 1}, {arm}: {shown.seconds:.2f} s, "
                    f"{shown.cpu_seconds:.1f} CPU s",
                    file=sys.stderr,
                )
    seconds = {arm: [start.seconds for start in found] for arm, found in starts.items()}
    cpu = {arm: [start.cpu_seconds for start in found] for arm, found in starts.items()}
    rows = [
        [arm, spread_of(seconds[arm]).show("s"), spread_of(cpu[arm]).show("s")] for arm in checkouts
    ]
    goals = []
    if "other" in checkouts:
        ratio, cpu_ratio = (ratios_of(of["this"], of["other"]) for of in (seconds, cpu))
        rows.append(["this / other", ratio.show(), cpu_ratio.show()])
        goals.append(Goal("first step, this / other", ratio.median, GOAL, at_least=False))
    table = markdown_table(["from the command to the first step", "seconds", "CPU seconds"], rows)
    sys.exit(finish(asked, machine=machine, results=starts, text=table, goals=goals))


def fill_caches(work: Path, checkouts: dict[str, Path]) -> None:
    """Run a search of two trials of each checkout; stores and base are built once."""
    filled: Path | None = None
    for arm, checkout in checkouts.items():
        cache = work / f"cache-{arm}"
        if filled is not None:
            shutil.copytree(filled, cache, ignore=shutil.ignore_patterns("base_scores"))
        filled = cache
        command = [sys.executable, "-m", "sweepcp", "search", "--trials", "2"]
        environment = environment_of(work, arm, checkout)
        subprocess.run(
            [*command, "--out", work / f"fill-{arm}"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=work,
            env=environment,
        )


def environment_of(work: Path, arm: str, checkout: Path) -> dict[str, str]:
    """Return the environment of a search of a checkout."""
    return os.environ | {
        "PYTHONPATH": f"{work / 'hook'}:{checkout}",
        "PYTHONSAFEPATH": "1",
        "SWEEPCP_CACHE": str(work / f"cache-{arm}"),
        "RAY_TMPDIR": str(work),
        "HF_HUB_OFFLINE": "1",
    }


def start_search(work: Path, arm: str, checkout: Path) -> Start:
    """Start a search, wait for its first training step, and stop it."""
    mark, step_file, out = uuid.uuid4().hex, work / "step", work / "run"
    step_file.unlink(missing_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    environment = environment_of(work, arm, checkout) | {MARK: mark, STEP_FILE: str(step_file)}
    started = time.time()
    search = subprocess.Popen(
        [sys.executable, "-m", "sweepcp", "search", "--out", out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=work,
        env=environment,
    )
    try:
        while not step_file.exists():
            if search.poll() is not None or time.time() > started + LIMIT:
                sys.exit(f"{arm}: the search ended without a first step")
            time.sleep(0.01)
        cpu_seconds = sum(map(cpu_seconds_of, processes_with(mark)))
    finally:
        search.send_signal(signal.SIGTERM)
        search.wait()
    while processes_with(mark):  # Ray's own take a while
        time.sleep(0.1)
    return Start(float(step_file.read_text()) - started, cpu_seconds)


def processes_with(mark: str) -> list[Path]:
    """Return the processes in whose environment a mark is, except zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(folder)
        except OSError:  # it has ended, or is another user's
            continue
    return found


def cpu_seconds_of(process: Path) -> float:
    """Return the CPU time of a process, and of the children for whose end it has waited."""
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
