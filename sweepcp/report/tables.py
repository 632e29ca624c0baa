"""A run for other programs: JSON and CSV."""

import csv
import io
from pathlib import Path
from typing import Any

from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import BaseRecord, Trial
from sweepcp.scoring.scorecard import compare_with_recorded
from sweepcp.util.files import write_text

UNIT = "domain, general: relative change of bits per byte against the base in %, higher is better"


def run_as_dict(run: Run) -> dict[str, Any]:
    """Return base, trials, front, choice and hypervolume of a run, ready for JSON."""
    front = run.front
    base = None
    if run.base is not None:
        base = _base_as_dict(run.base, run.path / "base.json")
    return {
        "name": run.experiment.name,
        "unit": UNIT,
        "base": base,
        "trials": [_trial_as_dict(trial, on_front=trial.id in front.ids) for trial in run.trials],
        "front": list(front.ids),
        "choice": front.choice.model_dump(mode="json"),
        "hypervolume": front.hypervolume,
        "reference": front.reference,
    }


def write_csv(run: Run, path: Path) -> None:
    """Write one row per finished trial, with the columns of `Run.trial_rows`."""
    rows = run.trial_rows()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())


def _trial_as_dict(trial: Trial, *, on_front: bool) -> dict[str, Any]:
    content = trial.model_dump(mode="json", exclude={"format"}) | {"on_front": on_front}
    content["recipe"] |= {
        "domain_share": trial.recipe.domain_share,
        "general_share": trial.recipe.general_share,
    }
    if trial.cost is not None:
        content["cost"]["memory_ratio"] = trial.cost.memory_ratio
    return content


def _base_as_dict(base: BaseRecord, file: Path) -> dict[str, Any]:
    """Return the base with its scores on the reporting half; its changes against itself are 0 %."""
    items = list(base.items)
    fields = {"name", "role", "unit", "base", "base_se"}
    members = [
        member.model_dump(mode="json", include=fields)
        for member in compare_with_recorded(trial=items, base=items, file=file).report.members
    ]
    return base.model_dump(mode="json", exclude={"format", "items"}) | {
        "domain": 0.0,
        "general": 0.0,
        "members": members,
    }
