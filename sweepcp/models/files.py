"""The files of a model on disk: weights, configuration and tokenizer, read without loading it.

A safetensors file is a u64 with the length of its header, the header as JSON (tensor → dtype,
shape, data_offsets), and the bytes of the tensors one after the other.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput

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
    index = folder / INDEX
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
    else:
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise _no_safetensors(folder)
    return [read_safetensors_header(path) for path in paths]


def _no_safetensors(folder: Path) -> InvalidInput:
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    return InvalidInput(
        found=f"{folder} with {', '.join(pickled[:3])}" if pickled else f"{folder} without weights",
        rule="weights as safetensors; pickled weights are never loaded",
        fix="load the model where you trust it and save it again with `save_pretrained`",
    )


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


def model_fingerprint(folder: Path, shards: list[SafetensorsFile]) -> str:
    """Hash a model's configuration, tokenizer, and the headers and sizes of its weight files.

    The weights themselves are not read: that takes minutes for a large model.

    Returns:
        16 hex digits.
    """
    fingerprint = hashlib.sha256()
    for path in companion_files(folder):
        if path.suffix == ".json" or path.name == "tokenizer.model":
            content = hashlib.sha256(path.read_bytes()).digest()
            fingerprint.update(path.name.encode() + b"\0" + content)
    for shard in shards:
        size = shard.path.stat().st_size
        fingerprint.update(f"{shard.path.name}\0{size}\0".encode() + shard.head)
    return fingerprint.hexdigest()[:16]
