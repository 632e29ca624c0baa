"""Measure time and size of the report of a large run.

    python benchmarks/report.py [TRIALS] [--json FILE] [--markdown FILE]

The run is made, not trained, with as many items and steps per trial as the quickstart has.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import add_output_options, describe_machine, finish, markdown_table, spread_of

from tests.make_run import write_run

TRIALS = 5000
REPEATS = 5


def measure_report(run: Path, page: Path) -> float:
    """Write the report and return the seconds that it took."""
    command = [sys.executable, "-m", "sweepcp", "report", str(run), "--html", str(page)]
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trials", nargs="?", type=int, default=TRIALS)
    add_output_options(parser)
    asked = parser.parse_args()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        run, page = Path(folder) / "run", Path(folder) / "report.html"
        write_run(run, asked.trials, documents=230, steps=100, t0003="diverged", t0007="failed")
        seconds = [measure_report(run, page) for _ in range(REPEATS)]
        megabytes = page.stat().st_size / 1e6
    row = [f"{asked.trials:,}", spread_of(seconds).show("s"), f"{megabytes:.1f} MB"]
    text = markdown_table(["trials", "time", "size"], [row])
    results = {"trials": asked.trials, "seconds": seconds, "megabytes": megabytes}
    sys.exit(finish(asked, machine=machine, results=results, text=text))


if __name__ == "__main__":
    main()
