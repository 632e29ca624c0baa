"""What the benchmarks share: the machine, spreads and ratios, goals, and their JSON and Markdown.

Timings of one machine are compared as ratios within a round of interleaved runs, never across
rounds: a machine that is slow for a minute is slow for all that is compared in that minute.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    *("torch", "transformers", "tokenizers", "datasets", "accelerate", "lm_eval"),
    *("ray", "optuna", "numpy", "pydantic"),
)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one quantity."""

    median: float
    low: float
    high: float
    count: int

    def show(self, unit: str = "", *, digits: int = 3) -> str:
        """Return the median and the range, such as `1.83 s (1.79 to 1.95)`."""
        middle, low, high = (show_number(x, digits) for x in (self.median, self.low, self.high))
        unit = f" {unit}" if unit else ""
        return f"{middle}{unit} ({low} to {high})" if self.count > 1 else f"{middle}{unit}"


def show_number(value: float, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; with an exponent if it is tiny or huge."""
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value))) if math.isfinite(value) else 0
    if not -4 <= magnitude < 9:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def spread_of(values: Iterable[float]) -> Spread:
    """Return the median and the range of measurements; there must be one."""
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios_of(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Return the spread of the ratios within each round."""
    return spread_of(a / b for a, b in zip(numerators, denominators, strict=True))


@dataclass(frozen=True)
class Goal:
    """A bound that a measurement must keep."""

    name: str
    value: float
    bound: float
    at_least: bool = True
    """Whether the bound is the smallest value that is allowed, or else the largest."""

    @property
    def met(self) -> bool:
        """Whether the value keeps the bound; NaN does not."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def line(self) -> str:
        """Return the goal, what was measured, and whether it is met."""
        sign = "≥" if self.at_least else "≤"
        value, bound = show_number(self.value), f"{self.bound:g}"
        return f"{self.name}: {value} (goal {sign} {bound}): {'met' if self.met else 'NOT MET'}"


def describe_machine() -> dict[str, Any]:
    """Return the hardware, the versions, the commit and the load, for a result file."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := package_version(name))},
        "commit": commit_of(ROOT),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


def machine_line(machine: dict[str, Any]) -> str:
    """Return what `describe_machine` found in one sentence."""
    packages = ", ".join(f"{name} {found}" for name, found in machine["packages"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, "
        f"{machine['system']}, Python {machine['python']}, {packages}; load at the start "
        f"{machine['load'][0]:g}; commit {machine['commit'] or 'unknown'}; {machine['started']}"
    )


def _cpu_model() -> str:
    """Return the CPU as the kernel names it, with its family and model, which tell it apart."""
    lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    pairs = [line.partition(":") for line in lines]
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    name = facts.get("model name", platform.machine())
    family, model = facts.get("cpu family"), facts.get("model")
    return f"{name} (family {family}, model {model})" if family and model else name


def package_version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit_of(checkout: Path) -> str | None:
    """Return the commit of a checkout, marked if files differ from it; None outside of git."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    # A benchmark must not wait for, or take, the lock of somebody's index.
    env = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)]]
    lines += [[str(cell) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_json(value: Any) -> Any:
    """Return dataclasses as JSON, for `json.dumps`."""
    return asdict(value)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add `--json FILE` and `--markdown FILE`."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")


def finish(
    asked: argparse.Namespace,
    *,
    machine: dict[str, Any],
    results: dict[str, Any],
    text: str,
    goals: Sequence[Goal] = (),
) -> int:
    """Print the tables and the goals, and write the files that `add_output_options` names.

    Args:
        asked: The parsed options.
        machine: What `describe_machine` returned before the first measurement.
        results: Every single measurement, for the JSON file; dataclasses are allowed.
        text: The tables as Markdown.
        goals: What was to be reached.

    Returns:
        The exit status: 1 if a goal is not met.
    """
    verdicts = "".join(f"- {goal.line()}\n" for goal in goals)
    report = f"{text.strip()}\n\n{machine_line(machine)}\n" + (f"\n{verdicts}" if goals else "")
    print(report, flush=True)
    if asked.markdown:
        asked.markdown.write_text(report)
    if asked.json:
        judged = [asdict(goal) | {"met": goal.met} for goal in goals]
        content = {"machine": machine, "results": results, "goals": judged}
        asked.json.write_text(json.dumps(content, indent=1, default=to_json) + "\n")
    return int(not all(goal.met for goal in goals))
