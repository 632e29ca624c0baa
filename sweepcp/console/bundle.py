"""Print a bundle that `sweepcp promote` wrote."""

import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from sweepcp.config.budget import PUBLISHED_OVERRUN
from sweepcp.console.tables import Column, Row, print_line, print_table
from sweepcp.promote.bundle import Bundle
from sweepcp.training.deepspeed_config import divides_batch
from sweepcp.util.memory import GIB

MEMORY_USES = (
    *("weights", "master", "gradients", "optimizer", "gathered"),
    *("activations", "masks", "logits"),
)
COLUMNS = (
    Column(name="source", is_text=True),
    Column(name="role", is_text=True, drop=4),
    Column(name="language", is_text=True, drop=5),
    Column(name="share"),
    Column(name="tokens read", drop=1),
    Column(name="training tokens", drop=3),
    Column(name="epochs"),
    Column(name="max epochs", drop=2),
)
MAX_HOURS = 48
"""Longer runs are shown in days."""


def show_bundle(console: Console, bundle: Bundle, out: Path) -> None:
    """Print recipe, corpora, memory, cost and assumptions, and the command that starts the run."""
    lines = [
        _recipe_line(bundle),
        _model_line(bundle),
        _lr_line(bundle),
        _steps_line(bundle),
        _devices_line(bundle),
    ]
    if bundle.target.hardware.device == "cuda":
        lines.append(_memory_line(bundle))
    lines.append(_cost_line(bundle))
    for line in lines:
        print_line(console, line)
    print_table(console, "Corpora", COLUMNS, _corpus_rows(bundle))
    if bundle.assumptions:
        console.print(Text("Assumptions that no trial has tested:", "bold"))
    for assumption in bundle.assumptions:
        print_line(console, f"- {assumption}")
    console.print(Text(f"\n{out} is complete. Next:"), soft_wrap=True)
    console.print(Text(f"  {_next_step(bundle, out)}"), soft_wrap=True)


def _recipe_line(bundle: Bundle) -> str:
    lineage = bundle.lineage
    trial = f"trial {lineage.trial} of {lineage.run} ({lineage.chosen_by})"
    return f"recipe    {lineage.published or trial}"


def _model_line(bundle: Bundle) -> str:
    model = bundle.model
    name = model.path or f"{model.hub}@{model.revision}"
    return f"model     {name}, {model.parameters:,} parameters"


def _lr_line(bundle: Bundle) -> str:
    recipe, max_lr = bundle.recipe, bundle.model.max_lr
    peak = recipe.lr_fraction * max_lr
    return (
        f"LR        {recipe.lr_fraction:.4g} × {max_lr:g} = {peak:.4g} at its peak, "
        f"{recipe.schedule}, {recipe.warmup_length:,} steps of warmup, "
        f"{recipe.lr(recipe.steps, max_lr=max_lr):.3g} at the end"
    )


def _steps_line(bundle: Bundle) -> str:
    recipe = bundle.recipe
    return (
        f"steps     {recipe.steps:,} of {recipe.batch_tokens:,} tokens = {recipe.tokens:,} tokens"
    )


def _devices_line(bundle: Bundle) -> str:
    recipe, target = bundle.recipe, bundle.target
    hardware, compute, parallelism = target.hardware, target.compute, target.parallelism
    settings: list[str] = [compute.precision, f"attention {compute.attention}"]
    if compute.recompute:
        settings.append("recompute")
    settings.append(f"offload {compute.offload}")
    sharing = []
    if divides_batch(recipe, target, world_size=hardware.world_size):
        sharing.append(f"{recipe.sequences // hardware.world_size} per device (ZeRO-3)")
    if parallelism.devices_per_replica > 1:
        sharing.append(
            f"{recipe.sequences // target.replicas} per replica of tensor {parallelism.tensor} × "
            f"pipeline {parallelism.pipeline} (exports)"
        )
    return (
        f"devices   {hardware.nodes} × {hardware.per_node} {hardware.device}; {recipe.sequences:,} "
        f"sequences of {recipe.seq_len} tokens per step, {' or '.join(sharing)}, "
        f"{compute.micro_batch} per pass; {', '.join(settings)}"
    )


def _memory_line(bundle: Bundle) -> str:
    memory, limit = bundle.memory, bundle.target.hardware.memory_gib
    sizes = {use: getattr(memory, use) for use in MEMORY_USES}
    uses = ", ".join(f"{use} {size / GIB:.2f}" for use, size in sizes.items() if size)
    available = f" of {limit:g}" if limit else ""
    host = f"; {memory.host / GIB:.0f} GiB of host memory per node" if memory.host else ""
    return (
        f"memory    {memory.total / GIB:.1f}{available} GiB per GPU under ZeRO-3, estimated: "
        f"{uses}{host}"
    )


def _cost_line(bundle: Bundle) -> str:
    expense = bundle.expense
    if expense.hours is None or expense.device_hours is None:
        return f"cost      {expense.flops:.3g} FLOPs"
    low, high = expense.hours
    duration = f"{low:.3g} to {high:.3g} hours"
    if low >= MAX_HOURS:
        duration = f"{low / 24:.1f} to {high / 24:.1f} days"
    low, high = expense.device_hours
    used = f"{low:,.0f} to {high:,.0f} device hours"
    price = ""
    if expense.usd is not None:
        low, high = expense.usd
        price = f", {low:,.0f} to {high:,.0f} USD"
    return (
        f"cost      {expense.flops:.3g} FLOPs: {duration}, {used}{price} (at an MFU of "
        f"{expense.mfu:.0%}; published runs took up to {PUBLISHED_OVERRUN:g} times as long)"
    )


def _corpus_rows(bundle: Bundle) -> list[Row]:
    rows = []
    for corpus, portion in zip(bundle.corpora, bundle.recipe.mixture.portions, strict=True):
        planned = " planned" if corpus.store is None else ""
        cells = (
            corpus.name,
            corpus.role,
            corpus.language,
            f"{portion.share:.2%}",
            f"{corpus.read:,}",
            f"{corpus.tokens:,}{planned}",
            f"{corpus.epochs:.3g}",
            f"{corpus.max_epochs:g}",
        )
        rows.append(Row(cells=cells))
    return rows


def _next_step(bundle: Bundle, out: Path) -> str:
    """Return the command that starts the run, or what has to be done before."""
    hardware, folder = bundle.target.hardware, shlex.quote(str(out))
    if any(corpus.store is None for corpus in bundle.corpora):
        return "name token stores in place of `planned` in the target, and promote again"
    if not divides_batch(bundle.recipe, bundle.target, world_size=hardware.world_size):
        return f"sweepcp export {folder} --to megatron-lm --out export"
    if hardware.world_size == 1:
        return f"sweepcp train {folder}"
    options = f"--nproc-per-node {hardware.per_node}"
    if hardware.nodes > 1:
        rendezvous = "--rdzv-backend c10d --rdzv-endpoint HOST:29500"
        options = f"--nnodes {hardware.nodes} {rendezvous} {options}"
    return f"torchrun {options} -m sweepcp train {folder}"
