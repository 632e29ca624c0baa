"""TODO config.experiment."""

from typing import Annotated, Any, Literal

from pydantic import Field

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.budget import Budget
from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.config.recipe import Recipe, TrainingSettings
from sweepcp.config.source import Source
from sweepcp.config.space import Point, Space, WeightedSource, recipe_at
from sweepcp.config.suites import Suites
from sweepcp.config.validation import ConfigModel


class TrainingSection(TrainingSettings):
    """The fields of a recipe that trials share, and how a step is computed."""

    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Sequences in one forward pass; by default the whole batch."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """What a step computes in; weights are fp32. `auto`: bf16 on a GPU, fp32 on a CPU."""


class ChoiceSection(ChoiceRule):
    """The rule of choice, and the hypervolume's reference point."""

    reference: ReferencePoint = ReferencePoint()


class TargetBudget(ConfigModel):
    """The run that trials stand for, as far as repetition goes."""

    tokens: Annotated[int, Field(ge=1)]
    source_tokens: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Source → its training tokens there, where the target's corpus is larger than the one here."""
    match_repetition: bool = False
    """Let trials see only so much of each source that they repeat it as often as the target's run will."""


class Experiment(ConfigModel):
    """An experiment file. Paths in it are relative to the file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: int = 0
    """Of the proposals and of every trial's data order."""
    base: BaseSpec
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    suites: Suites
    space: Space
    """Inline, or the name or path of a file of search spaces (which `load_experiment` reads first)."""
    training: TrainingSection
    budget: Budget
    target: TargetBudget | None = None
    choose: ChoiceSection

    def weighted(self, tokens: dict[str, float]) -> list[WeightedSource]:
        """The sources with their weights: as stated, or by their training tokens."""
        return [
            WeightedSource(
                name=s.name, role=s.role, language=s.language, weight=s.weight or tokens[s.name]
            )
            for s in self.sources
        ]

    def recipe(self, point: Point, tokens: dict[str, float]) -> Recipe:
        """The recipe of a trial at a point of the space; `tokens` are the sources' training tokens."""
        return recipe_at(point, self.weighted(tokens), self.training, self.budget.tokens, self.seed)


def json_schema() -> dict[str, Any]:
    """The JSON schema of experiment files, for editors."""
    schema = Experiment.model_json_schema()
    schema["properties"]["space"] = {"anyOf": [schema["properties"]["space"], {"type": "string"}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema
