"""Seconds from typing a command to its end, for the commands that should answer at once.

    python benchmarks/startup.py [RUN]

Median and range of nine starts of each, in turn, beside a bare `python -c pass`.
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "--version": [sys.executable, "-m", "sweepcp", "--version"],
    "plan --help": [sys.executable, "-m", "sweepcp", "plan", "--help"],
    "a bad key": [sys.executable, "-m", "sweepcp", "search", "--set", "budget.trails=1"],
    "a missing file": [sys.executable, "-m", "sweepcp", "search", "missing.yaml"],
}


def main() -> None:
    if len(sys.argv) > 1:
        COMMANDS["front RUN"] = [sys.executable, "-m", "sweepcp", "front", sys.argv[1]]
        COMMANDS["front RUN --json"] = [*COMMANDS["front RUN"], "--json"]
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(9):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            seconds[name].append(time.perf_counter() - started)
    for name, values in seconds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f"{name:<18} {middle:.2f} s  ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
