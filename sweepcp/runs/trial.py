"""Records of trials and of the base model."""

from importlib.metadata import version
from platform import python_version
from typing import Literal

from pydantic import Field, model_validator

from sweepcp.config.recipe import Recipe
from sweepcp.scoring.scorecard import ItemScores, Scorecard
from sweepcp.util.records import Record

PACKAGES = ("sweepcp", "torch", "transformers", "ray", "optuna", "lm_eval", "deepspeed", "numpy")
Status = Literal["done", "stopped", "diverged", "failed"]
Proposer = Literal["anchor", "quasi-random", "tpe"]


class Cost(Record):
    """What a trial used. Seconds are wall-clock time on its worker."""

    train_seconds: float
    score_seconds: float
    tokens: int
    tokens_per_second: float
    worker: str
    """Host, device and number of threads."""


class TrialOutcome(Record):
    """What a worker reports when a trial ends, whatever its status."""

    status: Status
    reason: str | None = None
    """Why the trial has no score; None if it is done."""
    items: tuple[ItemScores, ...] = ()
    tokens_by_source: dict[str, int] = Field(default_factory=dict)
    """Counted in the batches that the model was trained on."""
    epochs_by_source: dict[str, float] = Field(default_factory=dict)
    cost: Cost | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Trial(Record):
    """`trials/<id>/trial.json`. Written last and atomically, it marks the trial as finished."""

    format: Literal[1] = 1
    id: str
    number: int
    status: Status
    reason: str | None
    proposed_by: Proposer
    point: dict[str, float | str]
    """The point of the search space from which the recipe was made."""
    recipe: Recipe
    recipe_id: str
    domain: float | None
    """Relative change on the domain suite in %, on the selection half; None unless done."""
    general: float | None
    """The same on the general suite."""
    scorecard: Scorecard | None
    tokens_by_source: dict[str, int]
    epochs_by_source: dict[str, float]
    cost: Cost | None
    versions: dict[str, str]
    finished: str
    """UTC, ISO 8601."""

    @property
    def short_reason(self) -> str:
        """The last line of the reason: the message of a traceback."""
        lines = (self.reason or "").strip().splitlines()
        return lines[-1].strip() if lines else ""

    @model_validator(mode="after")
    def _scored_when_done(self) -> "Trial":
        scored = (self.domain, self.general, self.scorecard)
        if (self.status == "done") != all(score is not None for score in scored):
            raise ValueError("a trial has scores if and only if it is done")
        return self


class BaseRecord(Record):
    """`base.json`: the base model and its scores at step 0, before any training."""

    format: Literal[1] = 1
    model: str
    parameters: int
    max_lr: float
    items: tuple[ItemScores, ...]
    versions: dict[str, str]


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": python_version()} | {name: version(name) for name in PACKAGES}
