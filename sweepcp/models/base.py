"""The base model of an experiment: what can be read of it without loading its weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.model_dimensions import dimensions_of
from sweepcp.errors import located
from sweepcp.models.files import count_elements, read_config, read_shards
from sweepcp.util.files import cache_dir
from sweepcp.util.json_values import digest

FORMAT = 2
"""Version of the cache of pretrained bases; part of their cache keys."""
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
"""Where configurations of transformers state the longest sequence of a model."""
BYTE_VOCABULARY = 258
"""Size of the `bytes` tokenizer: 256 bytes, BOS and EOS."""


def resolve_base(base: BaseSpec, folder: Path) -> BaseSpec:
    """Return the spec with an absolute `path`, which is relative to `folder`.

    Raises:
        InvalidInput: The folder lacks a configuration or safetensors, or the model brings its own
            code. The error names no file.
    """
    if base.path is None:
        return base
    path = (folder / Path(base.path).expanduser()).resolve()
    with located(file="", key="base.path"):
        read_shards(path)
        read_config(path)
    return base.model_copy(update={"path": str(path)})


def model_config(base: BaseSpec) -> dict[str, Any] | None:
    """Return the transformers configuration of a base, or None for one that is only on the hub."""
    if base.pretrain is not None:
        return base.pretrain.config
    if base.path is None:
        return None
    text = (Path(base.path) / "config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


def tokenizer_id(base: BaseSpec) -> str:
    """Return the key of token stores that are made with the tokenizer of a base.

    A tokenizer in a folder has a hash of its files (16 hex digits); any other its name and the
    base's revision.
    """
    folder = Path(base.tokenizer)
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            files = [folder / name, folder / "tokenizer_config.json"]
            contents = [file.read_bytes() for file in files if file.is_file()]
            return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
    return f"{base.tokenizer}@{base.revision}"


def max_sequence_length(base: BaseSpec) -> int | None:
    """Return the longest sequence in tokens that a base takes, or None if that is not known."""
    config = model_config(base) or {}
    return next((int(config[key]) for key in LENGTH_KEYS if key in config), None)


def count_parameters(base: BaseSpec) -> int | None:
    """Return the number of parameters of a base, or None if that is not known.

    It is stated in the spec, or read from the headers of the safetensors files, or computed from a
    Llama-like configuration.
    """
    if base.parameters is not None:
        return base.parameters
    if base.path is not None:
        with located(base.path, "base.path"):
            return count_elements(read_shards(Path(base.path)))
    if base.pretrain is None:
        return None
    dimensions = dimensions_of({"vocab_size": BYTE_VOCABULARY} | base.pretrain.config)
    return dimensions.parameter_count if dimensions else None


def pretrained_path(base: BaseSpec, source_fingerprints: dict[str, str]) -> Path:
    """Return the cache folder of a pretrained base.

    The key covers the `pretrain` section, the LR, the tokenizer and the fingerprints of the sources
    that the base is trained on.
    """
    assert base.pretrain is not None
    sources = {name: source_fingerprints[name] for name in sorted(base.pretrain.mixture)}
    spec = base.pretrain.model_dump(mode="json")
    key = digest([FORMAT, spec, base.max_lr, tokenizer_id(base), sources])
    return cache_dir() / "bases" / key
