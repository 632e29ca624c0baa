"""The GPUs that a process on this machine may use, without importing torch."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

Device = Literal["cpu", "cuda"]
logger = logging.getLogger(__name__)
QUERY = ("--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits")
ANSWER_SECONDS = 60.0
"""A driver that is not kept loaded takes seconds to answer."""
SHOWN_CHARACTERS = 200
"""How much is shown of an answer that is none."""
BF16_CAPABILITY = (8, 0)
"""Compute capability from which a GPU computes in bf16: Ampere's."""


@dataclass(frozen=True)
class Gpu:
    """What is known of a GPU before torch is imported; None where it is not known."""

    name: str
    memory_gib: float | None
    capability: tuple[int, int] | None
    """CUDA's compute capability, such as (9, 0)."""

    @property
    def has_bf16(self) -> bool | None:
        """Whether it computes in bf16; None if its capability is not known."""
        return None if self.capability is None else self.capability >= BF16_CAPABILITY


def hide_gpus() -> None:
    """Hide all GPUs from this process. Call it before torch is imported.

    Ray leaves all of them visible to workers that ask for none.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def visible_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs of this machine that `nvidia-smi` lists and CUDA_VISIBLE_DEVICES allows."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or (allowed is not None and not allowed.strip()):
        return ()
    listed = _listed_gpus(program)
    return tuple(listed.values()) if allowed is None else _allowed_gpus(program, allowed)


@cache
def _listed_gpus(program: str) -> dict[tuple[str, str], Gpu]:
    """Return (index, UUID) → GPU, as `nvidia-smi` answers."""
    try:
        answer = subprocess.run(
            [program, *QUERY],
            capture_output=True,
            check=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_SECONDS,
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        reason: object = f"no answer in {ANSWER_SECONDS:g} s"
        if not isinstance(error, subprocess.TimeoutExpired):
            reason = getattr(error, "stdout", None) or getattr(error, "stderr", None) or error
        logger.warning("no GPU is used: nvidia-smi failed (%s)", _one_line(reason))
        return {}
    gpus = {}
    for line in answer.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) >= 5 and cells[0].isdecimal():
            # A name may hold commas.
            index, uuid, *names, memory, capability = cells
            name = ", ".join(names)
            gpus[index, uuid] = Gpu(name, _gib(memory), _capability(capability))
    if not gpus and answer.strip():
        logger.warning("no GPU is used: nvidia-smi lists none (%s)", _one_line(answer))
    return gpus


@cache
def _allowed_gpus(program: str, allowed: str) -> tuple[Gpu, ...]:
    """Return GPUs in the order of CUDA_VISIBLE_DEVICES; none if it names one twice, as CUDA."""
    entries = [entry.strip() for entry in allowed.split(",")]
    gpus = tuple(_named_gpus(_listed_gpus(program), entries))
    if len(set(entries[: len(gpus)])) == len(gpus):
        return gpus
    logger.warning("no GPU is used: CUDA_VISIBLE_DEVICES names one twice (%s)", _one_line(allowed))
    return ()


def _named_gpus(listed: dict[tuple[str, str], Gpu], entries: Iterable[str]) -> Iterator[Gpu]:
    """Yield GPUs by index or UUID, up to the first entry that names none."""
    for entry in entries:
        if entry.startswith("MIG-"):
            # `nvidia-smi` lists whole GPUs only; an instance of one has a part of its memory.
            capability = next((gpu.capability for gpu in listed.values()), None)
            yield Gpu("MIG instance", None, capability)
            continue
        is_uuid = entry.startswith("GPU-")
        found = [
            gpu
            for (index, uuid), gpu in listed.items()
            if (uuid.startswith(entry) if is_uuid else index == entry)
        ]
        if len(found) != 1:
            return  # CUDA ignores what follows an entry that it does not know
        yield found[0]


def _one_line(reason: object) -> str:
    return repr(" ".join(str(reason).split())[:SHOWN_CHARACTERS])[1:-1]


def _gib(text: str) -> float | None:
    try:
        return float(text) / 1024  # nvidia-smi counts in MiB
    except ValueError:  # [N/A] where GPU and CPU share their memory
        return None


def _capability(text: str) -> tuple[int, int] | None:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
