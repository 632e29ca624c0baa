"""The record of one trial."""

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
    """What a trial used. Seconds are wall-clock on its worker."""

    train_seconds: float
    score_seconds: float
    tokens: int
    tokens_per_second: float
    worker: str
    """Host, device and threads."""


class TrialOutcome(Record):
    """What a worker hands back when a trial ends, however it ends."""

    status: Status
    reason: str | None = None
    """Why, unless it is done."""
    items: tuple[ItemScores, ...] = ()
    tokens_by_source: dict[str, int] = Field(default_factory=dict)
    """Counted from the batches that were fed to the model."""
    epochs_by_source: dict[str, float] = Field(default_factory=dict)
    cost: Cost | None = None
    versions: dict[str, str] = Field(default_factory=dict)


class Trial(Record):
    """`trials/<id>/trial.json`: written last and atomically, the only definition of a finished trial."""

    format: Literal[1] = 1
    id: str
    number: int
    status: Status
    reason: str | None
    proposed_by: Proposer
    point: dict[str, float | str]
    """The values of the search space that the recipe came from."""
    recipe: Recipe
    recipe_id: str
    domain: float | None
    """Relative change on the domain suite in % on the half that is chosen on; None unless the trial is done."""
    general: float | None
    scorecard: Scorecard | None
    tokens_by_source: dict[str, int]
    epochs_by_source: dict[str, float]
    cost: Cost | None
    versions: dict[str, str]
    finished: str
    """UTC, ISO 8601."""

    @property
    def why(self) -> str:
        """The last line of the reason, which says what happened."""
        lines = (self.reason or "").strip().splitlines()
        return lines[-1].strip() if lines else ""

    @model_validator(mode="after")
    def _scored_when_done(self) -> "Trial":
        scored = (self.domain, self.general, self.scorecard)
        if (self.status == "done") != all(x is not None for x in scored):
            raise ValueError("a trial has scores if and only if it is done")
        return self


class BaseRecord(Record):
    """`base.json`: the untouched base, scored once at step 0, and what it is."""

    format: Literal[1] = 1
    model: str
    parameters: int
    max_lr: float
    items: tuple[ItemScores, ...]
    versions: dict[str, str]


def package_versions() -> dict[str, str]:
    """Python and the packages that decide a run's numbers."""
    return {"python": python_version()} | {name: version(name) for name in PACKAGES}
