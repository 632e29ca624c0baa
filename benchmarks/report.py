"""Seconds and megabytes of the report of a large run: python benchmarks/report.py [TRIALS]

The run is made, not trained: as many items (35 kB a trial) and steps as in the quickstart.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.make import write_run


def main() -> None:
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "report.html"
        write_run(run, trials, documents=230, steps=100, t0003="diverged", t0007="failed")
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "sweepcp", "report", run, "--html", page], check=True
            )
            seconds.append(time.perf_counter() - start)
        low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
        size = page.stat().st_size / 1e6
        print(f"{trials:,} trials: {middle:.1f} s ({low:.1f} to {high:.1f}), {size:.1f} MB")


if __name__ == "__main__":
    main()
