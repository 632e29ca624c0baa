"""What a worker process is given, what it holds, and what it reports to the driver."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.recipe import Recipe
from sweepcp.config.types import Attention
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import BaseNotScored, InvalidInput
from sweepcp.runs.trial import BaseRecord, TrialOutcome
from sweepcp.scoring.spec import ScoringSpec
from sweepcp.util.gpus import Device

if TYPE_CHECKING:  # imports torch
    from sweepcp.training.loop import StepMetrics


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker needs to build its `TrialRunner`; all nodes must be able to read its paths."""

    base: BaseSpec
    """The base as the experiment names it: its tokenizer and its max LR."""
    model: str
    """The base's folder, or its hub id, of which `base.revision` is loaded."""
    stores: tuple[TokenStore, ...]
    """Token stores to train on, limited to the fraction of each that trials may see."""
    scoring: ScoringSpec
    micro_batch: int | Literal["auto"]
    """Sequences per forward pass; `auto` for as many as the estimated memory allows."""
    precision: str
    """`fp32`, `bf16` or `auto` (bf16 on a GPU)."""
    attention: Attention
    """Implementation of attention, or `auto`."""
    recompute: bool
    """Whether the backward pass recomputes the activations of each layer."""
    compile: bool
    """Whether the layers of the model are compiled."""
    threads: int
    """CPU threads of the worker."""
    device: Device
    """What it trains and scores on."""
    gpu_share: float
    """The share of a GPU's memory that it may use; 0 on a CPU."""

    @property
    def model_name(self) -> str:
        """The base in records: its folder, or its hub id and revision."""
        return f"{self.model}@{self.base.revision}" if self.base.hub else self.model


class TrialRunnerProtocol(Protocol):
    """Trains and scores one trial after the other, see `sweepcp.search.trial_runner`."""

    @property
    def environment(self) -> dict[str, str]:
        """What its scores depend on besides files, see `BaseRecord`."""
        ...

    def score_base(self) -> BaseRecord:
        """Score the untouched base."""
        ...

    def run(
        self, recipe: Recipe, *, micro_batch: int | None = None
    ) -> "Iterator[StepMetrics | TrialOutcome]":
        """Yield the metrics of every step, and the outcome at the end.

        Args:
            recipe: What to train.
            micro_batch: The largest that has fitted into GPU memory in other trials; None if none
                of them has run out of it.
        """
        ...


# Ray Tune formats every result for its debug log, also where nothing logs it.
@dataclass(frozen=True, repr=False)
class WorkerReport:
    """What a worker reports to the driver about once per second."""

    metrics: "list[StepMetrics]"
    """The steps since the last report."""
    outcome: TrialOutcome | BaseRecord | None
    """How the trial ended, or the base's scores if the worker was asked for them; None before."""
    error: BaseNotScored | InvalidInput | OSError | None = None
    """What no trial can do without. It ends the search with this error."""
    environment: dict[str, str] | None = None
    """Of the runner, in the first report of a trial, before it is trained."""
