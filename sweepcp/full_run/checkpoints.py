"""Checkpoints of the full run: each rank writes its own shards, any number of ranks can read them.

latest                     the name of the last complete checkpoint, replaced atomically;
                           `step-0` before the first
step-00000500/             one checkpoint
    rank-00000.safetensors flat shards of the fp32 master weights and the optimizer's moments
    manifest.json          step, tokens, skipped steps, and the SHA-256 of each file; written last

Order of writing: each rank writes its file and flushes it to the disk; all ranks wait; the
manifest; the pointer `latest`. Wherever a process is killed in between, the pointer names a
complete checkpoint.
"""

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file

from sweepcp.errors import InvalidInput
from sweepcp.models.files import read_safetensors_header
from sweepcp.training.process_group import ProcessGroup
from sweepcp.training.sharded_weights import shard_range
from sweepcp.util.files import file_sha256, write_json, write_text
from sweepcp.util.records import Record, read_record, read_text

NO_CHECKPOINT = "step-0"
"""Content of `latest` before the first checkpoint."""
NO_TENSOR = "nothing"
"""Tensor in the file of a rank that has no shards."""

State = Iterable[tuple[str, int, torch.Tensor]]
"""Name, elements of the whole tensor, and this rank's shard of every tensor."""

logger = logging.getLogger(__name__)


class RunProgress(Record):
    """How far a run has got: `manifest.json` of a checkpoint."""

    format: int = 1
    """Version of the format."""
    bundle: str
    """Id of the bundle."""
    step: Annotated[int, Field(ge=0)]
    """Optimizer steps taken."""
    tokens: dict[str, int]
    """Source → tokens fed to the model."""
    skipped: tuple[int, ...] = ()
    """Steps of the stream that are skipped."""
    rollbacks: int = 0
    """How often the run was rolled back to before a spike."""
    recent: tuple[float, ...] = ()
    """The last losses, which the next one is compared with to find a spike."""
    ranks: int
    """Number of ranks that wrote the checkpoint."""
    sizes: dict[str, int]
    """Tensor → elements of the shards of all ranks together."""
    files: dict[str, str]
    """File → SHA-256."""


def initialize_checkpoints(folder: Path) -> None:
    """Record that there is no checkpoint yet, so that a missing pointer is known to be lost.

    Raises:
        InvalidInput: There are checkpoints: a run never starts over beside them.
    """
    pointer = folder / "latest"
    text = NO_CHECKPOINT
    if pointer.exists():
        text = read_text(pointer, fix="restore the file from a backup, or remove it").strip()
    if _complete_checkpoints(folder) or text != NO_CHECKPOINT:
        raise InvalidInput(
            file=folder,
            key="the checkpoints",
            found="those of a run that has no base.json",
            rule="no checkpoints where a run begins; a run does not start over by itself",
            fix="restore base.json and run.json of its run folder, or remove the checkpoints",
        )
    write_text(pointer, NO_CHECKPOINT + "\n")


def save_checkpoint(
    folder: Path, state: State, progress: RunProgress, group: ProcessGroup, *, keep: int
) -> None:
    """Write a checkpoint and then the pointer to it, all ranks together.

    Args:
        folder: Of all checkpoints of the run.
        state: This rank's shards.
        progress: How far the run has got.
        group: The ranks.
        keep: Complete checkpoints that are kept; older ones are removed.
    """
    checkpoint = folder / _folder_name(progress.step)
    if group.is_first:
        # What was left of a checkpoint that was not completed, perhaps by more ranks.
        shutil.rmtree(checkpoint, ignore_errors=True)
        checkpoint.mkdir(parents=True)
    group.barrier()
    shards, sizes = {}, {}
    for name, size, shard in state:
        sizes[name] = size
        if len(shard):
            shards[name] = shard.detach().cpu().contiguous()
    file = checkpoint / _rank_file(group.rank)
    # safetensors refuses a file without tensors, which the last ranks may have to write.
    save_file(shards or {NO_TENSOR: torch.zeros(1)}, file)
    with file.open("rb") as written:
        os.fsync(written.fileno())
    # Gathering the hashes waits for all ranks: none writes after the manifest.
    hashes = _gather_hashes(file_sha256(file), group)
    if group.is_first:
        files = {_rank_file(rank): value for rank, value in enumerate(hashes)}
        manifest = progress.model_copy(
            update={"sizes": sizes, "files": files, "ranks": group.world_size}
        )
        write_json(checkpoint / "manifest.json", manifest.model_dump(mode="json"))
        write_text(folder / "latest", checkpoint.name + "\n")
        for old in _complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    group.barrier()


