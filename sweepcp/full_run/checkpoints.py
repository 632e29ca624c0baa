"""Checkpoints of the full run: what each rank holds, in files of its own, readable by any number of ranks.

latest                          the name of the last complete checkpoint, replaced atomically; `step-0` before the first
step-00000500/rank-00000.safetensors   flat parts of the fp32 master weights and the optimizer's moments
step-00000500/manifest.json     step, tokens, skipped steps, and the SHA-256 of each file; written last

Order of writing: each rank its file, flushed to the disk; all wait; the manifest; the pointer. Whatever stops a process
in between, the pointer names a complete checkpoint.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from sweepcp.errors import InvalidInput
from sweepcp.training.process_group import ProcessGroup
from sweepcp.training.sharded_weights import shard_range
from sweepcp.util.files import file_sha256, write_json, write_text
from sweepcp.util.records import Record

NO_CHECKPOINT = "step-0"
"""What `latest` says before the first checkpoint."""


class RunProgress(Record):
    """Where a run stands: `manifest.json` of a checkpoint."""

    format: int = 1
    bundle: str
    """Id of the bundle."""
    step: int
    """Optimizer steps that are done."""
    tokens: dict[str, int]
    """Source → tokens fed to the model."""
    skipped: tuple[int, ...] = ()
    """Steps of the stream that were passed over."""
    rollbacks: int = 0
    """How often the run went back before a spike."""
    recent: tuple[float, ...] = ()
    """The last losses, which a spike is measured against."""
    ranks: int
    sizes: dict[str, int]
    """Tensor → elements of all ranks together."""
    files: dict[str, str]
    """File → SHA-256."""


State = Iterable[tuple[str, int, torch.Tensor]]
"""Name, whole size and this rank's part of every tensor."""


def save_checkpoint(
    folder: Path, state: State, progress: RunProgress, keep: int, ranks: ProcessGroup
) -> None:
    """Write a checkpoint, all ranks together; then the pointer; then remove all but the last `keep`."""
    place = folder / f"step-{progress.step:08d}"
    if ranks.first:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
    ranks.wait()
    parts, sizes = {}, {}
    for name, size, part in state:
        sizes[name] = size
        if len(part):
            parts[name] = part.detach().cpu().contiguous()
    file = place / _rank_file(ranks.rank)
    save_file(parts or {"nothing": torch.zeros(1)}, file)
    with file.open("rb") as written:
        os.fsync(written.fileno())
    hashes = _gather_hashes(file_sha256(file), ranks)
    if ranks.first:
        files = {_rank_file(rank): value for rank, value in enumerate(hashes)}
        complete = progress.model_copy(
            update={"sizes": sizes, "files": files, "ranks": ranks.ranks}
        )
        write_json(place / "manifest.json", complete.model_dump(mode="json"))
        write_text(folder / "latest", place.name + "\n")
        for old in _complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    ranks.wait()


def initialize_checkpoints(folder: Path) -> None:
    """Say that there is no checkpoint yet, so that a pointer that is missing later is known to be lost.

    Raises `BadInput` when there are checkpoints: a run does not start over beside them.
    """
    pointer = folder / "latest"
    if _complete_checkpoints(folder) or (
        pointer.exists() and pointer.read_text(encoding="utf-8").strip() != NO_CHECKPOINT
    ):
        rule = "no checkpoints where a run begins; a run does not start over by itself"
        fix = (
            "restore base.json and held_out_base.json of its run folder, or remove the checkpoints"
        )
        raise InvalidInput(
            file=folder,
            key="the checkpoints",
            found="of a run whose beginning is missing",
            rule=rule,
            fix=fix,
        )
    write_text(pointer, NO_CHECKPOINT + "\n")


