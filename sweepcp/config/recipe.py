"""What a continued-pretraining run does: the recipe and its mixture."""

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated

from pydantic import Field, model_validator

from sweepcp.config.schedule import Schedule, lr_factor
from sweepcp.config.types import Fraction, PositiveFloat, Role
from sweepcp.config.validation import ConfigModel
from sweepcp.util.json_values import digest


class SourceShare(ConfigModel):
    """One source's share of a mixture."""

    source: str
    role: Role
    language: str
    share: Fraction


def check_shares(shares: Iterable[float]) -> None:
    """Raise `ValueError` unless the shares sum to 1, to 1e-9."""
    total = math.fsum(shares)
    if abs(total - 1) > 1e-9:
        raise ValueError(
            f"the shares of a mixture sum to 1, these sum to {total:.10g}; fix: correct the shares"
        )


class Mixture(ConfigModel):
    """Source → share of the tokens that are trained on. Shares sum to 1 (to 1e-9) or the mixture is refused."""

    portions: tuple[SourceShare, ...]

    @model_validator(mode="after")
    def _whole(self) -> "Mixture":
        check_shares(p.share for p in self.portions)
        return self

    def share(self, role: Role) -> float:
        """The share of tokens that come from sources of a role."""
        return math.fsum(p.share for p in self.portions if p.role == role)

    @property
    def non_english_share(self) -> float:
        """The part of the general share whose sources are not English (0 when there is no general share)."""
        foreign = math.fsum(
            p.share for p in self.portions if p.role == "general" and p.language != "en"
        )
        return foreign / self.share("general") if foreign else 0.0


class TrainingMethod(ConfigModel):
    """How a run steps, whatever its length, batch and sequences."""

    schedule: Schedule = "cosine"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the LR rises linearly."""
    final_fraction: Fraction = 0.1
    """LR of the last step as a fraction of the max LR."""
    decay: Fraction = 0.2
    """Share of the steps over which a `wsd` schedule falls."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    clip: PositiveFloat = 1.0
    """Maximum norm of the gradient."""
    cross_documents: bool = False
    """Whether a packed document attends to those before it in its sequence, and predicts the start of the next."""


class TrainingSettings(TrainingMethod):
    """How a run steps, whatever its length: what a recipe takes from the experiment file."""

    seq_len: Annotated[int, Field(ge=2)]
    """Tokens in a sequence."""
    batch_tokens: Annotated[int, Field(ge=1)]
    """Tokens in one optimizer step, a multiple of `seq_len`."""

    @model_validator(mode="after")
    def _whole_sequences(self) -> "TrainingSettings":
        if self.batch_tokens % self.seq_len:
            near = max(1, round(self.batch_tokens / self.seq_len)) * self.seq_len
            raise ValueError(
                f"batch_tokens {self.batch_tokens} is not a multiple of seq_len {self.seq_len}; fix: use {near}"
            )
        return self


class Recipe(TrainingSettings):
    """Everything that decides the weights of a run besides the base and the texts.

    `lr_fraction` is the max LR as a fraction of the base model's own pretraining max LR.
    """

    lr_fraction: PositiveFloat
    mixture: Mixture
    tokens: Annotated[int, Field(ge=1)]
    seed: int = 0

    @model_validator(mode="after")
    def _whole_steps(self) -> "Recipe":
        if self.tokens % self.batch_tokens:
            near = max(1, round(self.tokens / self.batch_tokens)) * self.batch_tokens
            raise ValueError(
                f"tokens {self.tokens} is not a multiple of batch_tokens {self.batch_tokens}; fix: use {near}"
            )
        return self

    @property
    def domain_share(self) -> float:
        return self.mixture.share("domain")

    @property
    def general_share(self) -> float:
        return self.mixture.share("general")

    @cached_property
    def id(self) -> str:
        """16 hex digits that two recipes share if and only if they are the same."""
        return digest(self.model_dump(mode="json"))

    @property
    def steps(self) -> int:
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
        """Sequences in one batch."""
        return self.batch_tokens // self.seq_len

    def lr(self, step: int, max_lr: float) -> float:
        """The learning rate of optimizer step `step` (1 to `steps`) for a base pretrained with `max_lr`."""
        factor = lr_factor(
            step, self.steps, self.schedule, self.warmup, self.final_fraction, self.decay
        )
        return self.lr_fraction * max_lr * factor
