"""The base model of an experiment: what can be read of it without loading its weights."""

from pathlib import Path
from typing import Any

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.model_dimensions import ModelDimensions, dimensions_of
from sweepcp.config.types import COMMIT, is_hub_id
from sweepcp.errors import InvalidInput, located
from sweepcp.models.files import (
    COPY_AGAIN,
    check_layer_counts,
    count_elements,
    read_config,
    read_model_json,
    read_shards,
    tokenizer_fingerprint,
)
from sweepcp.util.files import cache_dir
from sweepcp.util.json_values import digest
from sweepcp.util.paths import user_path

FORMAT = 3
"""Version of the cache of pretrained bases; part of their cache keys."""
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
"""Where configurations of transformers state the longest sequence of a model."""
BYTES = "bytes"
"""The built-in tokenizer."""
BYTE_VOCABULARY = 258
"""Size of the `bytes` tokenizer: 256 bytes, BOS and EOS."""


def resolve_base(base: BaseSpec, folder: Path) -> BaseSpec:
    """Return the spec with absolute paths of model and tokenizer, which are relative to `folder`.

    Raises:
        InvalidInput: The folder lacks a configuration or safetensors, or the model brings its own
            code. The error names no file.
    """
    if base.pretrain is not None:
        with located(file="", key="base.pretrain.tokenizer"):
            tokenizer = user_path(base.pretrain.tokenizer, folder=folder)
            if not tokenizer.is_dir() and not is_hub_id(base.pretrain.tokenizer):
                rule = f"`{BYTES}`, the id of a repository, or a folder (looked for {tokenizer})"
                raise InvalidInput(found=base.pretrain.tokenizer, rule=rule, fix="correct the path")
        with located(file="", key="base.pretrain.config"):
            check_layer_counts(base.pretrain.config)
        if base.pretrain.tokenizer == BYTES or not tokenizer.is_dir():
            return base
        pretrain = base.pretrain.model_copy(update={"tokenizer": str(tokenizer.resolve())})
        return base.model_copy(update={"pretrain": pretrain})
    if base.path is None:
        return base
    with located(file="", key="base.path"):
        path = user_path(base.path, folder=folder).resolve()
        read_shards(path)
        read_config(path)
    return base.model_copy(update={"path": str(path)})


def model_config(base: BaseSpec) -> dict[str, Any] | None:
    """Return the transformers configuration of a base, or None for one that is only on the hub."""
    if base.pretrain is not None:
        return base.pretrain.config
    if base.path is None:
        return None
    return read_model_json(Path(base.path) / "config.json")


def pin_base(base: BaseSpec) -> BaseSpec:
    """Return the spec of a hub base with the commit that its revision stands for now.

    So every worker loads the same model, and a resumed search notices another one.

    Raises:
        InvalidInput: Neither the hub nor this machine's cache of it has the base or its tokenizer.
    """
    if base.hub is not None:
        if COMMIT.fullmatch(base.revision or ""):
            return base
        with located(base.hub, "base.hub"):
            _ask_hub(base.hub, base.revision, "config.json")
        return base.model_copy(update={"revision": _cached_commit(base.hub, base.revision)})
    if base.tokenizer != BYTES and not Path(base.tokenizer).is_dir():
        with located(base.tokenizer, "base.pretrain.tokenizer"):
            _ask_hub(base.tokenizer, None, "tokenizer_config.json")
    return base


def _ask_hub(name: str, revision: str | None, file: str) -> None:
    """Fetch a small file, whereby the cache learns the commit of a branch or tag."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, file, revision=revision)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidInput(
            found=f"{name}@{revision or 'main'}",
            rule=f"an existing folder, or a repository of the hub with {file} ({reason})",
            fix="correct the id or the revision; this machine must reach the hub, or have a copy "
            "in its cache",
        ) from None


def _cached_commit(name: str, revision: str | None) -> str | None:
    """Return the commit of a hub repository in this machine's cache; None if it has none."""
    if COMMIT.fullmatch(revision or ""):
        return revision
    from huggingface_hub import try_to_load_from_cache

    for file in ("config.json", "tokenizer_config.json"):
        # snapshots/<commit>/<file>
        path = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    return None


def tokenizer_id(base: BaseSpec) -> str:
    """Return the key of token stores that are made with the tokenizer of a base.

    A tokenizer in a folder has a hash of its files (16 hex digits), one of the hub its name and the
    commit of it that this machine has.
    """
    if base.tokenizer == BYTES:
        return BYTES
    folder = Path(base.tokenizer)
    if folder.is_dir():
        return tokenizer_fingerprint(folder)
    return f"{base.tokenizer}@{_cached_commit(base.tokenizer, base.revision) or base.revision}"


def language_config(base: BaseSpec) -> dict[str, Any]:
    """Return the settings of a base's language model; empty for one that is only on the hub.

    Models that read images, too, state them in a section of their own.

    Raises:
        InvalidInput: That is no section.
    """
    config = model_config(base) or {}
    section = config.get("text_config") or {}
    if not isinstance(section, dict):
        rule = "the settings of the language model, a mapping"
        raise _invalid_setting(base, "text_config", section, rule)
    return config | section


def stated_size(base: BaseSpec, *keys: str) -> int | None:
    """Return the first of some sizes that the configuration of a base states; None if none is.

    Raises:
        InvalidInput: It is no positive integer.
    """
    config = language_config(base)
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise _invalid_setting(base, key, value, "an integer of at least 1")
        return value
    return None


def _invalid_setting(base: BaseSpec, key: str, found: object, rule: str) -> InvalidInput:
    """Return the error of a value in the configuration of a base."""
    if base.path is None:
        fix = "correct it"
        return InvalidInput(key=f"base.pretrain.config.{key}", found=found, rule=rule, fix=fix)
    file = Path(base.path) / "config.json"
    return InvalidInput(file=file, key=key, found=found, rule=rule, fix=COPY_AGAIN)


def max_sequence_length(base: BaseSpec) -> int | None:
    """Return the longest sequence in tokens that a base takes, or None if that is not known."""
    return stated_size(base, *LENGTH_KEYS)


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
    dimensions = base_dimensions(base)
    return dimensions.parameter_count if dimensions else None


def base_dimensions(base: BaseSpec) -> ModelDimensions | None:
    """Return the dimensions of a base whose configuration has Llama's names, else None.

    Those of a base on the hub are what the spec states.
    """
    if base.path is not None:
        with located(base.path, "base.path"):
            parameters = count_elements(read_shards(Path(base.path)))
            return dimensions_of(language_config(base), parameters)
    if base.pretrain is None:
        return base.shape
    with located("", "base.pretrain.config"):
        return dimensions_of({"vocab_size": BYTE_VOCABULARY} | base.pretrain.config)


def pretrained_path(base: BaseSpec, source_fingerprints: dict[str, str]) -> Path:
    """Return the cache folder of a pretrained base.

    The key covers the `pretrain` section, the LR, the tokenizer and the fingerprints of the sources
    that the base is trained on.
    """
    assert base.pretrain is not None
    sources = {name: source_fingerprints[name] for name in sorted(base.pretrain.mixture)}
    spec = base.pretrain.model_dump(mode="json", exclude={"tokenizer"})
    key = digest([FORMAT, spec, base.max_lr, tokenizer_id(base), sources])
    return cache_dir() / "bases" / key
