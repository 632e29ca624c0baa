"""What a search costs the driver, and how costs grow with what grows.

    python benchmarks/scale.py [trials] [open] [tokens] [sources] [items] [--json F] [--markdown F]

`trials` searches with instant trials through Ray, Ray Tune, the sampler, the ledger and the run
folder, and measures CPU time and memory of the driver; `open` reads run folders; `tokens`,
`sources` and `items` measure what depends on them. All parts together take about 6 minutes on two
cores. The exit status is 1 if a goal is not met.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from measuring import ROOT, Goal, add_output_options, describe_machine, finish, markdown_table
from scale_parts.growth import Growth, growth_table
from scale_parts.instant import growth_with_trials, search_instantly, window_rows
from scale_parts.opening import measure_opening
from scale_parts.sizes import growth_with_items, growth_with_sources, growth_with_tokens

SIMPLE_PARTS: dict[str, Callable[[Path], list[Growth]]] = {
    "tokens": growth_with_tokens,
    "sources": growth_with_sources,
    "items": growth_with_items,
}
PARTS = ("trials", "open", *SIMPLE_PARTS)
CPU_MILLISECONDS = 60.0
OPENING_SECONDS = 2.0
MEMORY_GROWTH = 25.0
"""Kilobytes of the driver per trial, after the first 100: what Ray Tune keeps of a trial."""
WINDOW_HEADER = ("trials", "driver CPU per trial (ms)", "wall clock per trial (ms)", "memory (MB)")


def measure_trials(folder: Path, trials: int) -> tuple[list[Growth], list[Goal], str]:
    """Search with instant trials; return growth, goals, and a table by window."""
    use = search_instantly(folder / "search", trials)
    goals = [
        Goal(
            f"driver CPU per trial at {count:,} trials (ms)",
            use.cpu_milliseconds(0, count),
            CPU_MILLISECONDS,
            at_least=False,
        )
        for count in sorted({300, trials})
        if count <= trials
    ]
    if trials > 100:
        growth = 1e3 * (use.megabytes[trials] - use.megabytes[100]) / (trials - 100)
        name = f"driver memory per trial, from trial 100 to {trials:,} (kB)"
        goals.append(Goal(name, growth, MEMORY_GROWTH, at_least=False))
    return growth_with_trials(use), goals, markdown_table(WINDOW_HEADER, window_rows(use))


def goals_of_opening(rows: list[Growth]) -> list[Goal]:
    """Return the goals of the largest run that was opened."""
    return [
        Goal(
            f"{row.cost} of {row.sizes[-1]:,} trials (s)",
            row.costs[-1],
            OPENING_SECONDS,
            at_least=False,
        )
        for row in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how the costs of a search grow.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--trials", type=int, default=2000, help="instant trials to run")
    parser.add_argument("--largest", type=int, default=5000, help="trials of the largest run read")
    add_output_options(parser)
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    parts = asked.parts or PARTS
    # Workers import the instant runner, and start in another folder.
    paths = [str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    machine = describe_machine()
    rows: list[Growth] = []
    goals: list[Goal] = []
    windows = ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["SWEEPCP_CACHE"] = str(folder / "cache")
        if "trials" in parts:
            rows, goals, windows = measure_trials(folder, asked.trials)
        if "open" in parts:
            opened = measure_opening(folder, asked.largest)
            rows += opened
            goals += goals_of_opening(opened)
        for part, measure in SIMPLE_PARTS.items():
            if part in parts:
                (folder / part).mkdir()
                rows += measure(folder / part)
    text = f"{growth_table(rows)}\n{windows}"
    return finish(asked, machine=machine, results={"growth": rows}, text=text, goals=goals)


if __name__ == "__main__":
    sys.exit(main())