def find_checkpoint(
    folder: Path, bundle: str, ranks: ProcessGroup, say: Callable[[str], None]
) -> tuple[Path, RunProgress] | None:
    """The last checkpoint whose files are what its manifest says, all ranks together; None before the first one.

    One that is damaged is said aloud and the one before is taken. Raises `BadInput` when the pointer is missing or
    empty, when no checkpoint is sound, and for a checkpoint of another bundle: a run never starts over by itself.
    """
    pointer, existing = folder / "latest", _complete_checkpoints(folder)
    text = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
    newest = existing[-1].name if existing else NO_CHECKPOINT
    if not text:
        rule = "the name of a checkpoint; a run does not start over by itself"
        found = "empty" if pointer.is_file() else "missing"
        raise InvalidInput(
            file=pointer,
            key="the pointer",
            found=found,
            rule=rule,
            fix=f"write `{newest}` into it to go on from there",
        )
    if text == NO_CHECKPOINT and not existing:
        return None
    if text != newest:
        say(f"{pointer} names {text}, the newest complete checkpoint is {newest}: taking that")
    for place in reversed(existing):
        progress = _read_manifest(place)
        if progress.bundle != bundle:
            rule = "checkpoints of this bundle; another one was trained into this folder"
            raise InvalidInput(
                file=place,
                key="bundle",
                found=progress.bundle[:16],
                rule=rule,
                fix="name another --out",
            )
        damaged = _first_damaged(place, progress, ranks)
        if not damaged:
            return place, progress
        say(f"{place} is damaged ({damaged}); going back to the checkpoint before")
    rule = (
        "a checkpoint whose files are what its manifest says; a run does not start over by itself"
    )
    fix = "restore one from a copy, or name another --out"
    raise InvalidInput(
        file=folder,
        key="the checkpoints",
        found=f"{len(existing)}, none of them sound",
        rule=rule,
        fix=fix,
    )


def read_checkpoint(
    place: Path, progress: RunProgress, ranks: ProcessGroup
) -> Iterator[tuple[str, torch.Tensor]]:
    """This rank's part of every tensor, whatever the number of ranks that wrote them; shape (elements,) each."""
    with ExitStack() as stack:
        files: dict[int, Any] = {}
        for name, size in progress.sizes.items():
            first, last = shard_range(size, ranks.rank, ranks.ranks)
            pieces = []
            for rank in range(progress.ranks):
                begin, end = shard_range(size, rank, progress.ranks)
                low, high = max(first, begin), min(last, end)
                if low < high:
                    if rank not in files:
                        files[rank] = stack.enter_context(
                            safe_open(place / _rank_file(rank), framework="pt")
                        )
                    pieces.append(files[rank].get_slice(name)[low - begin : high - begin])
            yield name, torch.cat(pieces) if pieces else torch.empty(0)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints with a manifest, the oldest first."""
    return sorted(path.parent for path in folder.glob("step-*/manifest.json"))


def _read_manifest(place: Path) -> RunProgress:
    path = place / "manifest.json"
    try:
        return RunProgress.model_validate_json(path.read_bytes())
    except ValidationError as error:
        what = " ".join(str(error).splitlines()[:3])
        rule = "a complete manifest of this version of sweepcp"
        raise InvalidInput(
            file=path,
            key="the manifest",
            found=what,
            rule=rule,
            fix=f"restore it from a copy, or remove {place}",
        ) from None


def _first_damaged(place: Path, progress: RunProgress, ranks: ProcessGroup) -> str:
    """The first file that is not what the manifest says, found by all ranks together; empty if there is none."""
    names = list(progress.files)
    wrong = np.zeros(len(names))
    for number in range(ranks.rank, len(names), ranks.ranks):
        path = place / names[number]
        wrong[number] = not path.is_file() or file_sha256(path) != progress.files[names[number]]
    return next((name for name, bad in zip(names, ranks.total(wrong), strict=True) if bad), "")


def _gather_hashes(value: str, ranks: ProcessGroup) -> list[str]:
    """A hash of every rank, on every rank."""
    table = np.zeros((ranks.ranks, len(value) // 2))
    table[ranks.rank] = list(bytes.fromhex(value))
    return [row.astype(np.uint8).tobytes().hex() for row in ranks.total(table)]