def find_checkpoint(
    folder: Path, bundle_id: str, group: ProcessGroup
) -> tuple[Path, RunProgress] | None:
    """Find the last checkpoint whose files match its manifest, all ranks together.

    A damaged checkpoint is reported and the one before it is used. A run never starts over by
    itself, so whatever else is wrong is an error.

    Returns:
        The folder and the progress of the checkpoint, or None if none was saved yet.

    Raises:
        InvalidInput: The pointer is missing or empty, all checkpoints are damaged, or they belong
            to another bundle.
    """
    existing = _complete_checkpoints(folder)
    newest = existing[-1].name if existing else NO_CHECKPOINT
    pointed = _read_pointer(folder / "latest", newest)
    if pointed == NO_CHECKPOINT and not existing:
        return None
    if pointed != newest:
        # A process was killed between the manifest and the pointer.
        logger.warning(
            "%s names %s, but the newest complete checkpoint is %s, which is used instead",
            folder / "latest",
            pointed,
            newest,
        )
    for checkpoint in reversed(existing):
        progress = _read_manifest(checkpoint)
        if progress.bundle != bundle_id:
            raise InvalidInput(
                file=checkpoint,
                key="bundle",
                found=progress.bundle[:16],
                rule="checkpoints of this bundle; this folder has those of another one",
                fix="name another --out",
            )
        damaged = _first_damaged(checkpoint, progress, group)
        if not damaged:
            _check_sizes(checkpoint, progress)
            return checkpoint, progress
        logger.warning("%s is damaged (%s); using the checkpoint before it", checkpoint, damaged)
    raise InvalidInput(
        file=folder,
        key="the checkpoints",
        found=f"{len(existing)}, all of them damaged",
        rule="a checkpoint whose files match its manifest; a run does not start over by itself",
        fix="restore a checkpoint from a copy, or name another --out",
    )


def read_checkpoint(
    checkpoint: Path, progress: RunProgress, group: ProcessGroup
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read this rank's shard of every tensor, whatever the number of ranks that wrote them.

    Yields:
        Name and shard, shape (elements,).
    """
    with ExitStack() as stack:
        files: dict[int, Any] = {}
        for name, size in progress.sizes.items():
            first, last = shard_range(size, rank=group.rank, world_size=group.world_size)
            # This rank's shard overlaps those of one or more of the ranks that wrote.
            pieces = []
            for rank in range(progress.ranks):
                begin, end = shard_range(size, rank=rank, world_size=progress.ranks)
                low, high = max(first, begin), min(last, end)
                if low >= high:
                    continue
                if rank not in files:
                    opened = safe_open(checkpoint / _rank_file(rank), framework="pt")
                    files[rank] = stack.enter_context(opened)
                pieces.append(files[rank].get_slice(name)[low - begin : high - begin])
            yield name, torch.cat(pieces) if pieces else torch.empty(0)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _complete_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints with a manifest, the oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/manifest.json"))


def _read_manifest(checkpoint: Path) -> RunProgress:
    file = checkpoint / "manifest.json"
    fix = f"restore the file from a backup, or remove {checkpoint}"
    progress = read_record(RunProgress, file, fix=fix)
    files = {_rank_file(rank) for rank in range(len(progress.files))}
    if progress.ranks != len(progress.files) or files != set(progress.files):
        raise InvalidInput(
            file=file,
            key="files",
            found=sorted(progress.files),
            rule=f"one file for each of the {progress.ranks} ranks",
            fix=fix,
        )
    if checkpoint.name != _folder_name(progress.step):
        raise InvalidInput(
            file=file,
            key="step",
            found=progress.step,
            rule=f"the step of {checkpoint.name}",
            fix=fix,
        )
    return progress


def _check_sizes(checkpoint: Path, progress: RunProgress) -> None:
    """Raise `InvalidInput` unless the files of all ranks hold the tensors of the manifest."""
    sizes: Counter[str] = Counter()
    for rank in range(progress.ranks):
        for tensor in read_safetensors_header(checkpoint / _rank_file(rank)).tensors:
            sizes[tensor.name] += tensor.size
    del sizes[NO_TENSOR]
    if sizes != progress.sizes:
        different = sorted(sizes.items() ^ progress.sizes.items())[:1]
        raise InvalidInput(
            file=checkpoint / "manifest.json",
            key="sizes",
            found=different,
            rule="the elements of the tensors in the files of the ranks",
            fix=f"restore the file from a backup, or remove {checkpoint}",
        )


def _folder_name(step: int) -> str:
    return f"step-{step:08d}"


def _read_pointer(pointer: Path, newest: str) -> str:
    text = read_text(pointer, fix=f"write `{newest}` into it").strip() if pointer.exists() else ""
    if not text:
        raise InvalidInput(
            file=pointer,
            key="the pointer",
            found="empty" if pointer.exists() else "missing",
            rule="the name of a checkpoint; a run does not start over by itself",
            fix=f"write `{newest}` into it to resume from there",
        )
    return text


def _first_damaged(checkpoint: Path, progress: RunProgress, group: ProcessGroup) -> str:
    """Return the first file that does not match the manifest, or an empty string if all do."""
    names = list(progress.files)
    damaged = np.zeros(len(names))
    # Hashing is slow, so the ranks share the files.
    for number in range(group.rank, len(names), group.world_size):
        path = checkpoint / names[number]
        damaged[number] = not path.is_file() or file_sha256(path) != progress.files[names[number]]
    on_any_rank = group.all_reduce_sum(damaged)
    return next((name for name, bad in zip(names, on_any_rank, strict=True) if bad), "")


def _gather_hashes(value: str, group: ProcessGroup) -> list[str]:
    """Return the hash of every rank, on every rank."""
    # Each rank fills its own row and leaves the others 0, so the sum gathers the rows of all.
    table = np.zeros((group.world_size, len(value) // 2))
    table[group.rank] = list(bytes.fromhex(value))
    return [row.astype(np.uint8).tobytes().hex() for row in group.all_reduce_sum(table)]
