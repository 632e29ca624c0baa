"""A run as tidy pandas data frames.

The first column of each, `run`, is the folder of the run: frames of several runs can be
concatenated.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sweepcp.runs.run_folder import Run
from sweepcp.scoring.scorecard import MemberScore

TRIAL_COLUMNS = (
    "run", "id", "status", "proposed_by", "domain", "domain_se", "general", "general_se",
)  # fmt: skip
MEMBER_COLUMNS = ("run", "id", "half", "on_front", "chosen", *MemberScore.model_fields)
STEP_COLUMNS = ("run", "id", "status", "step", "lr", "loss", "grad_norm")
"""Columns that a frame has even when it is empty."""


def trial_frame(run: Run) -> pd.DataFrame:
    """Return one row per finished trial: status, proposer, recipe, shares by source, scores, cost.

    Scores are in %: `domain` and `general` on the selection half, `reported_…` on the reporting
    half; NaN unless the trial is done.
    """
    rows = [{"run": str(run.path)} | row for row in run.trial_rows()]
    return _to_frame(rows, TRIAL_COLUMNS)


def member_frame(run: Run) -> pd.DataFrame:
    """Return one row per done trial, half and suite member.

    `value` and `base` have standard errors `value_se` and `base_se`. `change` is in % of the
    base's bits per byte, or in points of accuracy; higher is better in both.
    """
    front = run.front
    rows = []
    for trial in run.trials:
        card = trial.scorecard
        if card is None:
            continue
        for half, scores in (("select", card.select), ("report", card.report)):
            keys = {
                "run": str(run.path),
                "id": trial.id,
                "half": half,
                "on_front": trial.id in front.ids,
                "chosen": trial.id == front.choice.id,
            }
            rows += [keys | member.model_dump() for member in scores.members]
    return _to_frame(rows, MEMBER_COLUMNS)


def step_frame(run: Run, ids: Sequence[str] | None = None) -> pd.DataFrame:
    """Return one row per trial and optimizer step.

    Columns are LR, loss in nats per target token, gradient norm, and tokens by source so far.

    Args:
        run: The run to read.
        ids: Trials to read, by default all, also unfinished ones, whose status is that of the run.
    """
    if ids is None:
        ids = [*(trial.id for trial in run.trials), *run.unfinished]
    rows = []
    for trial_id in ids:
        trial = run.by_id.get(trial_id)
        keys = {
            "run": str(run.path),
            "id": trial_id,
            "status": trial.status if trial else run.state,
        }
        rows += [keys | _flatten_step(step) for step in run.read_steps(trial_id)]
    return _to_frame(rows, STEP_COLUMNS)


def _flatten_step(step: dict[str, Any]) -> dict[str, Any]:
    """Return a step with its counts by source as `name:source`."""
    flat: dict[str, Any] = {}
    for key, value in step.items():
        if isinstance(value, dict):
            flat |= {f"{key}:{source}": count for source, count in value.items()}
        else:
            flat[key] = value
    return flat


def _to_frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a frame that begins with `columns`, which it has even when it is empty."""
    all_columns = dict.fromkeys(columns) | dict.fromkeys(key for row in rows for key in row)
    return pd.DataFrame(rows, columns=list(all_columns))
