"""`sweepcp train BUNDLE` with a fault that strikes at a fixed step.

torchrun faulty.py FAULT BUNDLE [--out OUT]
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from sweepcp.cli import main
from sweepcp.data.stream import Batch
from sweepcp.full_run import checkpoints
from sweepcp.training.zero_engine import ZeroEngine
from sweepcp.util.files import write_json, write_text

FAULT, BUNDLE, *OUT = sys.argv[1:]
RANK = int(os.environ.get("RANK", "0"))
real_step = ZeroEngine.step
steps = 0


def kill_rank(rank: int) -> None:
    if rank == RANK:
        os.kill(os.getpid(), signal.SIGKILL)


def faulty_step(
    self: ZeroEngine, batch: Batch, *, target_tokens: int, lr: float
) -> tuple[np.ndarray, float]:
    global steps
    steps += 1
    if FAULT == "kill" and steps == 12:
        kill_rank(1)
    if FAULT == "signal" and steps == 7 and int(os.environ["WORLD_SIZE"]) - 1 == RANK:
        os.kill(os.getpid(), signal.SIGUSR2)
    losses, grad_norm = real_step(self, batch, target_tokens=target_tokens, lr=lr)
    if FAULT == "spike" and int(batch.input_ids.sum()) == int(os.environ[f"BAD_{RANK}"]):
        losses = losses * 10
    if FAULT == "nan" and steps == 12:
        losses = losses * float("nan")
    return losses, grad_norm


def faulty_save_file(tensors: Any, path: Path) -> None:
    save_file(tensors, path)
    if FAULT == "kill-shard" and "step-00000010" in str(path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        kill_rank(1)


def faulty_manifest(path: Path, value: Any) -> None:
    if FAULT == "kill-manifest" and "step-00000010" in str(path):
        kill_rank(0)
    write_json(path, value)


def faulty_pointer(path: Path, text: str) -> None:
    if FAULT == "kill-pointer" and "step-00000010" in text:
        kill_rank(0)
    write_text(path, text)


REPLACED: list[tuple[Any, str, Any]] = [
    (ZeroEngine, "step", faulty_step),
    (checkpoints, "save_file", faulty_save_file),
    (checkpoints, "write_json", faulty_manifest),
    (checkpoints, "write_text", faulty_pointer),
]
for owner, name, replacement in REPLACED:
    setattr(owner, name, replacement)
sys.argv = ["sweepcp", "train", BUNDLE, *OUT]
main()
