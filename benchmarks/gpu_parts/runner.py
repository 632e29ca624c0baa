"""What sweepcp does on a GPU, in about eight minutes on one card: one RESULT line per part.

    benchmarks/gpu [PART ...] [--out results.json]      all parts, or those named
    benchmarks/gpu --list                               the parts in their order
    TINY=1 benchmarks/gpu                               small, on a CPU: a rehearsal

Each part is a process of its own with a time limit. One that fails or takes too long does not stop
the next one; the exit status is 1 if there was any. A part for which no time is left is skipped, so
the parts are in the order of their importance. Nothing is downloaded.

Environment: TINY=1; TOTAL, the seconds for everything; PEAK, the dense bf16 peak of the card in
TFLOP/s, for MFU; LOGS, a folder for the output of each part; SWEEPCP_CACHE, by default a new one
that the parts share.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from gpu_parts.parts import BY_NAME, GOALS, PARTS, Part
from gpu_parts.results import Result, read_result, write_result
from gpu_parts.settings import PEAK, TINY, Skipped

PROGRAM = Path(__file__).parents[1] / "gpu"
TOTAL = float(os.environ.get("TOTAL", "590" if TINY else "475"))
SHORTEST = 5.0
"""Seconds that must be left for another part to start."""
STOP_SECONDS = 10.0
"""How long a part may take to end after SIGTERM."""


def run_here(part: Part, work: Path) -> None:
    """Run a part in this process, and write its result."""
    try:
        finding = part.run(work)
        result = Result("done", finding.text, finding.numbers)
    except Skipped as reason:
        result = Result("skipped", str(reason), {})
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())[:400]
        result = Result("failed", f"{type(error).__name__}: {message}", {})
    write_result(work, part.name, result)


def run_apart(part: Part, work: Path, log: Path, *, limit: float) -> Result:
    """Run a part in a process of its own, and stop it at its limit."""
    started = time.monotonic()
    command = [sys.executable, str(PROGRAM), "--run", part.name, "--work", str(work)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            stop_group(process)
    seconds = time.monotonic() - started
    found = read_result(work, part.name)
    if found is not None:
        return Result(found.status, found.text, found.numbers, seconds)
    if status is None:
        return Result("timed out", f"not done in {limit:.0f} s; {last_lines(log)}", {}, seconds)
    return Result("failed", f"status {status}; {last_lines(log)}", {}, seconds)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a part's processes."""
    deadline = time.monotonic() + STOP_SECONDS
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_lines(log: Path) -> str:
    """Return the end of a part's output."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-3:])[-500:]


def set_environment(work: Path) -> None:
    """Set what all parts share."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        TRANSFORMERS_VERBOSITY="error",
        TOKENIZERS_PARALLELISM="false",
        PYTHONUNBUFFERED="1",
        COLUMNS="120",
    )
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("SWEEPCP_CACHE", str(work / "cache"))
    if find_spec("sweepcp") is None:
        inherited = os.environ.get("PYTHONPATH")
        root = str(PROGRAM.parents[1])
        os.environ["PYTHONPATH"] = os.pathsep.join([root, *([inherited] if inherited else [])])


def reason_to_skip(part: Part, *, left: float) -> str | None:
    """Return why a part is not started; None if it is."""
    if TINY and part.rehearsed_by:
        return f"the rehearsal of {part.rehearsed_by} runs the same code"
    if left < SHORTEST:
        return f"the {TOTAL:.0f} s are used up; name the part to run it"
    return None


def run_parts(parts: list[Part], work: Path, logs: Path, out: Path) -> bool:
    """Run parts within `TOTAL`, print their lines and write their numbers.

    Returns:
        Whether all parts are done or skipped.
    """
    started = time.monotonic()
    results: dict[str, Result] = {}
    for part in parts:
        left = TOTAL - (time.monotonic() - started)
        if reason := reason_to_skip(part, left=left):
            result = Result("skipped", reason, {})
        else:
            limit = min(left, part.limit)
            result = run_apart(part, work, logs / f"{part.name}.log", limit=limit)
        record(part, result, results, out)
    result = run_apart(GOALS, work, logs / f"{GOALS.name}.log", limit=GOALS.seconds)
    record(GOALS, result, results, out)
    statuses = [result.status for result in results.values()]
    counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
    print(f"RESULT all: {counts}; {time.monotonic() - started:.0f} s; numbers in {out}")
    print(f"       logs in {logs}")
    return not {"failed", "timed out"} & set(statuses)


def record(part: Part, result: Result, results: dict[str, Result], out: Path) -> None:
    """Print the line of a part, and write the numbers of all parts so far."""
    results[part.name] = result
    print(f"RESULT {part.name}: {result.line}   ({result.seconds:.0f} s)", flush=True)
    content = {
        "tiny": TINY,
        "peak_tflops": PEAK,
        "parts": {name: asdict(found) for name, found in results.items()},
    }
    out.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Run the parts that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", metavar="PART", nargs="*", help="see --list; by default all")
    parser.add_argument("--out", type=Path, default=Path("results.json"), help="the JSON file")
    parser.add_argument("--list", action="store_true", help="list the parts and their limits")
    parser.add_argument("--run", choices=BY_NAME, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(BY_NAME):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; see --list")
    if asked.list:
        for part in PARTS:
            arguments = ", ".join(f"{key}={value}" for key, value in part.arguments.items())
            print(f"{part.name:<18} {part.seconds:4.0f} s  {part.function}({arguments})")
        return
    if asked.run:
        run_here(BY_NAME[asked.run], asked.work)
        return
    chosen = [part for part in PARTS if not asked.parts or part.name in asked.parts]
    with tempfile.TemporaryDirectory(prefix="gpu-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        logs = Path(os.environ.get("LOGS") or tempfile.mkdtemp(prefix="gpu-logs-"))
        logs.mkdir(parents=True, exist_ok=True)
        set_environment(work)
        passed = run_parts(chosen, work, logs, asked.out)
    sys.exit(0 if passed else 1)
