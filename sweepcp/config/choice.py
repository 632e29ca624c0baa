"""TODO config.choice."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat
from sweepcp.config.validation import ConfigModel


class ScalarWeights(ConfigModel):
    """How much one per cent of each scalar counts."""

    domain: PositiveFloat
    general: PositiveFloat


class ReferencePoint(ConfigModel):
    """The hypervolume's reference point in %: fixed per run. A trial that does not beat it adds nothing."""

    domain: Annotated[float, Field(allow_inf_nan=False)] = -10.0
    general: Annotated[float, Field(allow_inf_nan=False)] = -50.0


class ChoiceRule(ConfigModel):
    """How one trial of the front is chosen: exactly one of the three."""

    max_regression: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """Most domain gain among the trials whose `general` is at least minus this many per cent."""
    knee: Literal[True] | None = None
    """The trial farthest above the straight line between the front's two ends, both axes scaled to 0..1."""
    weights: ScalarWeights | None = None
    """The largest weighted sum of the two scalars."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "ChoiceRule":
        if sum(x is not None for x in (self.max_regression, self.knee, self.weights)) != 1:
            raise ValueError(
                "exactly one of max_regression, knee and weights chooses; fix: keep one, such as `max_regression: 1.0`"
            )
        return self

    def __str__(self) -> str:
        if self.max_regression is not None:
            return f"most domain gain, general regression ≤ {self.max_regression:g} %"
        if self.weights is not None:
            return f"largest {self.weights.domain:g} · domain + {self.weights.general:g} · general"
        return "knee of the front"
