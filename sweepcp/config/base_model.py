"""The `base` section of an experiment: the model that trials continue to train."""

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from sweepcp.config.model_dimensions import ModelDimensions
from sweepcp.config.recipe import TrainingSettings, check_shares, nearest_multiple
from sweepcp.config.types import Fraction, HubId, PositiveFloat, PositiveInt, Revision
from sweepcp.config.validation import ConfigModel


class PretrainSpec(ConfigModel):
    """A small base model that is built from a configuration and trained on the sources."""

    config: dict[str, Any]
    """A transformers configuration with its `model_type`; `vocab_size` and special tokens come from
    the tokenizer."""
    tokenizer: str = "bytes"
    """`bytes` (256 bytes, BOS, EOS), or a folder or hub id of a tokenizer."""
    mixture: Annotated[dict[str, Fraction], Field(min_length=1)]
    """Source → share of the tokens; sums to 1."""
    tokens: PositiveInt
    """Tokens that the base is pretrained on, a multiple of `training.batch_tokens`."""
    training: TrainingSettings
    """How its pretraining steps."""
    seed: int = 0
    """Of its initial weights and of the order of its data."""

    @field_validator("mixture")
    @classmethod
    def _check_mixture(cls, mixture: dict[str, float]) -> dict[str, float]:
        check_shares(mixture.values())
        return mixture

    @model_validator(mode="after")
    def _check_config_and_tokens(self) -> Self:
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError(
                "a transformers configuration names its model_type; fix: add `model_type: llama`"
            )
        batch_tokens = self.training.batch_tokens
        if self.tokens % batch_tokens:
            nearest = nearest_multiple(self.tokens, unit=batch_tokens)
            raise ValueError(
                f"tokens {self.tokens} is not a multiple of batch_tokens {batch_tokens}; "
                f"fix: use {nearest}"
            )
        return self


class BaseSpec(ConfigModel):
    """The base model: exactly one of `path`, `hub` and `pretrain`."""

    path: str | None = None
    """A folder with config.json, safetensors and tokenizer, relative to the experiment file."""
    hub: HubId | None = None
    """A model hub's id, such as `HuggingFaceTB/SmolLM2-135M`."""
    revision: Revision | None = None
    """Of `hub`: a commit, tag or branch. Name a commit, so that every worker and every resumed
    search loads the same model."""
    pretrain: PretrainSpec | None = None
    """Pretrain the base model first; it is cached by a hash of this section and its sources."""
    max_lr: PositiveFloat
    """The max LR of the base's own pretraining, which recipes take a fraction of."""
    parameters: PositiveInt | None = None
    """For the cost estimate of `plan`, where the model is not on this machine."""
    shape: ModelDimensions | None = None
    """Of a `hub` model, in place of `parameters`: `plan` then estimates the memory of a trial,
    too."""

    @model_validator(mode="after")
    def _check_exactly_one(self) -> Self:
        origins = (self.path, self.hub, self.pretrain)
        if sum(origin is not None for origin in origins) != 1:
            raise ValueError("a base has exactly one of path, hub and pretrain; fix: keep one")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub; fix: remove revision")
        if self.shape is not None and self.hub is None:
            raise ValueError("the shape is read from the model's config.json; fix: remove shape")
        if self.shape is not None and self.parameters is not None:
            raise ValueError("the parameters follow from the shape; fix: remove parameters")
        return self

    @property
    def tokenizer(self) -> str:
        """`bytes`, a folder, or a hub id."""
        return self.pretrain.tokenizer if self.pretrain else str(self.path or self.hub)
