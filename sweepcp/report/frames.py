"""A run as tidy pandas frames. Every frame begins with `run`, the folder, so that those of several runs concatenate."""

from typing import Any

import pandas as pd

from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.scoring.scorecard import MemberScore

TRIAL = ("run", "id", "status", "proposed_by", "domain", "domain_se", "general", "general_se")
MEMBER = ("run", "id", "half", "on_front", "chosen", *MemberScore.model_fields)
STEP = ("run", "id", "status", "step", "lr", "loss", "grad_norm")


def trial_frame(run: Run) -> pd.DataFrame:
    """A row a trial that has ended: status, proposer, recipe, shares by source, scores on both halves in %, cost.

    Columns that every run has: id, status, proposed_by, domain, domain_se, general, general_se. `domain` and `general`
    are of the half that is chosen on, `reported_…` of the other; NaN unless the trial is done.
    """
    return _to_frame([{"run": str(run.path)} | row for row in run.trial_rows()], TRIAL)


def member_frame(run: Run) -> pd.DataFrame:
    """A row a done trial, half and member of a suite: value ± standard error, the base's, and the change.

    `change` is in % of the base's bits per byte, or in points of accuracy; higher is better in both.
    """
    front, rows = run.front, []
    for trial in run.trials:
        for half in ("select", "report") if trial.scorecard else ():
            marks = {
                "half": half,
                "on_front": trial.id in front.ids,
                "chosen": trial.id == front.choice.id,
            }
            members = getattr(trial.scorecard, half).members
            rows += [
                {"run": str(run.path), "id": trial.id} | marks | member.model_dump()
                for member in members
            ]
    return _to_frame(rows, MEMBER)


def step_frame(run: Run, ids: list[str] | None = None) -> pd.DataFrame:
    """A row a trial and optimizer step: LR, loss in nats a target token, norm of the gradient, tokens by source so far.

    Of the trials `ids`, by default of all, also of those that have not ended: their status is that of the run.
    """
    rows = []
    for trial_id in ids if ids is not None else [t.id for t in run.trials] + list(run.unfinished):
        ended: Trial | None = run.by_id.get(trial_id)
        marks = {
            "run": str(run.path),
            "id": trial_id,
            "status": ended.status if ended else run.state,
        }
        rows += [marks | _flatten_step(step) for step in run.read_steps(trial_id)]
    return _to_frame(rows, STEP)


def _flatten_step(step: dict[str, Any]) -> dict[str, Any]:
    """A step with its nested counts as `name:source`."""
    flat: dict[str, Any] = {}
    for key, value in step.items():
        flat |= (
            {f"{key}:{name}": v for name, v in value.items()}
            if isinstance(value, dict)
            else {key: value}
        )
    return flat


def _to_frame(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """Rows as a frame that has these columns even when it is empty."""
    found = dict.fromkeys(columns) | dict.fromkeys(key for row in rows for key in row)
    return pd.DataFrame(rows, columns=list(found))
