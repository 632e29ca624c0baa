"""The base model, as an experiment names it: what can be known of it without loading it."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from sweepcp.files import cache_dir, digest
from sweepcp.model_files import count, read_config, shards_of
from sweepcp.recipe import Fraction, Positive, Training, check_whole
from sweepcp.schema import Schema
from sweepcp.shape import shape_of

FORMAT = 2
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


class Pretrain(Schema):
    """A small base made here: a model built from a configuration and trained on the experiment's sources."""

    config: dict[str, Any]
    """A transformers configuration with its `model_type`; `vocab_size` and special tokens come from the tokenizer."""
    tokenizer: str = "bytes"
    """`bytes` (256 bytes, BOS, EOS), or a folder or hub id of a tokenizer."""
    mixture: Annotated[dict[str, Fraction], Field(min_length=1)]
    """Source → share of the tokens; sums to 1."""
    tokens: Annotated[int, Field(ge=1)]
    training: Training
    seed: int = 0

    @field_validator("mixture")
    @classmethod
    def _whole(cls, mixture: dict[str, float]) -> dict[str, float]:
        check_whole(mixture.values())
        return mixture

    @model_validator(mode="after")
    def _checks(self) -> Self:
        if "model_type" not in self.config:
            raise ValueError("a transformers configuration names its model_type; fix: add `model_type: llama`")
        if self.tokens % self.training.batch_tokens:
            near = max(1, round(self.tokens / self.training.batch_tokens)) * self.training.batch_tokens
            raise ValueError(
                f"tokens {self.tokens} is not a multiple of batch_tokens {self.training.batch_tokens}; fix: use {near}"
            )
        return self


class BaseSpec(Schema):
    """The base model: exactly one of `path`, `hub` and `pretrain`."""

    path: str | None = None
    """A folder with config.json, safetensors and tokenizer, relative to the experiment file."""
    hub: str | None = None
    """A model hub's id, such as `HuggingFaceTB/SmolLM2-135M`."""
    revision: str | None = None
    """Of `hub`: a commit, tag or branch. Name a commit, so that every worker and every resume loads the same."""
    pretrain: Pretrain | None = None
    """Pretrain the base here first; the result is cached by the hash of this section and its texts."""
    max_lr: Positive
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
                parts = [(folder / n).read_bytes() for n in (name, "tokenizer_config.json") if (folder / n).is_file()]
                return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
        return f"{self.tokenizer}@{self.revision}"

    def config(self) -> dict[str, Any] | None:
        """The transformers configuration, or None where only the hub knows it."""
        if self.pretrain is not None:
            return self.pretrain.config
        if self.path is not None:
            content: dict[str, Any] = json.loads((Path(self.path) / "config.json").read_text(encoding="utf-8"))
            return content
        return None


def resolve(base: BaseSpec, folder: Path, where: object) -> BaseSpec:
    """The spec with absolute paths; `BadInput` when the folder or a file in it is missing."""
    if base.path is None:
        return base
    path = (folder / Path(base.path).expanduser()).resolve()
    shards_of(path, where, "base.path")
    read_config(path, where, "base.path")
    return base.model_copy(update={"path": str(path)})


def max_length(base: BaseSpec) -> int | None:
    """The longest sequence that the base takes, where its configuration is at hand and says so."""
    config = base.config() or {}
    return next((int(config[key]) for key in LENGTH_KEYS if key in config), None)


def count_parameters(base: BaseSpec) -> int | None:
    """Parameters: as stated, or from the safetensors headers, or for a Llama-shaped configuration by its formula."""
    if base.parameters is not None:
        return base.parameters
    if base.path is not None:
        return count(shards_of(Path(base.path), base.path, "base.path"))
    if base.pretrain is None:
        return None
    shape = shape_of({"vocab_size": 258} | base.pretrain.config)
    return shape.size if shape else None


def pretrained_path(base: BaseSpec, texts: dict[str, str]) -> Path:
    """Where a pretrained base is or will be cached, by its section and the fingerprints of the texts it is made of."""
    assert base.pretrain is not None
    used = {name: texts[name] for name in sorted(base.pretrain.mixture)}
    spec = base.pretrain.model_dump(mode="json")
    return cache_dir() / "bases" / digest([FORMAT, spec, base.max_lr, base.tokenizer_id(), used])
