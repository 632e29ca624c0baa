"""Measure time and size of the report of a large run: python benchmarks/report.py [TRIALS]

The run is made, not trained, with as many items and steps per trial as the quickstart has.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.make_run import write_run

TRIALS = 5000
REPEATS = 5


def measure_report(run: Path, page: Path) -> float:
    """Write the report and return the seconds that it took."""
    command = [sys.executable, "-m", "sweepcp", "report", str(run), "--html", str(page)]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - start


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else TRIALS
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "report.html"
        write_run(run, trials, documents=230, steps=100, t0003="diverged", t0007="failed")
        seconds = [measure_report(run, page) for _ in range(REPEATS)]
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        megabytes = page.stat().st_size / 1e6
        print(f"{trials:,} trials: {middle:.1f} s ({low:.1f} to {high:.1f} s), {megabytes:.1f} MB")


if __name__ == "__main__":
    main()
