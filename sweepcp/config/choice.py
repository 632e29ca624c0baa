"""How one trial of the Pareto front is chosen, and where the hypervolume is measured from."""

from typing import Literal, Self

from pydantic import model_validator

from sweepcp.config.types import FiniteFloat, NonNegativeFloat, PositiveFloat
from sweepcp.config.validation import ConfigModel


class ScalarWeights(ConfigModel):
    """How much one per cent of each scalar counts."""

    domain: PositiveFloat
    """Of the domain scalar."""
    general: PositiveFloat
    """Of the general scalar."""


class ReferencePoint(ConfigModel):
    """The hypervolume's reference point in %, fixed per run.

    A trial that does not exceed it in both scalars adds nothing to the hypervolume.
    """

    domain: FiniteFloat = -10.0
    """In %. The sampler is told this score of a diverged trial."""
    general: FiniteFloat = -50.0
    """In %. The sampler is told this score of a diverged trial."""


class ChoiceRule(ConfigModel):
    """How one trial of the front is chosen: exactly one of the three."""

    max_regression: NonNegativeFloat | None = None
    """Most domain gain among the trials whose `general` is at least minus this many per cent."""
    knee: Literal[True] | None = None
    """The trial farthest above the straight line between the two ends of the front, both axes
    scaled to 0..1."""
    weights: ScalarWeights | None = None
    """The largest weighted sum of the two scalars."""

    @model_validator(mode="after")
    def _check_exactly_one(self) -> Self:
        rules = (self.max_regression, self.knee, self.weights)
        if sum(rule is not None for rule in rules) != 1:
            raise ValueError(
                "exactly one of max_regression, knee and weights chooses; "
                "fix: keep one, such as `max_regression: 1.0`"
            )
        return self

    def __str__(self) -> str:
        if self.max_regression is not None:
            return f"most domain gain, general regression ≤ {self.max_regression:g} %"
        if self.weights is not None:
            return f"largest {self.weights.domain:g} · domain + {self.weights.general:g} · general"
        return "knee of the front"
