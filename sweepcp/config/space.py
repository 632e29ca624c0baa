"""The search space: axes over recipe fields, anchors, and the recipe at a point of the space."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, model_validator

from sweepcp.config.recipe import RELATIVE_FIELDS, Mixture, Recipe, SourceShare, TrainingSettings
from sweepcp.config.types import FiniteFloat, Role
from sweepcp.config.validation import ConfigModel, describe_rule

Value = float | str
Point = dict[str, Value]
"""Axis → value."""
END_TOLERANCE = 0.02
"""Part of a range, on its scale, within which a value counts as at an end: samplers rarely propose
an end itself, and a value may differ from it by rounding."""


class Range(ConfigModel):
    """Numbers from `low` to `high`, evenly spread on a scale.

    The scale is linear, log, or sqrt (which resolves 0, 0.01 and 0.5 alike).
    """

    low: FiniteFloat
    """The lowest value."""
    high: FiniteFloat
    """The highest value."""
    scale: Literal["linear", "log", "sqrt"] = "linear"
    """Along which values are spread evenly."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"low {self.low:g} is below high {self.high:g} in a range, here it is not; "
                "fix: swap them, or use `choices: [value]` for one value"
            )
        if self.scale == "log" and self.low <= 0:
            raise ValueError(
                f"a log range starts above 0, not at {self.low:g}; "
                "fix: raise low, or use `scale: sqrt`"
            )
        if self.scale == "sqrt" and self.low < 0:
            raise ValueError(
                f"a sqrt range starts at 0 or above, not at {self.low:g}; fix: raise low"
            )
        return self

    def to_unit(self, value: float) -> float:
        """Return the position of a value on the scale of the range: 0 at `low`, 1 at `high`."""
        low, high = self._to_scale(self.low), self._to_scale(self.high)
        return (self._to_scale(value) - low) / (high - low)

    def from_unit(self, unit: float) -> float:
        """Return the value at a position in 0..1; 0 and 1 give `low` and `high` exactly."""
        if unit in (0.0, 1.0):
            return self.high if unit else self.low
        low, high = self._to_scale(self.low), self._to_scale(self.high)
        value = self._from_scale(low + unit * (high - low))
        # Rounding may lead just outside the range.
        return min(max(value, self.low), self.high)

    def is_at_end(self, value: Value) -> bool:
        """Return whether a value is at an end of the range, or within `END_TOLERANCE` of one."""
        if isinstance(value, str):
            return False
        unit = self.to_unit(value)
        return min(unit, 1 - unit) <= END_TOLERANCE

    def includes(self, value: Value) -> bool:
        """Return whether the range includes a value."""
        return not isinstance(value, str) and self.low <= value <= self.high

    def _to_scale(self, value: float) -> float:
        if self.scale == "log":
            return math.log(value)
        if self.scale == "sqrt":
            return math.sqrt(value)
        return value

    def _from_scale(self, scaled: float) -> float:
        if self.scale == "log":
            return math.exp(scaled)
        if self.scale == "sqrt":
            return scaled * scaled
        return scaled


class Choices(ConfigModel):
    """One of a few values."""

    choices: tuple[Value, ...] = Field(min_length=1)
    """The values."""

    def includes(self, value: Value) -> bool:
        """Return whether the choices include a value."""
        return value in self.choices


def _axis_tag(axis: Any) -> str:
    is_choices = "choices" in axis if isinstance(axis, dict) else isinstance(axis, Choices)
    return "<choices>" if is_choices else "<range>"


Axis = Annotated[
    Annotated[Range, Tag("<range>")] | Annotated[Choices, Tag("<choices>")],
    Discriminator(_axis_tag),
]
"""Told apart by a key, so that an error is one of the axis that is meant and not one of each."""


class Space(ConfigModel):
    """Axes over recipe fields, each a range or choices.

    A field without an axis keeps its value of `training`. `general_share` is the share of replay,
    the rest is domain; `non_english_share` is a share of the general share.
    """

    lr_fraction: Axis
    """Axis of the max LR, as a fraction of that of the base's own pretraining."""
    general_share: Axis
    """Axis of the share of replay; the rest is domain text."""
    non_english_share: Axis | None = None
    """Axis of the non-English share of the replay."""
    warmup: Axis | None = None
    """Axis of the share of the steps over which the LR rises."""
    warmup_steps: Axis | None = None
    """Axis of the steps over which the LR rises, in place of `warmup`; values of a range are
    rounded to whole steps."""
    schedule: Axis | None = None
    """Axis of the LR schedule."""
    final_fraction: Axis | None = None
    """Axis of the LR of the last step, as a fraction of the max LR."""
    min_lr: Axis | None = None
    """Axis of the LR of the last step, in place of `final_fraction`."""
    decay: Axis | None = None
    """Axis of the share of the steps over which a `wsd` or `wsd-1-sqrt` schedule falls."""
    weight_decay: Axis | None = None
    """Axis of AdamW's weight decay."""
    epsilon: Axis | None = None
    """Axis of AdamW's epsilon."""
    clip: Axis | None = None
    """Axis of the maximum norm of the gradient."""
    anchors: tuple[Point, ...] = ()
    """Points to try first, in this order; each names every axis."""

    @property
    def axes(self) -> dict[str, Axis]:
        """The axes by their names, in the order of the fields."""
        names = [name for name in type(self).model_fields if name != "anchors"]
        return {name: axis for name in names if (axis := getattr(self, name)) is not None}

    def bounds(self, name: str) -> tuple[float, float]:
        """Return the lowest and the highest value of an axis over numbers."""
        axis = self.axes[name]
        if isinstance(axis, Range):
            return axis.low, axis.high
        values = [float(value) for value in axis.choices]
        return min(values), max(values)

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        for absolute, relative in RELATIVE_FIELDS.items():
            if {absolute, relative} <= self.axes.keys():
                raise ValueError(
                    f"{relative} and {absolute} exclude each other; fix: remove one of the axes"
                )
        for name, axis in self.axes.items():
            values = [axis.low, axis.high] if isinstance(axis, Range) else axis.choices
            for value in values:
                _check_recipe_value(name, value)
        for anchor in self.anchors:
            self._check_anchor(anchor)
        return self

    def _check_anchor(self, anchor: Point) -> None:
        if set(anchor) != set(self.axes):
            raise ValueError(
                f"an anchor names every axis ({', '.join(self.axes)}), "
                f"this one names {', '.join(anchor)}; fix: complete the anchor"
            )
        for name, value in anchor.items():
            if not self.axes[name].includes(value):
                raise ValueError(
                    f"anchor {name}: {value} is outside its axis; "
                    "fix: widen the axis or move the anchor"
                )


