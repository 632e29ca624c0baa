"""The schema of the experiment file."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.budget import Budget
from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.config.json_schema import described_schema
from sweepcp.config.recipe import Recipe, TrainingSettings
from sweepcp.config.source import Source
from sweepcp.config.space import Point, Space, WeightedSource, recipe_at
from sweepcp.config.suites import Suites
from sweepcp.config.types import Attention, PositiveInt, SafeName
from sweepcp.config.validation import ConfigModel


def _check_micro_batch(value: Any) -> Any:
    # Runs of earlier versions recorded the whole batch as null.
    if value is None or value == "auto":
        return "auto"
    # One rule for the whole value, rather than one for each type that it may have.
    if type(value) is not int or value < 1:
        raise ValueError(
            "auto, or an integer of at least 1; fix: write auto, or the number of sequences per "
            "forward pass"
        )
    return value


class TrainingSection(TrainingSettings):
    """The fields of a recipe that trials share, and how a step is computed."""

    micro_batch: Annotated[PositiveInt | Literal["auto"], BeforeValidator(_check_micro_batch)] = (
        "auto"
    )
    """Sequences per forward pass. `auto`: the batch, halved until the estimated memory fits; and
    halved again when a trial runs out of GPU memory, which the trials after it remember. It may
    change when a search resumes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the computation; weights are fp32. `auto`: bf16 on a GPU that computes in it, else
    fp32."""
    attention: Attention = "auto"
    """Implementation of attention. `auto`: on a GPU in bf16 the first of flash_attention_2 (if
    installed), varlen (PyTorch's own) and sdpa that the model supports, and varlen on a CPU for
    isolated documents in sequences of 512 tokens or more; elsewhere sdpa."""
    recompute: bool = False
    """Activation checkpointing: keep only the input of each layer, and recompute its activations
    in the backward pass. It may change when a search resumes."""
    compile: bool = False
    """Whether each worker compiles the layers of the model (`torch.compile`) before its first
    trial."""


class ChoiceSection(ChoiceRule):
    """The rule of choice, and the hypervolume's reference point."""

    reference: ReferencePoint = ReferencePoint()
    """The hypervolume's reference point."""


class TargetBudget(ConfigModel):
    """The full run that trials stand for, as far as repetition of the sources is concerned."""

    tokens: PositiveInt
    """Tokens of the full run."""
    source_tokens: dict[str, PositiveInt] = Field(default_factory=dict)
    """Source → its training tokens there, where the target's corpus is larger than the one here."""
    match_repetition: bool = False
    """Whether trials see only a part of each source, so that they repeat it as often as the full
    run will."""


class Experiment(ConfigModel):
    """An experiment file. Paths in it are relative to the file."""

    name: SafeName
    """Names the run folder: `runs/<name>` by default."""
    seed: int = 0
    """Of the proposals and of every trial's data order."""
    base: BaseSpec
    """The model that every trial starts from."""
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """The corpora."""
    suites: Suites
    """What trials are scored on."""
    space: Space
    """Inline, or the name or path of a search space file."""
    training: TrainingSection
    """What trials have in common."""
    budget: Budget
    """How many trials run, and on what."""
    target: TargetBudget | None = None
    """The full run that trials stand for, to compare how often each source is read."""
    choose: ChoiceSection
    """How one trial of the front is chosen."""

    def weighted_sources(self, source_tokens: dict[str, float]) -> list[WeightedSource]:
        """Return the sources with their weights: as stated, or their training tokens."""
        return [
            WeightedSource(
                name=source.name,
                role=source.role,
                language=source.language,
                weight=source.weight or source_tokens[source.name],
            )
            for source in self.sources
        ]

    def recipe_at(self, point: Point, source_tokens: dict[str, float]) -> Recipe:
        """Return the recipe of a trial at a point of the space.

        Args:
            point: A value for every axis.
            source_tokens: Source → its training tokens.
        """
        return recipe_at(
            point,
            self.weighted_sources(source_tokens),
            self.training,
            tokens=self.budget.tokens,
            seed=self.seed,
        )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of experiment files, for editors."""
    schema = described_schema(Experiment)
    # `parse_experiment` replaces the name of a search space file by the file's content.
    schema["properties"]["space"] = {"anyOf": [schema["properties"]["space"], {"type": "string"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
