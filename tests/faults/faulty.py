"""`sweepcp train BUNDLE` with a fault: torchrun faulty.py FAULT BUNDLE [OUT]. Faults strike at fixed steps."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from sweepcp.cli.app import main
from sweepcp.full_run import checkpoints
from sweepcp.training.zero_engine import ZeroEngine

FAULT, BUNDLE, *OUT = sys.argv[1:]
RANK = int(os.environ.get("RANK", "0"))
step, save_file = ZeroEngine.step, checkpoints.save_file
steps = 0


def die(rank: int) -> None:
    if rank == RANK:
        os.kill(os.getpid(), signal.SIGKILL)


def faulty_step(self: ZeroEngine, batch: Any, targets: int, lr: float) -> Any:
    global steps
    steps += 1
    if FAULT == "kill" and steps == 12:
        die(1)
    if FAULT == "signal" and steps == 7 and int(os.environ["WORLD_SIZE"]) - 1 == RANK:
        os.kill(os.getpid(), signal.SIGUSR2)
    losses, norm = step(self, batch, targets, lr)
    if FAULT == "spike" and int(batch.input_ids.sum()) == int(os.environ[f"BAD_{RANK}"]):
        losses = losses * 10
    if FAULT == "nan" and steps == 12:
        losses = losses * float("nan")
    return losses, norm


def faulty_save_file(tensors: Any, path: Path) -> None:
    save_file(tensors, path)
    if FAULT == "kill-shard" and "step-00000010" in str(path):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        die(1)


def faulty_manifest(path: Path, value: Any) -> None:
    if FAULT == "kill-manifest" and "step-00000010" in str(path):
        die(0)
    write_json(path, value)


def faulty_pointer(path: Path, text: str) -> None:
    if FAULT == "kill-pointer" and "step-00000010" in text:
        die(0)
    write_text(path, text)


write_json, write_text = checkpoints.write_json, checkpoints.write_text
ZeroEngine.step = faulty_step  # type: ignore[method-assign]
checkpoints.save_file = faulty_save_file  # type: ignore[attr-defined]
checkpoints.write_json, checkpoints.write_text = faulty_manifest, faulty_pointer  # type: ignore[attr-defined]
sys.argv = ["sweepcp", "train", BUNDLE, *OUT]
main()
