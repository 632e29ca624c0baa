"""The recipe of a continued-pretraining run, and its mixture of sources."""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sweepcp.config.schedule import Schedule, lr_factor
from sweepcp.config.types import (
    DecayRate,
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Role,
    SafeName,
    WarmupFraction,
)
from sweepcp.config.validation import ConfigModel
from sweepcp.util.json_values import digest

RELATIVE_FIELDS = {"warmup_steps": "warmup", "min_lr": "final_fraction"}
"""Absolute number → the relative one that it stands in place of."""
DEFAULT_EPSILON = 1e-8


def _is_none(value: object) -> bool:
    return value is None


def _is_default_epsilon(value: float) -> bool:
    return value == DEFAULT_EPSILON


def _alternative_to(absolute: str, *, default: float) -> Any:
    """Return a field that is None where `absolute`, declared before it, has a value."""

    def default_value(validated: dict[str, Any]) -> float | None:
        return default if validated.get(absolute) is None else None

    return Field(default_factory=default_value, json_schema_extra={"default": default})


class SourceShare(ConfigModel):
    """The share of one source in a mixture."""

    source: SafeName
    """Name of the source."""
    role: Role
    """Its role: `domain` or `general`."""
    language: str
    """Its language."""
    share: Fraction
    """Its share of the training tokens."""


def check_shares(shares: Iterable[float]) -> None:
    """Raise `ValueError` unless the shares sum to 1, within 1e-9."""
    total = math.fsum(shares)
    if abs(total - 1) > 1e-9:
        raise ValueError(
            f"the shares of a mixture sum to 1, these sum to {total:.10g}; fix: correct the shares"
        )


def nearest_multiple(value: int, *, unit: int) -> int:
    """Return the positive multiple of `unit` that is nearest to `value`."""
    return max(1, round(value / unit)) * unit


class Mixture(ConfigModel):
    """Source → share of the training tokens. The shares sum to 1, within 1e-9."""

    portions: tuple[SourceShare, ...]
    """The sources with their shares."""

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        check_shares(portion.share for portion in self.portions)
        names = [portion.source for portion in self.portions]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"a source has one share; {repeated[0]} has more; fix: add them up")
        return self

    def share(self, role: Role) -> float:
        """Return the share of tokens that come from sources of a role."""
        return math.fsum(portion.share for portion in self.portions if portion.role == role)

    @property
    def non_english_share(self) -> float:
        """The share of non-English sources in the general share; 0 without a general share."""
        non_english = math.fsum(
            portion.share
            for portion in self.portions
            if portion.role == "general" and portion.language != "en"
        )
        return non_english / self.share("general") if non_english else 0.0


class TrainingMethod(ConfigModel):
    """How a run of any length, batch size and sequence length steps.

    Fields that were added later are left out of JSON where they have their default, so that hashes
    of recipes, and of all that has a recipe in it, are what they were before.
    """

    schedule: Schedule = "cosine"
    """How the LR changes after warmup: `cosine`, `linear`, `constant`, `wsd` (held, then a linear
    fall) or `wsd-1-sqrt` (held, then a fall that is steep first)."""
    warmup_steps: PositiveInt | None = Field(default=None, exclude_if=_is_none)
    """Steps over which the LR rises linearly, in place of `warmup`: the same number at any
    scale."""
    warmup: WarmupFraction | None = _alternative_to("warmup_steps", default=0.1)
    """Share of the steps over which the LR rises linearly."""
    min_lr: PositiveFloat | None = Field(default=None, exclude_if=_is_none)
    """LR of the last step, in place of `final_fraction`: the same number for any max LR."""
    final_fraction: Fraction | None = _alternative_to("min_lr", default=0.1)
    """LR of the last step as a fraction of the max LR."""
    decay: Fraction = 0.2
    """Share of the steps over which a `wsd` or `wsd-1-sqrt` schedule falls."""
    weight_decay: NonNegativeFloat = 0.1
    """Of AdamW."""
    betas: tuple[DecayRate, DecayRate] = (0.9, 0.95)
    """Of AdamW: the decay rates of the first and the second moment."""
    epsilon: PositiveFloat = Field(default=DEFAULT_EPSILON, exclude_if=_is_default_epsilon)
    """Of AdamW: added to the root of the second moment."""
    clip: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    cross_documents: bool = False
    """Whether a packed document attends to those before it in its sequence, and predicts the start
    of the next."""

    @model_validator(mode="after")
    def _check_alternatives(self) -> Self:
        for absolute, relative in RELATIVE_FIELDS.items():
            values = getattr(self, absolute), getattr(self, relative)
            if None not in values:
                raise ValueError(
                    f"{relative} and {absolute} exclude each other; "
                    "fix: remove one, or set it to null"
                )
            if values == (None, None):
                raise ValueError(f"{relative} or {absolute} is stated; fix: add one of them")
        return self


