"""TODO config.base_model."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from sweepcp.config.recipe import TrainingSettings, check_shares
from sweepcp.config.types import Fraction, PositiveFloat
from sweepcp.config.validation import ConfigModel


class PretrainSpec(ConfigModel):
    """A small base made here: a model built from a configuration and trained on the experiment's sources."""

    config: dict[str, Any]
    """A transformers configuration with its `model_type`; `vocab_size` and special tokens come from the tokenizer."""
    tokenizer: str = "bytes"
    """`bytes` (256 bytes, BOS, EOS), or a folder or hub id of a tokenizer."""
    mixture: Annotated[dict[str, Fraction], Field(min_length=1)]
    """Source → share of the tokens; sums to 1."""
    tokens: Annotated[int, Field(ge=1)]
    training: TrainingSettings
    seed: int = 0

    @field_validator("mixture")
    @classmethod
    def _whole(cls, mixture: dict[str, float]) -> dict[str, float]:
        check_shares(mixture.values())
        return mixture

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if "model_type" not in self.config:
            raise ValueError(
                "a transformers configuration names its model_type; fix: add `model_type: llama`"
            )
        if self.tokens % self.training.batch_tokens:
            near = (
                max(1, round(self.tokens / self.training.batch_tokens)) * self.training.batch_tokens
            )
            raise ValueError(
                f"tokens {self.tokens} is not a multiple of batch_tokens {self.training.batch_tokens}; fix: use {near}"
            )
        return self


class BaseSpec(ConfigModel):
    """The base model: exactly one of `path`, `hub` and `pretrain`."""

    path: str | None = None
    """A folder with config.json, safetensors and tokenizer, relative to the experiment file."""
    hub: str | None = None
    """A model hub's id, such as `HuggingFaceTB/SmolLM2-135M`."""
    revision: str | None = None
    """Of `hub`: a commit, tag or branch. Name a commit, so that every worker and every resume loads the same."""
    pretrain: PretrainSpec | None = None
    """Pretrain the base here first; the result is cached by the hash of this section and its texts."""
    max_lr: PositiveFloat
    """The max LR of the base's own pretraining, which recipes take a fraction of."""
    parameters: Annotated[int, Field(ge=1)] | None = None
    """For the cost estimate of `plan`, where the model is not at hand."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(x is not None for x in (self.path, self.hub, self.pretrain)) != 1:
            raise ValueError("a base has exactly one of path, hub and pretrain; fix: keep one")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub; fix: remove revision")
        return self

    @property
    def tokenizer(self) -> str:
        """`bytes`, a folder, or a hub id."""
        return self.pretrain.tokenizer if self.pretrain else str(self.path or self.hub)

    def tokenizer_id(self) -> str:
        """What stores made with the tokenizer are keyed by: its file's hash, or the pinned hub id."""
        folder = Path(self.tokenizer)
        for name in ("tokenizer.json", "tokenizer.model"):
            if (folder / name).is_file():
                parts = [
                    (folder / n).read_bytes()
                    for n in (name, "tokenizer_config.json")
                    if (folder / n).is_file()
                ]
                return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        return f"{self.tokenizer}@{self.revision}"

    def config(self) -> dict[str, Any] | None:
        """The transformers configuration, or None where only the hub knows it."""
        if self.pretrain is not None:
            return self.pretrain.config
        if self.path is not None:
            content: dict[str, Any] = json.loads(
                (Path(self.path) / "config.json").read_text(encoding="utf-8")
            )
            return content
        return None
