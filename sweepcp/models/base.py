"""The base model, as an experiment names it: what can be known of it without loading it."""

from pathlib import Path

from sweepcp.config.base_model import BaseSpec
from sweepcp.config.model_dimensions import dimensions_of
from sweepcp.models.files import count_elements, read_config, read_shards
from sweepcp.util.files import cache_dir
from sweepcp.util.json_values import digest

FORMAT = 2
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


def resolve_base(base: BaseSpec, folder: Path, where: object) -> BaseSpec:
    """The spec with absolute paths; `BadInput` when the folder or a file in it is missing."""
    if base.path is None:
        return base
    path = (folder / Path(base.path).expanduser()).resolve()
    read_shards(path, where, "base.path")
    read_config(path, where, "base.path")
    return base.model_copy(update={"path": str(path)})


def max_sequence_length(base: BaseSpec) -> int | None:
    """The longest sequence that the base takes, where its configuration is at hand and says so."""
    config = base.config() or {}
    return next((int(config[key]) for key in LENGTH_KEYS if key in config), None)


def count_parameters(base: BaseSpec) -> int | None:
    """Parameters: as stated, or from the safetensors headers, or for a Llama-shaped configuration by its formula."""
    if base.parameters is not None:
        return base.parameters
    if base.path is not None:
        return count_elements(read_shards(Path(base.path), base.path, "base.path"))
    if base.pretrain is None:
        return None
    shape = dimensions_of({"vocab_size": 258} | base.pretrain.config)
    return shape.size if shape else None


def pretrained_path(base: BaseSpec, texts: dict[str, str]) -> Path:
    """Where a pretrained base is or will be cached, by its section and the fingerprints of the texts it is made of."""
    assert base.pretrain is not None
    used = {name: texts[name] for name in sorted(base.pretrain.mixture)}
    spec = base.pretrain.model_dump(mode="json")
    return cache_dir() / "bases" / digest([FORMAT, spec, base.max_lr, base.tokenizer_id(), used])
