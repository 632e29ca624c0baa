"""What the machine has, and how fast its matrix product is."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gpu_parts.settings import PEAK, TINY, Finding

PACKAGES = (
    *("sweepcp", "torch", "triton", "transformers", "accelerate", "tokenizers", "numpy", "pandas"),
    *("pyarrow", "ray", "optuna", "datasets", "deepspeed", "lm_eval", "pydantic", "flash_attn"),
)
PRODUCTS = 3 if TINY else 30


def device() -> torch.device:
    """Return the device of the parts, as a trial opens it: the GPU, or the CPU in the rehearsal."""
    from sweepcp.training.device import open_device

    return open_device("cpu" if TINY else "cuda")


def wait() -> None:
    """Wait for the GPU."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def driver_version() -> str | None:
    """Return the version of the driver as `nvidia-smi` states it; None without it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout else None


def package_version(name: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def product_tflops() -> float:
    """Measure the product of square bf16 matrices."""
    size = 512 if TINY else 8192
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    wait()
    started = time.perf_counter()
    for _ in range(PRODUCTS):
        a @ b
    wait()
    seconds = (time.perf_counter() - started) / PRODUCTS
    return float(2 * size**3 / seconds / 1e12)


def versions_and_peak(work: Path) -> Finding:
    """Name the card and the versions, and measure the product of bf16 matrices."""
    on_gpu = device().type == "cuda"
    card = torch.cuda.get_device_properties(0) if on_gpu else None
    packages = {name: package_version(name) for name in PACKAGES}
    numbers = {
        "card": card.name if card else "CPU",
        "capability": f"{card.major}.{card.minor}" if card else None,
        "memory_gib": card.total_memory / 2**30 if card else None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": driver_version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,
        "packages": packages,
        "product_tflops": product_tflops(),
        "stated_peak_tflops": PEAK,
    }
    installed = [f"{name} {number}" for name, number in packages.items() if number]
    text = (
        f"{numbers['card']}, {numbers['cores']} cores, driver {numbers['driver'] or 'none'}, CUDA "
        f"{numbers['cuda']}, NCCL {numbers['nccl'] or 'none'}, Python {numbers['python']}; "
        f"products of bf16 matrices {numbers['product_tflops']:,.1f} TFLOP/s (stated peak "
        f"{PEAK:g}); {', '.join(installed)}"
    )
    return Finding(text, numbers)
