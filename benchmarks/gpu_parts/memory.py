"""Out of memory for real: a trial that is cut down to what the GPU has, and the one after it."""

from pathlib import Path
from typing import Any

import torch

from gpu_parts.machine import device
from gpu_parts.models import DIMENSIONS, write_model
from gpu_parts.settings import SEQ_LEN, SEQUENCES, SHAPE, TINY, Finding
from gpu_parts.stores import ROLES, make_recipe, write_store

FITTING = 2 if TINY else 4
"""Sequences per forward pass that the memory is cut down to."""
TRIAL_STEPS = 3


def out_of_memory(work: Path) -> Finding:
    """Run two trials of `micro_batch: auto` with far less memory than the estimate counts on."""
    runner = make_runner(work)
    limit = cut_memory(runner.model)
    recipe = make_recipe()
    recipe = recipe.model_copy(update={"tokens": TRIAL_STEPS * recipe.batch_tokens})
    costs, losses = [], []
    for _ in range(2):
        *rows, outcome = runner.run(recipe)
        if outcome.status != "done":
            raise RuntimeError(f"{outcome.status}: {outcome.reason}")
        costs.append(outcome.cost)
        losses.append([row.loss for row in rows])
    first, second = costs
    if not (first.first_micro_batch > first.micro_batch == second.first_micro_batch):
        raise RuntimeError(f"micro batches {first}; {second}")
    difference = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    numbers = {
        "limit_gib": limit,
        "first": [first.first_micro_batch, first.micro_batch],
        "second": [second.first_micro_batch, second.micro_batch],
        "memory_gib": second.memory_gib,
        "estimated_memory_gib": second.estimated_memory_gib,
        "loss_difference": difference,
    }
    where = f"{limit:.2f} GiB" if limit else "a stand-in for the GPU's memory"
    text = (
        f"with {where}, a trial halved its micro batch from {first.first_micro_batch} to "
        f"{first.micro_batch} of {SEQUENCES} sequences and finished; the next one started with "
        f"{second.first_micro_batch}; losses differ by at most {difference:.1e}"
    )
    return Finding(text, numbers)


def make_runner(work: Path) -> Any:
    """Build what a worker runs trials with."""
    from sweepcp.config.base_model import BaseSpec
    from sweepcp.config.suites import MemberSpec, Suites
    from sweepcp.scoring.spec import make_scoring_spec
    from sweepcp.search.trial_runner import TrialRunner
    from sweepcp.search.worker_io import WorkerSpec

    model = write_model(work / "135m", SHAPE)
    stores = {source: write_store(work / "stores", source) for source in ROLES}
    suites = Suites(
        domain=(MemberSpec(held_out="code", items=8),),
        general=(MemberSpec(held_out="docs", items=8),),
    )
    scoring = make_scoring_spec(
        suites,
        stores,
        languages=dict.fromkeys(ROLES, "en"),
        seq_len=SEQ_LEN,
        packed=True,
        precision="auto",
    )
    spec = WorkerSpec(
        base=BaseSpec(path=str(model), max_lr=3e-4),
        model=str(model),
        stores=tuple(stores.values()),
        scoring=scoring,
        micro_batch="auto",
        precision="auto",
        attention="auto",
        recompute=False,
        compile=False,
        threads=1,
        device="cpu" if TINY else "cuda",
        gpu_share=0.0 if TINY else 1.0,
    )
    return TrialRunner(spec)


def cut_memory(model: Any) -> float | None:
    """Leave memory for about `FITTING` sequences; returns GiB, or None for the stand-in."""
    if device().type == "cpu":

        def raise_if_large(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
            if module.training and keywords["input_ids"].numel() > FITTING * SEQ_LEN:
                raise torch.OutOfMemoryError("more than a stand-in for a GPU has")

        model.register_forward_pre_hook(raise_if_large, with_kwargs=True)
        return None

    from sweepcp.models.attention import attention_of
    from sweepcp.models.memory import training_memory

    estimate = training_memory(
        DIMENSIONS,
        micro_batch=FITTING,
        seq_len=SEQ_LEN,
        in_bf16=True,
        attention=attention_of(model),
        recompute=False,
        isolated=True,
    )
    # Somewhat more than the estimate, so that it fits even if that is too low by a fifth.
    limit = 1.25 * estimate.total
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit / total)
    return limit / 2**30
