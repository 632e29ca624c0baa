"""The recipe of a continued-pretraining run, and its mixture of sources."""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field, model_validator

from sweepcp.config.schedule import Schedule, lr_factor
from sweepcp.config.types import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Role,
    WarmupFraction,
)
from sweepcp.config.validation import ConfigModel
from sweepcp.util.json_values import digest


class SourceShare(ConfigModel):
    """The share of one source in a mixture."""

    source: str
    role: Role
    language: str
    share: Fraction


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

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        check_shares(portion.share for portion in self.portions)
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
    """How a run steps, whatever its length, batch size and sequence length."""

    schedule: Schedule = "cosine"
    warmup: WarmupFraction = 0.1
    """Share of the steps over which the LR rises linearly."""
    final_fraction: Fraction = 0.1
    """LR of the last step as a fraction of the max LR."""
    decay: Fraction = 0.2
    """Share of the steps over which a `wsd` schedule falls."""
    weight_decay: NonNegativeFloat = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    cross_documents: bool = False
    """Whether a packed document attends to those before it in its sequence, and predicts the start
    of the next."""


class TrainingSettings(TrainingMethod):
    """How a run steps, whatever its length: what a recipe takes from the experiment file."""

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
    mixture: Mixture
    tokens: PositiveInt
    seed: int = 0

    @model_validator(mode="after")
    def _check_whole_steps(self) -> Self:
        if self.tokens % self.batch_tokens:
            nearest = nearest_multiple(self.tokens, unit=self.batch_tokens)
            raise ValueError(
                f"tokens {self.tokens} is not a multiple of batch_tokens {self.batch_tokens}; "
                f"fix: use {nearest}"
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
    def warmup_steps(self) -> int:
        """Steps over which the LR rises, as `lr_factor` counts them."""
        return round(self.warmup * self.steps)

    @property
    def decay_steps(self) -> int:
        """Steps over which a `wsd` schedule falls, as `lr_factor` counts them."""
        return min(round(self.decay * self.steps), self.steps - self.warmup_steps)

    @property
    def sequences(self) -> int:
        """Sequences per batch."""
        return self.batch_tokens // self.seq_len

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
            warmup=self.warmup,
            final=self.final_fraction,
            decay=self.decay,
        )
        return self.lr_fraction * max_lr * factor
