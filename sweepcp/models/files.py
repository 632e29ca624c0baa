"""The files of a model on disk: weights, configuration and tokenizer, read without loading it.

A safetensors file is a u64 with the length of its header, the header as JSON (tensor → dtype,
shape, data_offsets), and the bytes of the tensors one after the other.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sweepcp.config.model_dimensions import MAX_LAYERS
from sweepcp.errors import InvalidInput, located
from sweepcp.util.file_hashes import content_hashes
from sweepcp.util.json_values import digest, parse_json
from sweepcp.util.records import check_file, is_file, read_json_object

INDEX = "model.safetensors.index.json"
WEIGHT_PATTERNS = (
    "*.safetensors",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "*.gguf",
)
WEIGHTS = "model.safetensors"
HUB_PATTERNS = ["*.safetensors", "*.json", "tokenizer.model", "*.txt"]
"""Files of a hub model that are fetched: weights, configuration and tokenizer."""
CONFIG_FILES = ("config.json", "generation_config.json", "adapter_config.json")
"""Files besides weights and tokenizer that transformers reads with a model."""
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_PATTERNS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*",
    "merges*.txt",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "*.codes",
    "dict.txt",
    "tekken.json",
    "normalizer.json",
)
"""Files from which the tokenizers of transformers are loaded."""
NO_TOKEN_SETTINGS = ("chat_template", "name_or_path")
"""Keys of `tokenizer_config.json` that decide no token of a text."""
LAYER_COUNT = re.compile(r"(layers?|blocks)$")
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""Bytes per element, by safetensors' name."""
REFUSED_SETTINGS = {
    "auto_map": (
        "a model that transformers itself implements; a model's own code is never run "
        "(trust_remote_code is off)",
        "use a model of transformers, or convert it to one and remove `auto_map`",
    ),
    "quantization_config": (
        "weights that are not quantized: trials train all of them, and transformers imports other "
        "packages to read quantized ones",
        "use the model that this one was quantized from, or dequantise it and save it again",
    ),
    "transformers_weights": (
        f"weights in {WEIGHTS}, or in the files of {INDEX}",
        "rename the file of weights, and remove `transformers_weights`",
    ),
    "configuration_files": (
        "one configuration for every version of transformers; it would read another file instead",
        "rename the file that is meant to config.json",
    ),
}
"""Settings of `config.json` with which transformers runs or reads something else than is checked,
with the rule that each breaks and the fix."""
COPY_AGAIN = "copy it from its origin again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    """As the format names it: F32, BF16, F16."""
    shape: tuple[int, ...]
    first: int
    """Offset of its first byte after the header."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SafetensorsFile:
    """One safetensors file."""

    path: Path
    head: bytes
    """The length of the header and the header, as they are in the file."""
    tensors: tuple[TensorInfo, ...]
    """In the order of their bytes."""


class TensorEntry(BaseModel):
    """A tensor in the header of a safetensors file."""

    model_config = ConfigDict(strict=True, extra="forbid")
    dtype: str
    """As the format names it."""
    shape: list[Annotated[int, Field(ge=0)]]
    """Elements in each dimension."""
    data_offsets: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]
    """Where its bytes begin and end, after the header."""


_TENSOR_ENTRIES = TypeAdapter(dict[str, TensorEntry])


def read_safetensors_header(path: Path) -> SafetensorsFile:
    """Read the header of a safetensors file.

    Raises:
        InvalidInput: The file is truncated or corrupt.
    """
    check_file(path, fix=COPY_AGAIN)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        header_size = int.from_bytes(length, "little")
        # A corrupt length may be beyond all memory.
        header = file.read(header_size) if header_size <= size - 8 else b""
    try:
        entries = _parse_header(header)
    except ValueError as error:
        raise InvalidInput(
            file=path,
            key="the header",
            found=str(error),
            rule="a safetensors file begins with a JSON header of its tensors",
            fix=COPY_AGAIN,
        ) from None
    tensors = [
        TensorInfo(name, entry.dtype, tuple(entry.shape), entry.data_offsets[0])
        for name, entry in entries.items()
    ]
    end = max((entry.data_offsets[1] for entry in entries.values()), default=0)
    expected = 8 + len(header) + end
    if size != expected:
        raise InvalidInput(
            file=path,
            key="the length",
            found=size,
            rule=f"{expected} bytes, according to its header",
            fix=COPY_AGAIN,
        )
    return SafetensorsFile(path, length + header, tuple(sorted(tensors, key=lambda t: t.first)))


