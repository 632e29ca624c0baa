"""The files of a model on disk: weights, configuration and tokenizer, read without loading it.

A safetensors file is a u64 with the length of its header, the header as JSON (tensor → dtype,
shape, data_offsets), and the bytes of the tensors one after the other.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput
from sweepcp.util.file_hashes import content_hashes
from sweepcp.util.json_values import digest

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


def read_safetensors_header(path: Path) -> SafetensorsFile:
    """Read the header of a safetensors file.

    Raises:
        InvalidInput: The file is truncated or corrupt.
    """
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little")) if len(length) == 8 else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = [_tensor_info(name, entry) for name, entry in entries.items()]
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            file=path,
            key="the header",
            found=str(error),
            rule="a safetensors file begins with a JSON header",
            fix=COPY_AGAIN,
        ) from None
    size = 8 + len(header) + end
    if path.stat().st_size != size:
        raise InvalidInput(
            file=path,
            key="the length",
            found=path.stat().st_size,
            rule=f"{size} bytes, according to its header",
            fix=COPY_AGAIN,
        )
    return SafetensorsFile(path, length + header, tuple(sorted(tensors, key=lambda t: t.first)))


def _tensor_info(name: str, entry: dict[str, Any]) -> TensorInfo:
    return TensorInfo(name, entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][0])


def read_shards(folder: Path) -> list[SafetensorsFile]:
    """Read the headers of a model's safetensors files, sorted by name.

    Raises:
        InvalidInput: There is no model, a file is missing or corrupt, or the weights are not
            safetensors. Unless it is a file's own fault, the error names no file.
    """
    if not (folder / "config.json").is_file():
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
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        paths = [folder / name for name in sorted(set(weight_map.values()))]
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
        InvalidInput: The model brings its own code. The error names no file.
    """
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if content.get("auto_map"):
        raise InvalidInput(
            found=f"{folder}/config.json with auto_map",
            rule="a model that transformers itself implements; a model's own code is never run "
            "(trust_remote_code is off)",
            fix="use a model of transformers, or convert it to one and remove `auto_map`",
        )
    return content


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
        model_type = json.loads(config.read_text(encoding="utf-8")).get("model_type")
        contents.append(model_type)
    return digest(contents)


def _tokenizer_settings(path: Path) -> Any:
    """Return the settings of a tokenizer without those that decide no token of a text."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return {key: settings[key] for key in settings if key not in NO_TOKEN_SETTINGS}
    except (ValueError, TypeError) as error:
        raise InvalidInput(
            file=path, key="the file", found=str(error), rule="a JSON object", fix=COPY_AGAIN
        ) from None
