"""Sharded weights: each rank reads its own shard of a model's tensors, and files are written back.

Rank r of R holds elements r · n to (r + 1) · n of a flattened tensor, n = ⌈elements / R⌉; the last
ranks may hold less, or nothing. This is how DeepSpeed partitions a parameter under ZeRO-3
(Rajbhandari et al. 2020, arXiv 1910.02054).
"""

import math
import os
import shutil
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

from sweepcp.errors import InvalidInput
from sweepcp.models.checkpoint import DTYPES, MatchedTensor
from sweepcp.models.files import SafetensorsFile, companion_files
from sweepcp.training.process_group import ProcessGroup

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


def read_weights(matched: list[MatchedTensor], group: ProcessGroup, put: PutTensor) -> None:
    """Stream this rank's shard of every tensor to `put`, without materialising a whole tensor.

    Args:
        matched: The tensors of the model's files, which are read one file at a time.
        group: The ranks.
        put: Called for every tensor, in the order of the files.
    """
    for path, tensors in groupby(matched, key=lambda tensor: tensor.shard.path):
        with safe_open(path, framework="pt") as file:
            for tensor in tensors:
                info = tensor.info
                first, last = shard_range(info.size, rank=group.rank, world_size=group.world_size)
                put(tensor.name, read_range(file, info.name, info.shape, first=first, last=last))


def refuse_converted(matched: list[MatchedTensor]) -> None:
    """Refuse tensors from which transformers computes parameters: they cannot be read in shards.

    Raises:
        InvalidInput: There is such a tensor.
    """
    for tensor in matched:
        if tensor.converted:
            raise InvalidInput(
                file=tensor.shard.path,
                key=tensor.info.name,
                found=f"a part of {tensor.name}",
                rule="tensors as the model has them, which every process can read its shard of",
                fix="load the model with transformers once, and save it with "
                "`save_pretrained(folder, save_original_format=False)`",
            )


def write_weights(
    shards: list[SafetensorsFile],
    trained: list[MatchedTensor],
    out: Path,
    group: ProcessGroup,
    gather: GatherTensor,
) -> None:
    """Write a model into files like those it came from, with its configuration and tokenizer.

    All ranks call it together; the first one writes. Only one whole tensor is in memory at a time,
    and each keeps the dtype that it had in the original files. Tensors that are not trained
    (buffers, and what the architecture ignores) are copied from them.

    Args:
        shards: The original files.
        trained: Their tensors that are parameters of the model.
        out: The folder to write; it is replaced once it is complete.
        group: The ranks.
        gather: Called for every tensor on all ranks, in the same order.
    """
    names = {(tensor.shard.path, tensor.info.name): tensor.name for tensor in trained}
    work = out.with_name(f".{out.name}.partial")
    if group.is_first:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for path in companion_files(shards[0].path.parent):
            shutil.copyfile(path, work / path.name)
    for shard in shards:
        if group.is_first:
            with (work / shard.path.name).open("wb") as file:
                _write_file(shard, names, gather, file)
        else:
            for tensor in shard.tensors:
                if (shard.path, tensor.name) in names:
                    gather(names[shard.path, tensor.name])
    if group.is_first:
        shutil.rmtree(out, ignore_errors=True)
        work.replace(out)
    group.barrier()


def _write_file(
    shard: SafetensorsFile,
    names: dict[tuple[Path, str], str],
    gather: GatherTensor,
    file: BinaryIO,
) -> None:
    # safetensors' own writer takes all tensors of a file at once. The new file has the same names,
    # shapes and dtypes, hence the same header, so tensors can be appended one by one after it.
    file.write(shard.head)
    with safe_open(shard.path, framework="pt") as original:
        for tensor in shard.tensors:
            name = names.get((shard.path, tensor.name))
            if name is None:
                values = original.get_tensor(tensor.name)
            else:
                gathered = gather(name)
                values = gathered.to("cpu", DTYPES.get(tensor.dtype, gathered.dtype))
                del gathered
            file.write(values.flatten().view(torch.uint8).numpy().data)
            # Or two whole tensors would be in memory while the next one is gathered.
            del values
    file.flush()
    os.fsync(file.fileno())
