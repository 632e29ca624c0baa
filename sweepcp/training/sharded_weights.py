"""Sharded weights: each rank reads its own shard of a model's tensors, and files are written back.

Rank r of R holds elements r · n to (r + 1) · n of a flattened tensor, n = ⌈elements / R⌉; the last
ranks may hold less, or nothing. This is how DeepSpeed partitions a parameter under ZeRO-3
(Rajbhandari et al. 2020, arXiv 1910.02054).
"""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from sweepcp.errors import InvalidInput
from sweepcp.models.files import SafetensorsFile, companion_files
from sweepcp.training.process_group import ProcessGroup

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

PutTensor = Callable[[str, torch.Tensor], None]
"""Takes the name of a tensor and this rank's shard of it, shape (elements,)."""
GatherTensor = Callable[[str], torch.Tensor]
"""Returns a whole tensor by its name, in fp32; a collective of all ranks."""


def shard_range(size: int, *, rank: int, world_size: int) -> tuple[int, int]:
    """Return the first element of a rank's shard of a flattened tensor, and the one after its last.

    Args:
        size: Elements of the whole tensor.
        rank: From 0.
        world_size: Number of ranks.
    """
    length = -(-size // world_size)
    return min(rank * length, size), min((rank + 1) * length, size)


def read_range(
    file: Any, name: str, shape: tuple[int, ...], *, first: int, last: int
) -> torch.Tensor:
    """Read elements `first` to `last - 1` of a flattened tensor.

    Args:
        file: An open safetensors file.
        name: The tensor.
        shape: Its shape.
        first: In elements.
        last: In elements.
    """
    if first >= last:
        return torch.empty(0)
    if not shape:
        scalar: torch.Tensor = file.get_tensor(name)
        return scalar.flatten()
    # safetensors slices by rows and not by flat elements, so the rows around the range are read.
    row_length = math.prod(shape[1:])
    top, bottom = first // row_length, -(-last // row_length)
    rows: torch.Tensor = file.get_slice(name)[top:bottom]
    return rows.flatten()[first - top * row_length : last - top * row_length]


def read_weights(
    shards: list[SafetensorsFile],
    shapes: dict[str, tuple[int, ...]],
    group: ProcessGroup,
    put: PutTensor,
) -> None:
    """Stream this rank's shard of every tensor to `put`, without materialising a whole tensor.

    Args:
        shards: The model's files, read one at a time.
        shapes: Name → shape of every parameter of the model.
        group: Who this rank is among how many.
        put: Receives the shards in the order of the files.

    Raises:
        InvalidInput: The files hold other tensors than the model has.
    """
    check_tensors(shards, shapes)
    for shard in shards:
        with safe_open(shard.path, framework="pt") as file:
            for tensor in shard.tensors:
                first, last = shard_range(tensor.size, rank=group.rank, world_size=group.world_size)
                put(
                    tensor.name,
                    read_range(file, tensor.name, tensor.shape, first=first, last=last),
                )


def check_tensors(shards: list[SafetensorsFile], shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that every tensor in the files is a parameter of the model, as floats of 16 or 32 bits.

    A parameter with several names, such as tied embeddings, may be in the files under any of them.

    Raises:
        InvalidInput: A tensor has no parameter, or another shape or dtype.
    """
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name not in shapes:
                raise InvalidInput(
                    file=shard.path,
                    key=tensor.name,
                    found=list(tensor.shape),
                    rule="tensors that the model has a parameter for",
                    fix="save the model again with `save_pretrained` of this version of "
                    "transformers",
                )
            if tuple(shapes[tensor.name]) != tensor.shape:
                raise InvalidInput(
                    file=shard.path,
                    key=tensor.name,
                    found=list(tensor.shape),
                    rule=f"shape {list(shapes[tensor.name])}, as config.json states",
                    fix="use the model's own config.json",
                )
            if tensor.dtype not in DTYPES:
                raise InvalidInput(
                    file=shard.path,
                    key=tensor.name,
                    found=tensor.dtype,
                    rule=f"one of {', '.join(DTYPES)}",
                    fix="dequantise the model",
                )


def write_weights(
    shards: list[SafetensorsFile], out: Path, group: ProcessGroup, gather: GatherTensor
) -> None:
    """Write a model into files like those it came from, with its configuration and tokenizer.

    All ranks call it together; the first one writes. Only one whole tensor is in memory at a time,
    and each keeps the dtype that it had in the original files.

    Args:
        shards: The original files.
        out: The folder to write; it is replaced once it is complete.
        group: The ranks.
        gather: Called for every tensor on all ranks, in the same order.
    """
    work = out.with_name(f".{out.name}.partial")
    if group.is_first:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for path in companion_files(shards[0].path.parent):
            shutil.copyfile(path, work / path.name)
    for shard in shards:
        if group.is_first:
            with (work / shard.path.name).open("wb") as file:
                _write_file(shard, gather, file)
        else:
            for tensor in shard.tensors:
                gather(tensor.name)
    if group.is_first:
        shutil.rmtree(out, ignore_errors=True)
        work.replace(out)
    group.barrier()


def _write_file(shard: SafetensorsFile, gather: GatherTensor, file: BinaryIO) -> None:
    # safetensors' own writer takes all tensors of a file at once. The new file has the same names,
    # shapes and dtypes, hence the same header, so tensors can be appended one by one after it.
    file.write(shard.head)
    for tensor in shard.tensors:
        values = gather(tensor.name).to("cpu", DTYPES[tensor.dtype])
        file.write(values.flatten().view(torch.uint8).numpy().data)
        # Or two whole tensors would be in memory while the next one is gathered.
        del values
    file.flush()
    os.fsync(file.fileno())
