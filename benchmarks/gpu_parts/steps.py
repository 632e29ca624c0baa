"""Training steps of a Llama of 135 M parameters: those of a trial, and a plain PyTorch loop."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from gpu_parts.machine import device
from gpu_parts.measuring import describe, measure_steps
from gpu_parts.models import DIMENSIONS, make_model, resolved
from gpu_parts.settings import MICRO_BATCH, SEQ_LEN, SEQUENCES, SHAPE, TINY, Finding, Skipped
from gpu_parts.stores import make_recipe, write_stores

MAX_LR = 3e-3


def trial(
    work: Path, *, packed: bool = True, attention: str = "auto", compiled: bool = False
) -> Finding:
    """Measure the steps of a trial: fp32 weights, bf16 autocast, sweepcp's loop and stream."""
    from sweepcp.data.stream import MixtureStream
    from sweepcp.training.engine import PlainEngine
    from sweepcp.training.loop import run_training

    name = resolved(attention, in_bf16=True)
    if attention != "auto" and not TINY and name == resolved("auto", in_bf16=True):
        raise Skipped(f"auto is {name}, which the part `packed` measures")
    recipe = make_recipe(packed=packed)
    model = make_model(name)
    if compiled:
        from sweepcp.models.layers import compile_layers

        check_compiler()
        compile_layers(model)
    engine = PlainEngine(model, recipe, micro_batch=MICRO_BATCH, precision="bf16")
    rows = run_training(engine, recipe, MixtureStream(recipe, write_stores(work)), max_lr=MAX_LR)
    found = measure_steps(lambda: next(rows).loss)
    found |= {"attention": name, "packed": packed, "compiled": compiled}
    found |= compare_with_estimate(found["memory_gib"], attention=name, packed=packed)
    return Finding(f"{name}: {describe(found)}", found)


def check_compiler() -> None:
    """Raise `Skipped` where torch.compile has no compiler: on a CPU it needs one of C++."""
    if device().type == "cpu" and shutil.which("g++") is None:
        raise Skipped("torch.compile on a CPU needs g++")


def compare_with_estimate(
    measured: float | None, *, attention: str, packed: bool
) -> dict[str, Any]:
    """Estimate the memory of a trial's steps in GiB, and divide the measured memory by it."""
    from sweepcp.models.memory import training_memory

    estimate = training_memory(
        DIMENSIONS,
        micro_batch=MICRO_BATCH,
        seq_len=SEQ_LEN,
        in_bf16=True,
        attention=attention,
        recompute=False,
        isolated=packed,
    )
    gib = estimate.total / 2**30
    ratio = None if measured is None else measured / gib
    return {"estimated_memory_gib": gib, "memory_ratio": ratio}


def plain(work: Path, *, compiled: bool = False) -> Finding:
    """Measure the same model in a loop as one writes it in PyTorch: causal attention without
    separation of documents, one batch that stays on the device, nothing waited for."""
    model = make_model("sdpa").train()
    forward = model
    if compiled:
        check_compiler()
        # Inductor takes a minute for the whole model on two cores.
        forward = torch.compile(model, backend="aot_eager" if TINY else "inductor")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    ids = torch.randint(0, SHAPE["vocab_size"], (SEQUENCES, SEQ_LEN + 1), device=device())

    def step() -> torch.Tensor:
        total = torch.zeros((), device=device())
        for rows in ids.split(MICRO_BATCH):
            with torch.autocast(device().type, torch.bfloat16):
                logits = forward(input_ids=rows[:, :-1], use_cache=False).logits
                loss = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
                loss = loss * len(rows) / SEQUENCES
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    found = measure_steps(step) | {"attention": "sdpa", "packed": False, "compiled": compiled}
    return Finding(describe(found), found)
