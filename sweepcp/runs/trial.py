"""Records of trials and of the base model."""

from importlib.metadata import version
from platform import python_version
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from sweepcp.config.attention import PACKED
from sweepcp.config.recipe import Recipe
from sweepcp.config.types import Role
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
    """Of training."""
    score_seconds: float
    """Of scoring."""
    tokens: int
    """Training tokens."""
    tokens_per_second: float
    """Of training."""
    worker: str
    """Host, device and number of threads."""
    first_micro_batch: int | None = None
    """Sequences per forward pass at the start of training: more than `micro_batch` if GPU memory
    ran out in this trial."""
    micro_batch: int | None = None
    """Sequences per forward pass at the end of training."""
    attention: str | None = None
    """Implementation of attention: what `auto` became."""
    memory_gib: float | None = None
    """Peak of allocated GPU memory in training at this micro batch; None on a CPU."""
    estimated_memory_gib: float | None = None
    """Estimate of the same; None if the base's configuration does not state its dimensions."""

    @property
    def halved_to(self) -> int | None:
        """The micro batch at the end if it was larger at the start; else None."""
        first, last = self.first_micro_batch, self.micro_batch
        return last if first is not None and last is not None and last < first else None

    @property
    def memory_ratio(self) -> float | None:
        """Measured memory in multiples of the estimate; None unless both are recorded."""
        if self.memory_gib is None or self.estimated_memory_gib is None:
            return None
        return self.memory_gib / self.estimated_memory_gib


class StepRecord(Record):
    """A line of `metrics.jsonl`, see `sweepcp.training.loop.StepMetrics`.

    That of a full run has further keys, which nothing reads. Charts show what is not finite as a
    gap.
    """

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)
    step: int
    """Counted from 1."""
    lr: float
    """The learning rate of the step."""
    loss: float
    """Nats per target token, before the step."""
    grad_norm: float
    """Before clipping."""
    tokens: dict[str, int]
    """Source → tokens fed to the model so far."""
    losses: dict[Role, float] = Field(default_factory=dict)
    """Role → nats per target token."""


class TrialOutcome(Record):
    """What a worker reports when a trial ends, whatever its status."""

    status: Status
    """How it ended."""
    reason: str | None = None
    """Why the trial has no score; None if it is done."""
    items: tuple[ItemScores, ...] = ()
    """Its scores, item by item."""
    tokens_by_source: dict[str, int] = Field(default_factory=dict)
    """Counted in the batches that the model was trained on."""
    epochs_by_source: dict[str, float] = Field(default_factory=dict)
    """Source → how often it was read."""
    cost: Cost | None = None
    """What it used."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of Python and of the packages of the worker."""


class Trial(Record):
    """`trials/<id>/trial.json`. Written last and atomically, it marks the trial as finished."""

    format: Literal[2] = 2
    """Version of the format."""
    id: str
    """Name of its folder: the number with four digits."""
    number: Annotated[int, Field(ge=0)]
    """Counted from 0 in the order in which trials are proposed."""
    status: Status
    """`done`, `stopped`, `diverged` or `failed`; only `done` trials have scores."""
    reason: str | None
    """Why it has no score; None if it is done."""
    retries: int = 0
    """How often it was started again from its first step, because its worker was lost."""
    proposed_by: Proposer
    """`anchor`, `quasi-random` or `tpe`."""
    point: dict[str, float | str]
    """The point of the search space from which the recipe was made."""
    recipe: Recipe
    """The recipe that was trained."""
    recipe_id: str
    """Hash of the recipe."""
    domain: float | None
    """Relative change on the domain suite in %, on the selection half; None unless done."""
    general: float | None
    """The same on the general suite."""
    scorecard: Scorecard | None
    """Its scores against the base, on both halves."""
    tokens_by_source: dict[str, int]
    """Source → tokens that it was trained on."""
    epochs_by_source: dict[str, float]
    """Source → how often it was read."""
    cost: Cost | None
    """What it used."""
    versions: dict[str, str]
    """Versions of Python and of the packages of the worker."""
    finished: str
    """UTC, ISO 8601."""

    @property
    def short_reason(self) -> str:
        """The last line of the reason: the message of a traceback."""
        lines = (self.reason or "").strip().splitlines()
        return lines[-1].strip() if lines else ""

    @model_validator(mode="after")
    def _check_consistent(self) -> "Trial":
        if self.id != id_of_trial(self.number):
            raise ValueError(f"trial {self.number} has the id {id_of_trial(self.number)}")
        card = self.scorecard
        scores = (card.select.domain, card.select.general) if card else (None, None)
        if (self.status == "done") != (card is not None):
            raise ValueError("a trial has scores if and only if it is done")
        if (self.domain, self.general) != scores:
            raise ValueError("the scores of a trial are those of the selection half")
        return self


class BaseRecord(Record):
    """`base.json`: the base model and its scores at step 0, before any training."""

    format: Literal[2] = 2
    """Version of the format."""
    model: str
    """Folder or hub id of the base."""
    parameters: int
    """Its number of parameters."""
    max_lr: float
    """The max LR of its own pretraining."""
    items: tuple[ItemScores, ...]
    """Its scores, item by item."""
    notes: tuple[str, ...] = ()
    """What the worker found when it prepared the suites, for example contexts that were cut."""
    environment: dict[str, str]
    """What the scores depend on besides files: `device` (`cpu` or `cuda`), `precision` (`fp32` or
    `bf16`), `attention` (its implementation), `prompts` and `items` (hashes of those of the tasks;
    earlier versions did not record `items`), `scoring` (how answers are computed, see
    `LmEvalTasks.scoring`; earlier versions computed all of them exactly and did not record it) and
    the versions of `NUMERIC_PACKAGES`."""
    versions: dict[str, str]
    """Versions of Python and of the packages of the worker."""


def id_of_trial(number: int) -> str:
    """Return the id of a trial, which is also the name of its folder."""
    return f"{number:04d}"


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    return {"python": python_version()} | {name: version(name) for name in PACKAGES}


def numeric_environment(
    *, device: str, precision: str, attention: str, prompts: str, items: str, scoring: str
) -> dict[str, str]:
    """Return what the scores of this process depend on besides files, see `BaseRecord`.

    Args:
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`, resolved.
        attention: Implementation of attention, resolved.
        prompts: Hash of the tasks' prompts and answers, which lm-eval may have drawn or fetched.
        items: Hash of the tasks' items, which have the right answers, too.
        scoring: How the answers of tasks are computed.
    """
    found = {
        "device": device,
        "precision": precision,
        "attention": attention,
        "prompts": prompts,
        "items": items,
        "scoring": scoring,
    }
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
    if environment.get("attention") in PACKED:
        # Earlier versions did not record the implementation, and had none of these.
        base = {"attention": "sdpa"} | base
    base = {"scoring": "exact"} | base
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
