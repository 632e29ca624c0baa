"""Records of trials and of the base model."""

from importlib.metadata import version
from platform import python_version
from typing import Literal

from pydantic import Field, model_validator

from sweepcp.config.recipe import Recipe
from sweepcp.errors import InvalidInput
from sweepcp.scoring.scorecard import ItemScores, Scorecard
from sweepcp.util.records import Record

PACKAGES = ("sweepcp", "torch", "transformers", "ray", "optuna", "lm_eval", "deepspeed", "numpy")
NUMERIC_PACKAGES = ("sweepcp", "torch", "transformers", "tokenizers", "lm_eval", "numpy")
"""Packages another version of which may give other scores: kernels and random numbers, model code,
tokens, prompts and metrics, samples. Ray and Optuna only decide which trials are run, and where."""
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

    format: Literal[2] = 2
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

    format: Literal[2] = 2
    model: str
    parameters: int
    max_lr: float
    items: tuple[ItemScores, ...]
    notes: tuple[str, ...] = ()
    """What the worker found when it prepared the suites, for example contexts that were cut."""
    environment: dict[str, str]
    """What the scores depend on besides files: `device` (`cpu` or `cuda`), `precision` (`fp32` or
    `bf16`), `prompts` (a hash of those of the tasks) and the versions of `NUMERIC_PACKAGES`."""
    versions: dict[str, str]


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": python_version()} | {name: version(name) for name in PACKAGES}


def numeric_environment(*, device: str, precision: str, prompts: str) -> dict[str, str]:
    """Return what the scores of this process depend on besides files, see `BaseRecord`.

    Args:
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`, resolved.
        prompts: Hash of the tasks' prompts and answers, which lm-eval may have drawn or fetched.
    """
    found = {"device": device, "precision": precision, "prompts": prompts}
    return found | numeric_versions()


def numeric_versions() -> dict[str, str]:
    """Return the versions of `NUMERIC_PACKAGES`."""
    return {name: version(name) for name in NUMERIC_PACKAGES}


def check_environment(
    environment: dict[str, str], base: dict[str, str], *, where: object, fix: str
) -> None:
    """Raise `InvalidInput` unless scores from one environment compare with those from another.

    Args:
        environment: That of the process whose scores are compared; what it lacks is not checked.
        base: That of the scores to compare with.
        where: The process or folder, for the message.
        fix: What the user can do, for the message.
    """
    different = [name for name in environment if name in base and environment[name] != base[name]]
    if different:
        raise InvalidInput(
            file=where,
            key=", ".join(different),
            found=", ".join(f"{name} {environment[name]}" for name in different),
            rule="one environment for the base and all that is compared with it: "
            + ", ".join(f"{name} {base[name]}" for name in different),
            fix=fix,
        )
