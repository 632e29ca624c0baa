"""What may vary: ranges over recipe fields, the anchors to try first, and the recipe that a point stands for."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, model_validator

from sweepcp.config.recipe import Mixture, Recipe, SourceShare, TrainingSettings
from sweepcp.config.types import Role
from sweepcp.config.validation import ConfigModel

Value = float | str
Point = dict[str, Value]
Number = Annotated[float, Field(allow_inf_nan=False)]


class Range(ConfigModel):
    """Numbers from `low` to `high`, evenly spread on a scale: linear, log, or sqrt (resolves 0, 0.01 and 0.5 alike)."""

    low: Number
    high: Number
    scale: Literal["linear", "log", "sqrt"] = "linear"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"low {self.low:g} is below high {self.high:g} in a range, here it is not; "
                "fix: swap them, or use `choices: [value]` for one value"
            )
        if self.scale == "log" and self.low <= 0:
            raise ValueError(
                f"a log range starts above 0, not at {self.low:g}; fix: raise low, or use `scale: sqrt`"
            )
        if self.scale == "sqrt" and self.low < 0:
            raise ValueError(
                f"a sqrt range starts at 0 or above, not at {self.low:g}; fix: raise low"
            )
        return self

    def _bend(self, value: float) -> float:
        if self.scale == "log":
            return math.log(value)
        return math.sqrt(value) if self.scale == "sqrt" else value

    def to_unit(self, value: float) -> float:
        """Where in 0..1 a value of the range stands on its scale."""
        low, high = self._bend(self.low), self._bend(self.high)
        return (self._bend(value) - low) / (high - low)

    def from_unit(self, unit: float) -> float:
        """The value at `unit` in 0..1; 0 and 1 give `low` and `high` exactly."""
        if unit in (0.0, 1.0):
            return self.high if unit else self.low
        low, high = self._bend(self.low), self._bend(self.high)
        bent = low + unit * (high - low)
        value = (
            math.exp(bent) if self.scale == "log" else bent * bent if self.scale == "sqrt" else bent
        )
        return min(max(value, self.low), self.high)

    def holds(self, value: Value) -> bool:
        return not isinstance(value, str) and self.low <= value <= self.high


class Choices(ConfigModel):
    """One of a few values."""

    choices: tuple[Value, ...] = Field(min_length=1)

    def holds(self, value: Value) -> bool:
        return value in self.choices


def _kind(axis: Any) -> str:
    chosen = "choices" in axis if isinstance(axis, dict) else isinstance(axis, Choices)
    return "<choices>" if chosen else "<range>"


Axis = Annotated[
    Annotated[Range, Tag("<range>")] | Annotated[Choices, Tag("<choices>")],
    Discriminator(_kind),
]


class Space(ConfigModel):
    """Axes over recipe fields, each a range or choices; what has no axis keeps the value of `training`.

    `general_share` is the share of replay, the rest is domain; `non_english_share` is a share of the general share.
    """

    lr_fraction: Axis
    general_share: Axis
    non_english_share: Axis | None = None
    warmup: Axis | None = None
    schedule: Axis | None = None
    final_fraction: Axis | None = None
    decay: Axis | None = None
    weight_decay: Axis | None = None
    clip: Axis | None = None
    anchors: tuple[Point, ...] = ()
    """Points to try first, in this order; each names every axis."""

    @property
    def axes(self) -> dict[str, Axis]:
        own = {name: getattr(self, name) for name in type(self).model_fields if name != "anchors"}
        return {name: axis for name, axis in own.items() if axis is not None}

    @model_validator(mode="after")
    def _values_within_bounds(self) -> Self:
        for name, axis in self.axes.items():
            ends = [axis.low, axis.high] if isinstance(axis, Range) else list(axis.choices)
            for value in ends:
                _check_field(name, value)
        for anchor in self.anchors:
            if set(anchor) != set(self.axes):
                raise ValueError(
                    f"an anchor names every axis ({', '.join(self.axes)}), this one names {', '.join(anchor)}; "
                    "fix: complete the anchor"
                )
            for name, value in anchor.items():
                if not self.axes[name].holds(value):
                    raise ValueError(
                        f"anchor {name}: {value} is outside its axis; fix: widen the axis or move the anchor"
                    )
        return self


class _Bounds(BaseModel):
    """What the fields of a point may hold, before there is a recipe."""

    lr_fraction: float = Field(gt=0)
    general_share: float = Field(ge=0, le=1)
    non_english_share: float = Field(ge=0, le=1)


def _check_field(name: str, value: Any) -> None:
    owner = _Bounds if name in _Bounds.model_fields else TrainingSettings
    try:
        owner.__pydantic_validator__.validate_assignment(
            owner.model_construct(seq_len=2, batch_tokens=2), name, value
        )
    except ValueError as error:
        message = str(error).splitlines()[2].strip().split(" [type")[0]
        raise ValueError(
            f"{name} cannot be {value!r}: {message}; fix: change the range or the choices"
        ) from None


class WeightedSource(ConfigModel):
    """What a mixture needs to know of a source; `weight` is its part of its role, in any unit."""

    name: str
    role: Role
    language: str
    weight: float = Field(gt=0)


def mixture_from_weights(
    sources: list[WeightedSource], general_share: float, non_english_share: float | None = None
) -> Mixture:
    """Split the roles' shares over their sources in proportion to the weights.

    With `non_english_share` the general share is first split into its English and other sources. Raises
    `ValueError` when a share above 0 has no source to go to.
    """
    groups: list[tuple[float, list[WeightedSource]]] = [
        (1 - general_share, [s for s in sources if s.role == "domain"])
    ]
    general = [s for s in sources if s.role == "general"]
    if non_english_share is None:
        groups.append((general_share, general))
    else:
        groups.append(
            (general_share * (1 - non_english_share), [s for s in general if s.language == "en"])
        )
        groups.append(
            (general_share * non_english_share, [s for s in general if s.language != "en"])
        )
    portions = []
    for share, members in groups:
        if share > 0 and not members:
            raise ValueError(
                f"a share of {share:g} has no source to come from; fix: add a source or set the share to 0"
            )
        total = math.fsum(s.weight for s in members)
        portions += [
            SourceShare(
                source=s.name, role=s.role, language=s.language, share=share * s.weight / total
            )
            for s in members
        ]
    return Mixture(portions=tuple(portions))


def recipe_at(
    point: Point, sources: list[WeightedSource], training: TrainingSettings, tokens: int, seed: int
) -> Recipe:
    """The recipe that a point of the space stands for: its values over those of `training`."""
    values: dict[str, Any] = dict(point)
    mixture = mixture_from_weights(
        sources, values.pop("general_share"), values.pop("non_english_share", None)
    )
    own = {name: getattr(training, name) for name in TrainingSettings.model_fields}
    return Recipe.model_validate(
        own | values | {"mixture": mixture, "tokens": tokens, "seed": seed}
    )