class WeightedSource(ConfigModel):
    """A source as a mixture needs it. `weight` is its part of its role, in any unit."""

    name: str
    role: Role
    language: str
    weight: float = Field(gt=0)


def mixture_from_weights(
    sources: list[WeightedSource], *, general_share: float, non_english_share: float | None = None
) -> Mixture:
    """Split the shares of the roles among their sources in proportion to the weights.

    Args:
        sources: All sources of the experiment.
        general_share: The share of general sources, 0 to 1; the rest is domain.
        non_english_share: The share of sources that are not English in the general share, 0 to 1;
            None to split the general share by weight only.

    Raises:
        ValueError: A share above 0 has no source to come from.
    """
    general = [source for source in sources if source.role == "general"]
    groups = [(1 - general_share, [source for source in sources if source.role == "domain"])]
    if non_english_share is None:
        groups.append((general_share, general))
    else:
        english = [source for source in general if source.language == "en"]
        others = [source for source in general if source.language != "en"]
        groups.append((general_share * (1 - non_english_share), english))
        groups.append((general_share * non_english_share, others))
    portions: list[SourceShare] = []
    for share, group in groups:
        if share > 0 and not group:
            raise ValueError(
                f"a share of {share:g} has no source to come from; "
                "fix: add a source or set the share to 0"
            )
        portions += _split_by_weight(share, group)
    return Mixture(portions=tuple(portions))


def recipe_at(
    point: Point,
    sources: list[WeightedSource],
    training: TrainingSettings,
    *,
    tokens: int,
    seed: int,
) -> Recipe:
    """Return the recipe at a point of the space: the values of the point over those of `training`.

    Args:
        point: Axis → value.
        sources: All sources of the experiment.
        training: Values of the fields that have no axis.
        tokens: Training tokens of the recipe.
        seed: Seed of its data order.
    """
    values: dict[str, Any] = dict(point)
    mixture = mixture_from_weights(
        sources,
        general_share=values.pop("general_share"),
        non_english_share=values.pop("non_english_share", None),
    )
    fixed = {name: getattr(training, name) for name in TrainingSettings.model_fields}
    for absolute, relative in RELATIVE_FIELDS.items():
        if absolute in values:
            fixed[relative] = None
    if "warmup_steps" in values:
        values["warmup_steps"] = round(values["warmup_steps"])
    return Recipe.model_validate(
        fixed | values | {"mixture": mixture, "tokens": tokens, "seed": seed}
    )


def _split_by_weight(share: float, sources: list[WeightedSource]) -> list[SourceShare]:
    total = math.fsum(source.weight for source in sources)
    return [
        SourceShare(
            source=source.name,
            role=source.role,
            language=source.language,
            share=share * source.weight / total,
        )
        for source in sources
    ]


class _PointFields(BaseModel):
    """Axes that are not fields of `TrainingSettings`, or of another type."""

    lr_fraction: float = Field(gt=0)
    general_share: float = Field(ge=0, le=1)
    non_english_share: float = Field(ge=0, le=1)
    # A number like all values of axes; a recipe has whole steps.
    warmup_steps: float = Field(ge=1, multiple_of=1)


def _check_recipe_value(name: str, value: Value) -> None:
    """Raise `ValueError` if a recipe cannot have a value in a field."""
    model = _PointFields if name in _PointFields.model_fields else TrainingSettings
    # There is no recipe yet. Assigning to an unchecked instance checks this field alone.
    absent = {RELATIVE_FIELDS[name]: None} if name in RELATIVE_FIELDS else {}
    instance = model.model_construct(seq_len=2, batch_tokens=2, **absent)
    try:
        model.__pydantic_validator__.validate_assignment(instance, name, value)
    except ValidationError as error:
        raise ValueError(
            f"{name} cannot be {value!r}: it must be {describe_rule(error.errors()[0])}; "
            "fix: change the range or the choices"
        ) from None