class TrainingSettings(TrainingMethod):
    """How a run of any length steps: what a recipe takes from the experiment file."""

    seq_len: Annotated[int, Field(ge=2)]
    """Tokens per sequence."""
    batch_tokens: PositiveInt
    """Tokens per optimizer step, a multiple of `seq_len`."""

    @model_validator(mode="after")
    def _check_whole_sequences(self) -> Self:
        if self.batch_tokens % self.seq_len:
            nearest = nearest_multiple(self.batch_tokens, unit=self.seq_len)
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of seq_len {self.seq_len}; "
                f"fix: use {nearest}"
            )
        return self


class Recipe(TrainingSettings):
    """Everything that decides the weights of a run besides the base model and the sources.

    `lr_fraction` is the max LR as a fraction of the base model's own pretraining max LR.
    """

    lr_fraction: PositiveFloat
    """The max LR as a fraction of that of the base's own pretraining."""
    mixture: Mixture
    """Share of the tokens of each source."""
    tokens: PositiveInt
    """Training tokens, a multiple of `batch_tokens`."""
    seed: int = 0
    """Of the data order."""

    @model_validator(mode="after")
    def _check_whole_steps(self) -> Self:
        if self.tokens % self.batch_tokens:
            nearest = nearest_multiple(self.tokens, unit=self.batch_tokens)
            raise ValueError(
                f"tokens {self.tokens} is not a multiple of batch_tokens {self.batch_tokens}; "
                f"fix: use {nearest}"
            )
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps {self.warmup_steps} is not below the {self.steps} steps of the run; "
                "fix: lower warmup_steps"
            )
        return self

    @property
    def domain_share(self) -> float:
        """The share of tokens that come from domain sources."""
        return self.mixture.share("domain")

    @property
    def general_share(self) -> float:
        """The share of tokens that come from general sources."""
        return self.mixture.share("general")

    @cached_property
    def id(self) -> str:
        """16 hex digits that two recipes share if and only if they are equal."""
        return digest(self.model_dump(mode="json"))

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.tokens // self.batch_tokens

    @property
    def warmup_length(self) -> int:
        """Steps over which the LR rises: `warmup_steps`, or those of `warmup`, rounded."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        return round((self.warmup or 0.0) * self.steps)

    @property
    def decay_steps(self) -> int:
        """Steps over which a `wsd` schedule falls; none of them is one of the warmup."""
        return min(round(self.decay * self.steps), self.steps - self.warmup_length)

    @property
    def sequences(self) -> int:
        """Sequences per batch."""
        return self.batch_tokens // self.seq_len

    def final_factor(self, *, max_lr: float) -> float:
        """Return the factor on the run's max LR that the schedule falls to.

        Args:
            max_lr: The max LR of the base model's pretraining.
        """
        if self.min_lr is not None:
            return self.min_lr / (self.lr_fraction * max_lr)
        return self.final_fraction or 0.0

    def lr(self, step: int, *, max_lr: float) -> float:
        """Return the learning rate of an optimizer step.

        Args:
            step: The optimizer step, 1 to `steps`.
            max_lr: The max LR of the base model's pretraining.
        """
        factor = lr_factor(
            step,
            steps=self.steps,
            schedule=self.schedule,
            warmup_steps=self.warmup_length,
            decay_steps=self.decay_steps,
            final=self.final_factor(max_lr=max_lr),
        )
        return self.lr_fraction * max_lr * factor
