"""Weights in parts: what one of several ranks reads of a model's files, and how files are written from the parts.

Rank r of R holds the elements r · n to (r + 1) · n of a flattened tensor, n = ⌈elements / R⌉; the last ranks may have
less, or nothing. DeepSpeed cuts a parameter so under ZeRO-3 (arXiv 1910.02054).
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from sweepcp.errors import InvalidInput
from sweepcp.models.files import SafetensorsFile, companion_files
from sweepcp.training.process_group import ProcessGroup

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def shard_range(size: int, rank: int, ranks: int) -> tuple[int, int]:
    """First element, and the one after the last, of a flattened tensor of `size` elements that a rank holds."""
    part = -(-size // ranks)
    return min(rank * part, size), min((rank + 1) * part, size)


def read_range(
    source: Any, name: str, shape: tuple[int, ...], first: int, last: int
) -> torch.Tensor:
    """Elements `first` to `last - 1` of a flattened tensor of an open safetensors file, from the rows they stand in."""
    if first >= last:
        return torch.empty(0)
    width = math.prod(shape[1:])
    top, bottom = first // width, -(-last // width)
    rows: torch.Tensor = source.get_slice(name)[top:bottom] if shape else source.get_tensor(name)
    return rows.flatten()[first - top * width : last - top * width]


def read_weights(
    shards: list[SafetensorsFile],
    shapes: dict[str, tuple[int, ...]],
    ranks: ProcessGroup,
    put: "PutTensor",
) -> None:
    """Give `put` this rank's part of every tensor, file by file; none is ever in memory whole.

    `shapes` are those of the model. Raises `BadInput` when the files hold other tensors than the model has.
    """
    check_tensors(shards, shapes)
    for shard in shards:
        with safe_open(shard.path, framework="pt") as source:
            for tensor in shard.tensors:
                put(
                    tensor.name,
                    read_range(
                        source,
                        tensor.name,
                        tensor.shape,
                        *shard_range(tensor.size, ranks.rank, ranks.ranks),
                    ),
                )


PutTensor = Callable[[str, torch.Tensor], None]


def check_tensors(shards: list[SafetensorsFile], shapes: dict[str, tuple[int, ...]]) -> None:
    """Raise `BadInput` unless the shards hold exactly tensors of these names and shapes, as floats of 16 or 32 bits.

    Names that share a parameter, such as tied embeddings, may all stand in the files, or any of them.
    """
    fix = "save the model again with `save_pretrained` of this version of transformers"
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name not in shapes:
                rule = "tensors that the model has a parameter for"
                raise InvalidInput(
                    file=shard.path, key=tensor.name, found=list(tensor.shape), rule=rule, fix=fix
                )
            if tuple(shapes[tensor.name]) != tensor.shape:
                rule = f"shape {list(shapes[tensor.name])}, as config.json says"
                raise InvalidInput(
                    file=shard.path,
                    key=tensor.name,
                    found=list(tensor.shape),
                    rule=rule,
                    fix="use the model's own config.json",
                )
            if tensor.dtype not in DTYPES:
                raise InvalidInput(
                    file=shard.path,
                    key=tensor.name,
                    found=tensor.dtype,
                    rule=f"one of {', '.join(DTYPES)}",
                    fix="dequantise it",
                )


def write_weights(
    shards: list[SafetensorsFile],
    out: Path,
    ranks: ProcessGroup,
    whole: Callable[[str], torch.Tensor],
) -> None:
    """Write a model's weights into files like those it came from, with its configuration and tokenizer beside them.

    `whole` gathers one tensor at a time, in fp32, on all ranks at once; the first rank writes it in the dtype that it
    had. `out` is complete or not there.
    """
    work = out.with_name(f".{out.name}.partial")
    if ranks.first:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for path in companion_files(shards[0].path.parent):
            shutil.copyfile(path, work / path.name)
    for shard in shards:
        file = (work / shard.path.name).open("wb") if ranks.first else None
        if file:
            file.write(shard.head)
        for tensor in shard.tensors:
            values = whole(tensor.name)
            if file:
                file.write(
                    values.to("cpu", DTYPES[tensor.dtype]).flatten().view(torch.uint8).numpy().data
                )
            del values
        if file:
            file.flush()
            os.fsync(file.fileno())
            file.close()
    if ranks.first:
        shutil.rmtree(out, ignore_errors=True)
        os.replace(work, out)
    ranks.wait()
