"""TODO console.plan."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.config.budget import QUASI_RANDOM_TRIALS
from sweepcp.config.space import Choices, Range
from sweepcp.search.plan import Plan


def show_plan(console: Console, plan: Plan) -> None:
    """The plan as tables and lines."""
    experiment, budget, first = plan.experiment, plan.experiment.budget, plan.first
    anchors = min(len(experiment.space.anchors), budget.trials)
    starts = min(QUASI_RANDOM_TRIALS, budget.trials - anchors)
    rest = budget.trials - anchors - starts
    console.print(Text(f"Plan of {experiment.name}", style="bold"))
    lines = [
        f"trials    {budget.trials}: {anchors} anchors, {starts} quasi-random, {rest} by TPE",
        f"a trial   {budget.tokens:,} tokens = {first.steps} steps of {first.batch_tokens:,} tokens "
        f"({first.sequences} sequences of {first.seq_len})",
        f"in all    {budget.trials * budget.tokens:,} tokens",
    ]
    lines += [
        f"space     {name}: {_describe_axis(axis)}" for name, axis in experiment.space.axes.items()
    ]
    lines += [
        f"anchor    {', '.join(f'{k} {v}' for k, v in a.items())}" for a in experiment.space.anchors
    ]
    lines += [
        f"suite     {role}: {m.name}, weight {m.weight:g}" for role, m in experiment.suites.members
    ]
    lines.append(f"choice    {experiment.choose}")
    lines += _base_lines(plan) + _cost_lines(plan)
    console.print(Text("\n".join(f"  {line}" for line in lines)), soft_wrap=True)
    console.print(_lr_table(plan))
    console.print(_source_table(plan))
    parts = [f"{r.part:.3g} of {r.source.name}" for r in plan.readings if r.part < 1]
    if parts:
        matched = f"matched: to repeat its sources as the target's run does, a trial sees {', '.join(parts)}"
        console.print(Text(matched), soft_wrap=True)
    if any(origin == "estimated" for origin in plan.origins.values()):
        console.print(
            Text("estimated: from a sample of the text, before near-duplicates are dropped"),
            style="dim",
        )
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _describe_axis(axis: Range | Choices) -> str:
    if isinstance(axis, Choices):
        return "one of " + ", ".join(str(c) for c in axis.choices)
    return f"{axis.low:g} to {axis.high:g} ({axis.scale})"


def _base_lines(plan: Plan) -> list[str]:
    base = plan.experiment.base
    size = f"{plan.parameters:,} parameters" if plan.parameters else "parameters unknown"
    if base.pretrain is None:
        return [
            f"base      {base.path or f'{base.hub}@{base.revision}'}, {size}, max LR {base.max_lr:g}"
        ]
    return [
        f"base      pretrained here on {base.pretrain.tokens:,} tokens, {size}, max LR {base.max_lr:g}; then cached"
    ]


def _cost_lines(plan: Plan) -> list[str]:
    if plan.trial_flops is None:
        return ["cost      unknown: state base.parameters"]
    budget = plan.experiment.budget
    lines = [
        f"cost      {plan.trial_flops:.3g} FLOPs of training a trial, {plan.trial_flops * budget.trials:.3g} in all"
    ]
    if plan.trial_hours is not None:
        hours = plan.trial_hours * budget.trials
        price = f", {hours * budget.usd_per_hour:,.0f} USD" if budget.usd_per_hour else ""
        lines.append(
            f"          {_format_hours(plan.trial_hours)} a trial at {budget.sustained_tflops:g} TFLOP/s, "
            f"{_format_hours(hours)} of one trial's devices in all{price}; scoring and start-up come on top"
        )
    return lines


def _format_hours(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 0.1 else f"{hours * 3600:.3g} s"


def _lr_table(plan: Plan) -> Table:
    table = Table(
        title=f"LR of the first trial ({plan.first.schedule}, lr_fraction {plan.first.lr_fraction:g})"
    )
    table.add_column("step")
    for step, _ in plan.lr_curve():
        table.add_column(f"{step}", justify="right")
    table.add_row("LR", *(f"{lr:.3g}" for _, lr in plan.lr_curve()))
    return table


def _source_table(plan: Plan) -> Table:
    target = plan.experiment.target
    title = (
        "Sources: share and epochs in the first trial, and epochs at most"
        + " (then in the target's run)" * bool(target)
    )
    table = Table(title=title, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    names = ["source", "role", "language", "training tokens", "share", "epochs", "at most"]
    for name in names + ["target", "at most"] * bool(target):
        table.add_column(
            name,
            justify="left" if name in ("source", "role", "language") else "right",
            no_wrap=True,
        )
    for r in plan.readings:
        epochs = [r.first_epochs, r.most_epochs]
        epochs += [r.target_first_epochs or 0, r.target_most_epochs or 0] if target else []
        table.add_row(
            r.source.name,
            r.source.role,
            r.source.language,
            f"{r.tokens:,.0f} {plan.origins[r.source.name]}",
            f"{r.first_share:.1%}",
            *(f"{e:.3g}" for e in epochs),
        )
    return table
