"""What `sweepcp promote` shows of a bundle."""

import shlex
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.promote.bundle import Bundle

GIB = 2**30


def show_bundle(console: Console, bundle: Bundle, out: Path) -> None:
    """Recipe, corpora, memory, cost and assumptions, and how to start it."""
    for line in _lines(bundle):
        console.print(Text(line), soft_wrap=True)
    console.print(_corpus_table(bundle))
    console.print(
        Text("Assumed, and not shown by any trial:" if bundle.assumptions else "", "bold")
    )
    for assumption in bundle.assumptions:
        console.print(Text(f"- {assumption}"), soft_wrap=True)
    console.print(Text(f"\n{out} is complete. Next:"))
    console.print(Text(f"  {_command(bundle, out)}"), soft_wrap=True)


def _lines(bundle: Bundle) -> list[str]:
    recipe, target, lineage = bundle.recipe, bundle.target, bundle.lineage
    origin = lineage.published or f"trial {lineage.trial} of {lineage.run} ({lineage.chosen_by})"
    peak = recipe.lr_fraction * bundle.model.max_lr
    per_rank = recipe.sequences // target.hardware.world_size
    compute, hardware = target.compute, target.hardware
    extras = (
        [compute.attention] + ["recompute"] * compute.recompute + [f"offload {compute.offload}"]
    )
    return [
        f"recipe    {origin}",
        f"model     {bundle.model.path or f'{bundle.model.hub}@{bundle.model.revision}'}, "
        f"{bundle.model.parameters:,} parameters",
        f"LR        {recipe.lr_fraction:.4g} × {bundle.model.max_lr:g} = {peak:.4g} at its peak, {recipe.schedule}, "
        f"{round(recipe.warmup * recipe.steps):,} steps of warmup, {recipe.final_fraction * peak:.3g} at the end",
        f"steps     {recipe.steps:,} of {recipe.batch_tokens:,} tokens = {recipe.tokens:,}",
        f"devices   {hardware.nodes} × {hardware.per_node} {hardware.device}, {per_rank} sequences of "
        f"{recipe.seq_len} tokens each, {compute.micro_batch} at a time; {compute.precision}, {', '.join(extras)}",
        *_memory(bundle),
        *_cost(bundle),
    ]


def _memory(bundle: Bundle) -> list[str]:
    memory, limit = bundle.memory, bundle.target.hardware.memory_gib
    if bundle.target.hardware.device == "cpu":
        return []
    parts = ("weights", "master", "gradients", "optimizer", "gathered", "activations", "logits")
    each = ", ".join(f"{name} {getattr(memory, name) / GIB:.2f}" for name in parts)
    of = f" of {limit:g}" if limit else ""
    host = f"; {memory.host / GIB:.0f} GiB of a node's memory" if memory.host else ""
    return [f"memory    {memory.total / GIB:.1f}{of} GiB of a GPU, estimated: {each}{host}"]


def _cost(bundle: Bundle) -> list[str]:
    expense = bundle.expense
    if expense.hours is None or expense.device_hours is None:
        return [f"cost      {expense.flops:.3g} FLOPs"]
    price = f", {expense.usd:,.0f} USD" if expense.usd is not None else ""
    days = f"{expense.hours / 24:.1f} days" if expense.hours >= 48 else f"{expense.hours:.3g} hours"
    return [
        f"cost      {expense.flops:.3g} FLOPs: {days} at an MFU of {expense.mfu:.0%}, "
        f"{expense.device_hours:,.0f} device hours{price}"
    ]


def _corpus_table(bundle: Bundle) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        "source",
        "role",
        "language",
        "share",
        "tokens read",
        "training tokens",
        "epochs",
        "at most",
    ):
        table.add_column(
            name,
            justify="left" if name in ("source", "role", "language") else "right",
            no_wrap=True,
        )
    for corpus, portion in zip(bundle.corpora, bundle.recipe.mixture.portions, strict=True):
        planned = " planned" if corpus.store is None else ""
        cells = [
            f"{portion.share:.2%}",
            f"{corpus.read:,}",
            f"{corpus.tokens:,}{planned}",
            f"{corpus.epochs:.3g}",
        ]
        table.add_row(corpus.name, corpus.role, corpus.language, *cells, f"{corpus.max_epochs:g}")
    return table


def _command(bundle: Bundle, out: Path) -> str:
    hardware, folder = bundle.target.hardware, shlex.quote(str(out))
    if any(c.store is None for c in bundle.corpora):
        return "name token stores in place of `planned` in the target, and promote again"
    if hardware.world_size == 1:
        return f"sweepcp train {folder}"
    nodes = (
        ""
        if hardware.nodes == 1
        else f" --nnodes {hardware.nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500"
    )
    return f"torchrun{nodes} --nproc-per-node {hardware.per_node} -m sweepcp train {folder}"