def _parse_header(header: bytes) -> dict[str, TensorEntry]:
    """Return the tensors of a header, whose bytes lie one after the other.

    Raises:
        ValueError: It is no such header.
    """
    content = parse_json(header)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    content.pop("__metadata__", None)
    try:
        entries = _TENSOR_ENTRIES.validate_python(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise ValueError(f"{key}: {problem['msg']}") from None
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        first, last = entry.data_offsets
        width = DTYPE_BYTES.get(entry.dtype)
        if first != end or (width and last - first != width * math.prod(entry.shape)):
            raise ValueError(f"{name}: its bytes are {first} to {last}")
        end = last
    return entries


def read_shards(folder: Path) -> list[SafetensorsFile]:
    """Read the headers of a model's safetensors files, sorted by name.

    Raises:
        InvalidInput: There is no model, a file is missing or corrupt, or the weights are not
            safetensors. Unless it is a file's own fault, the error names no file.
    """
    if not is_file(folder / "config.json"):
        raise InvalidInput(
            found=str(folder),
            rule="a folder with config.json",
            fix="name a folder written by `save_pretrained`",
        )
    index, single = folder / INDEX, folder / WEIGHTS
    if index.is_file() and single.is_file():
        raise InvalidInput(
            found=f"{folder} with {WEIGHTS} and {INDEX}",
            rule="weights in one file, or in the files of an index; which of the two is meant "
            "cannot be known",
            fix="remove the one that is not the model",
        )
    if index.is_file():
        paths = [folder / name for name in _indexed_files(index)]
        missing = [path.name for path in paths if not path.is_file()]
        if missing:
            raise InvalidInput(
                found=str(folder),
                rule=f"every file that {INDEX} names ({', '.join(missing[:3])} missing)",
                fix="copy the folder from its origin again",
            )
    elif single.is_file():
        paths = [single]
    else:
        raise _no_safetensors(folder)
    return [read_safetensors_header(path) for path in paths]


def _indexed_files(index: Path) -> list[str]:
    """Return the names of the files that an index names, sorted."""
    weight_map = read_model_json(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise InvalidInput(
            file=index,
            key="weight_map",
            found=weight_map,
            rule="the name of a file in the same folder for each tensor",
            fix=COPY_AGAIN,
        )
    return sorted(set(names))


def _no_safetensors(folder: Path) -> InvalidInput:
    others = sorted(path.name for path in folder.iterdir() if any(map(path.match, WEIGHT_PATTERNS)))
    return InvalidInput(
        found=f"{folder} with {', '.join(others[:3])}" if others else f"{folder} without weights",
        rule=f"weights in {WEIGHTS}, or in the files of {INDEX}; pickled weights are never loaded",
        fix="load the model where you trust it and save it again with `save_pretrained`",
    )


def fetch_hub_model(hub: str, revision: str | None) -> Path:
    """Return the folder of a hub model in the local cache, fetched if it is not there."""
    from huggingface_hub import snapshot_download

    # Some repositories hold the weights a second time, in a folder or a format of their own.
    folder = snapshot_download(
        hub,
        revision=revision or "main",
        allow_patterns=HUB_PATTERNS,
        ignore_patterns=["*/*", "consolidated*"],
    )
    return Path(folder)


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a model.

    Raises:
        InvalidInput: The model brings its own code, or its weights are not those of its
            safetensors. The error names no file.
    """
    content = read_model_json(folder / "config.json")
    for key, (rule, fix) in REFUSED_SETTINGS.items():
        if content.get(key):
            raise InvalidInput(found=f"{folder}/config.json with {key}", rule=rule, fix=fix)
    with located(folder / "config.json"):
        check_layer_counts(content)
    return content


def check_layer_counts(config: dict[str, Any]) -> None:
    """Raise `InvalidInput` for a configuration of more layers than any model has.

    Only to build its modules, without weights, would take all time and memory.
    """
    for key, value in config.items():
        if isinstance(value, dict):
            with located("", key):
                check_layer_counts(value)
        elif LAYER_COUNT.search(key) and isinstance(value, int) and value > MAX_LAYERS:
            raise InvalidInput(
                key=key,
                found=value,
                rule=f"at most {MAX_LAYERS:,} layers",
                fix="use the model's own configuration",
            )


def read_model_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a model: a configuration, an index or the settings of a tokenizer.

    Infinities and NaN, which transformers writes, are kept.

    Raises:
        InvalidInput: The file is missing or damaged, or holds no JSON object.
    """
    return read_json_object(path, fix=COPY_AGAIN, finite=False)


def count_elements(shards: list[SafetensorsFile]) -> int:
    """Count the elements of all tensors."""
    return sum(tensor.size for shard in shards for tensor in shard.tensors)


def companion_files(folder: Path) -> list[Path]:
    """List the files of a saved model other than weights: configuration, tokenizer, index."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return sorted(path for path in files if not any(map(path.match, WEIGHT_PATTERNS)))


def model_identity(folder: Path, shards: list[SafetensorsFile]) -> dict[str, str]:
    """Return hashes of the content of what decides a model's numbers.

    Weights that were hashed before are read again only if their stamps have changed, see
    `content_hashes`.

    Returns:
        16 hex digits each for `weights`, `config` and `tokenizer`.
    """
    index = folder / INDEX
    weights = [shard.path for shard in shards] + ([index] if index.is_file() else [])
    configs = [folder / name for name in CONFIG_FILES if (folder / name).is_file()]
    config = [
        [path.name, sha256] for path, sha256 in zip(configs, content_hashes(configs), strict=True)
    ]
    return {
        "weights": digest(content_hashes(weights)),
        "config": digest(config),
        "tokenizer": tokenizer_fingerprint(folder),
    }


def model_fingerprint(folder: Path, shards: list[SafetensorsFile]) -> str:
    """Return 16 hex digits that change with a model's weights, configuration or tokenizer."""
    return digest(model_identity(folder, shards))


def tokenizer_fingerprint(folder: Path) -> str:
    """Return 16 hex digits that change with any file that decides a tokenizer's tokens."""
    found = sorted(path for path in folder.iterdir() if path.is_file())
    files = [path for path in found if any(map(path.match, TOKENIZER_PATTERNS))]
    contents: list[Any] = [
        [path.name, _tokenizer_settings(path) if path.name == TOKENIZER_CONFIG else sha256]
        for path, sha256 in zip(files, content_hashes(files), strict=True)
    ]
    config = folder / "config.json"
    if config.is_file():
        # transformers chooses the tokenizer's class by it where the tokenizer names none.
        contents.append(read_model_json(config).get("model_type"))
    return digest(contents)


def _tokenizer_settings(path: Path) -> Any:
    """Return the settings of a tokenizer without those that decide no token of a text."""
    settings = read_json_object(path, fix=COPY_AGAIN)
    return {key: settings[key] for key in settings if key not in NO_TOKEN_SETTINGS}
