"""A stand-in for `nvidia-smi`, by which a machine without GPUs seems to have some."""

from pathlib import Path

import pytest

H100 = "GPU-h{index}, NVIDIA H100 80GB HBM3, 81559, 9.0"
T4 = "GPU-t{index}, Tesla T4, 15360, 7.5"


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *cards: str) -> None:
    """Put a `nvidia-smi` on PATH that lists some cards, and unset CUDA_VISIBLE_DEVICES."""
    lines = [f"{index}, {card.format(index=index)}" for index, card in enumerate(cards)]
    program = folder / "bin" / "nvidia-smi"
    program.parent.mkdir(exist_ok=True)
    program.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(lines) + "\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
