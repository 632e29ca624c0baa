"""A run for other programs: JSON and CSV."""

import csv
from pathlib import Path
from typing import Any

from sweepcp.runs.run_folder import Run
from sweepcp.scoring.scorecard import compare_with_base


def run_as_dict(run: Run) -> dict[str, Any]:
    """Base, trials, front, choice and hypervolume of a run, ready for JSON."""
    result = run.front
    trials = []
    for trial in run.trials:
        content = trial.model_dump(mode="json", exclude={"format"}) | {
            "on_front": trial.id in result.ids
        }
        content["recipe"] |= {
            "domain_share": trial.recipe.domain_share,
            "general_share": trial.recipe.general_share,
        }
        trials.append(content)
    base = None
    if run.base is not None:
        items = list(run.base.items)
        members = compare_with_base(items, items).report.members
        base = run.base.model_dump(mode="json", exclude={"format", "items"}) | {
            "domain": 0.0,
            "general": 0.0,
            "members": [
                m.model_dump(mode="json", include={"name", "role", "unit", "base", "base_se"})
                for m in members
            ],
        }
    return {
        "name": run.experiment.name,
        "unit": "domain, general: relative change of bits per byte against the base in %, higher is better",
        "base": base,
        "trials": trials,
        "front": list(result.ids),
        "choice": result.choice.model_dump(mode="json"),
        "hypervolume": result.hypervolume,
        "reference": result.reference,
    }


def write_csv(run: Run, path: Path) -> None:
    """A row a trial, the columns of `Run.rows`."""
    rows = run.trial_rows()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
