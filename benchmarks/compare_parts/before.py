"""Compare the scores of this checkout with those of another one, trial by trial.

One trial at a time, so that the proposals do not depend on the order in which trials finish. With
four trials the points are the anchor and quasi-random ones, which depend on no score.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from compare_checkouts import IGNORED, MISSING, differing, matches

from compare_parts.arms import ROOT, Work, run_command, search_arguments

TRIALS = 4


def check_against(checkout: Path, work: Work) -> dict[str, Any]:
    """Run a short search by both checkouts, and compare it in both modes of scoring.

    Returns:
        `exact` and `shared` → the number of `trials`, the `largest` difference of a scalar in %,
        and the number of `differing` values in the records of the trials.
    """
    before = _search(work, "before", checkout)
    found = {}
    for mode in ("exact", "shared"):
        after = _search(work, mode, ROOT, f"suites.scoring={mode}")
        found[mode] = compare_runs(before, after)
    return found


def _search(work: Work, name: str, checkout: Path, *settings: str) -> Path:
    """Run a search by a checkout, one trial at a time, and return its run folder."""
    out = work.folder / f"check-{name}"
    shutil.rmtree(out, ignore_errors=True)
    options = [word for text in ("budget.concurrency=1", *settings) for word in ("--set", text)]
    command = [sys.executable, "-m", "sweepcp", *search_arguments(work, out, TRIALS), *options]
    run_command(command, work.environment(checkout=checkout), out.with_suffix(".log"))
    return out


def compare_runs(before: Path, after: Path) -> dict[str, Any]:
    """Compare the trials of two run folders; see `check_against`."""
    largest, values, trials = 0.0, 0, 0
    for folder in sorted(path.parent for path in before.glob("trials/*/trial.json")):
        other = after / "trials" / folder.name
        trials += 1
        old, new = (_read(path / "trial.json") for path in (folder, other))
        for half in ("select", "report"):
            for scalar in ("domain", "general"):
                scores = [trial["scorecard"][half][scalar] for trial in (old, new)]
                largest = max(largest, abs(scores[0] - scores[1]))
        values += _count_differences(old, new)
        values += _count_differences(_read(folder / "items.json"), _read(other / "items.json"))
        values += _metrics(folder) != _metrics(other)
    return {"trials": trials, "largest": largest, "differing": values}


def _count_differences(old: Any, new: Any) -> int:
    """Count the values of the version before that are not the same to the last bit."""
    found = differing(old, new)
    return sum(
        value is not MISSING and not matches(key, IGNORED["trial.json"]) for key, value, _ in found
    )


def _metrics(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
