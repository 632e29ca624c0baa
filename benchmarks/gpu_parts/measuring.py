"""The clock of training steps: speed, memory, synchronisations and how busy the GPU is."""

import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_parts.machine import device, wait
from gpu_parts.models import DIMENSIONS
from gpu_parts.settings import (
    PEAK,
    SEQ_LEN,
    SEQUENCES,
    STEP_SECONDS,
    STEPS,
    WARM_STEPS,
)

Step = Callable[[], Any]
"""Takes a step and returns its loss."""


def measure_steps(step: Step) -> dict[str, Any]:
    """Take steps and return what they cost."""
    on_gpu = device().type == "cuda"
    started = time.perf_counter()
    for _ in range(WARM_STEPS):
        step()
    wait()
    warm_seconds = time.perf_counter() - started
    done, loss, started = 0, 0.0, time.perf_counter()
    while done < STEPS and time.perf_counter() - started < STEP_SECONDS:
        loss = step()
        done += 1
    wait()
    seconds = (time.perf_counter() - started) / done
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    speed = SEQUENCES * SEQ_LEN / seconds
    flops = DIMENSIONS.flops_per_token(SEQ_LEN)
    return {
        "tokens_per_second": speed,
        "mfu": speed * flops / PEAK / 1e12 if on_gpu else None,
        "step_seconds": seconds,
        "steps": done,
        "warm_seconds": warm_seconds,
        "memory_gib": memory,
        "loss": float(loss),
        **(count_synchronisations(step) if on_gpu else {}),
        **(measure_busy_share(step) if on_gpu else {}),
    }


def count_synchronisations(step: Step) -> dict[str, Any]:
    """Count how often a step waits for the GPU, by line of code."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        f"{Path(warning.filename).name}:{warning.lineno}"
        for warning in seen
        if "synchroniz" in str(warning.message).lower()
    )
    return {"synchronisations": places.total(), "synchronise": dict(places.most_common(8))}


def measure_busy_share(step: Step) -> dict[str, Any]:
    """Profile a step: the share of it that the GPU computes. Its longest kernels go to the log."""
    from torch.profiler import ProfilerActivity, profile

    wait()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        started = time.perf_counter()
        step()
        wait()
        seconds = time.perf_counter() - started
    kernels = sorted(seen.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    for kernel in kernels[:20]:
        milliseconds = kernel.self_device_time_total / 1000
        print(f"{milliseconds:9.2f} ms {kernel.count:6} × {kernel.key[:110]}")
    busy = sum(kernel.self_device_time_total for kernel in kernels) / 1e6
    return {"busy": busy / seconds}


def describe(found: dict[str, Any]) -> str:
    """Return what `measure_steps` found for the RESULT line."""
    parts = [f"{found['tokens_per_second']:,.0f} tokens/s"]
    if found["mfu"] is not None:
        parts.append(f"MFU {found['mfu']:.1%} of {PEAK:g} TFLOP/s")
    parts.append(f"{1000 * found['step_seconds']:.1f} ms per step ({found['steps']} steps)")
    if found["memory_gib"] is not None:
        parts.append(f"peak {found['memory_gib']:.2f} GiB")
    if estimate := found.get("estimated_memory_gib"):
        parts.append(f"estimate {estimate:.2f} GiB")
    if ratio := found.get("memory_ratio"):
        parts.append(f"measured / estimated {ratio:.2f}")
    if "synchronisations" in found:
        places = ", ".join(f"{count} × {place}" for place, count in found["synchronise"].items())
        parts.append(f"{found['synchronisations']} synchronisations per step ({places or 'none'})")
        parts.append(f"GPU busy {found['busy']:.0%}")
    parts.append(f"first {WARM_STEPS} steps {found['warm_seconds']:.1f} s")
    parts.append(f"loss {found['loss']:.3f}")
    return ", ".join(parts)
