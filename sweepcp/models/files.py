"""The files of a model on disk, known without loading it: shards, the tensors in them, configuration.

A safetensors file is a u64 with the length of its header, the header as JSON (tensor → dtype, shape, data_offsets),
and the tensors' bytes in a row.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweepcp.errors import InvalidInput

INDEX = "model.safetensors.index.json"
WEIGHTS = (
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


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a shard."""

    name: str
    dtype: str
    """As the format names it: F32, BF16, F16."""
    shape: tuple[int, ...]
    first: int
    """Where its bytes begin, after the header."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class SafetensorsFile:
    """One safetensors file."""

    path: Path
    head: bytes
    """The header with its length in front, as it stands in the file."""
    tensors: tuple[TensorInfo, ...]
    """In the order of their bytes."""


def read_safetensors_header(path: Path) -> SafetensorsFile:
    """The header of a safetensors file; `BadInput` when it is torn."""
    with path.open("rb") as file:
        length = file.read(8)
        head = file.read(int.from_bytes(length, "little")) if len(length) == 8 else b""
    try:
        entries = json.loads(head)
        entries.pop("__metadata__", None)
        tensors = [
            TensorInfo(n, e["dtype"], tuple(e["shape"]), e["data_offsets"][0])
            for n, e in entries.items()
        ]
        end = max((e["data_offsets"][1] for e in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        rule = "a safetensors file begins with its header"
        raise InvalidInput(
            file=path, key="the header", found=str(error), rule=rule, fix="copy the file again"
        ) from None
    if path.stat().st_size != 8 + len(head) + end:
        rule = f"{8 + len(head) + end} bytes, says the header"
        raise InvalidInput(
            file=path,
            key="the length",
            found=path.stat().st_size,
            rule=rule,
            fix="copy the file again",
        )
    return SafetensorsFile(path, length + head, tuple(sorted(tensors, key=lambda t: t.first)))


def read_shards(folder: Path, where: object, key: str) -> list[SafetensorsFile]:
    """The shards of the model in a folder; `BadInput`, for `key` of the file `where`, when it has none that is safe."""
    fix = "name a folder written by `save_pretrained`"
    if not (folder / "config.json").is_file():
        raise InvalidInput(
            file=where, key=key, found=str(folder), rule="a folder with config.json", fix=fix
        )
    if (folder / INDEX).is_file():
        names = sorted(
            set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        )
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            rule = f"every file that {INDEX} names ({', '.join(missing[:3])} missing)"
            raise InvalidInput(
                file=where, key=key, found=str(folder), rule=rule, fix="copy the folder again"
            )
        return [read_safetensors_header(folder / name) for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        other = sorted(path.name for path in folder.glob("*.bin"))
        rule = "weights as safetensors; pickled weights are never loaded"
        found = f"{folder} with {', '.join(other[:3])}" if other else f"{folder} without weights"
        raise InvalidInput(
            file=where,
            key=key,
            found=found,
            rule=rule,
            fix="load it where you trust it and save it again with `save_pretrained`",
        )
    return [read_safetensors_header(path) for path in files]


def count_elements(shards: list[SafetensorsFile]) -> int:
    """Elements of all tensors."""
    return sum(tensor.size for shard in shards for tensor in shard.tensors)


def read_config(folder: Path, where: object, key: str) -> dict[str, Any]:
    """`config.json` of a model; `BadInput` when the model brings its own code."""
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if content.get("auto_map"):
        rule = "models that transformers itself implements; a model's own code is never run (trust_remote_code is off)"
        fix = "use a model of transformers, or convert it to one and remove `auto_map`"
        raise InvalidInput(
            file=where, key=key, found=f"{folder}/config.json with auto_map", rule=rule, fix=fix
        )
    return content


def companion_files(folder: Path) -> list[Path]:
    """The files beside the weights that belong to a saved model: configuration, tokenizer, index."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not any(path.match(weights) for weights in WEIGHTS)
    )


def model_fingerprint(folder: Path, shards: list[SafetensorsFile]) -> str:
    """16 hex digits over configuration, tokenizer, and the headers and sizes of the shards; not over all weights."""
    found = hashlib.sha256()
    for path in companion_files(folder):
        if path.suffix == ".json" or path.name == "tokenizer.model":
            found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    for shard in shards:
        found.update(f"{shard.path.name}\0{shard.path.stat().st_size}\0".encode() + shard.head)
    return found.hexdigest()[:16]
