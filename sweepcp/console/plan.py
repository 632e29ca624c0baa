"""Print the plan of a search."""

from rich.console import Console
from rich.text import Text

from sweepcp.config.budget import PUBLISHED_OVERRUN, QUASI_RANDOM_TRIALS
from sweepcp.config.space import Choices, Range
from sweepcp.console.tables import Column, Row, print_line, print_table
from sweepcp.search.plan import Plan
from sweepcp.util.memory import GIB

SHOWN_BYTES = GIB // 20
"""Less is shown as 0.0 GiB."""
COLUMNS = (
    Column(name="source", is_text=True),
    Column(name="role", is_text=True, drop=4),
    Column(name="language", is_text=True, drop=5),
    Column(name="training tokens", drop=3),
    Column(name="share", drop=1),
    Column(name="epochs"),
    Column(name="at most"),
)
TARGET_COLUMNS = (Column(name="target", drop=2), Column(name="target at most", drop=2))


def show_plan(console: Console, plan: Plan) -> None:
    """Print what a search would run and cost, and every warning."""
    console.print(Text(f"Plan of {plan.experiment.name}", style="bold"))
    lines = [*_trial_lines(plan), *_choice_lines(plan), _base_line(plan)]
    lines += [*_memory_lines(plan), *_cost_lines(plan)]
    print_line(console, "\n".join(f"  {line}" for line in lines))
    _print_lr_curve(console, plan)
    _print_sources(console, plan)
    limited = [count for count in plan.epochs if count.matched_fraction < 1]
    if limited:
        seen = ", ".join(f"{c.matched_fraction:.3g} of {c.source.name}" for c in limited)
        print_line(console, f"matched repetition: each trial sees {seen}")
    if "estimated" in plan.token_origins.values():
        note = "estimated: from a sample of the source, before near-duplicates are dropped"
        print_line(console, note, "dim")
    for warning in plan.warnings:
        print_line(console, f"warning: {warning}", "yellow")


def _trial_lines(plan: Plan) -> list[str]:
    experiment, budget, first = plan.experiment, plan.experiment.budget, plan.first
    anchors = min(len(experiment.space.anchors), budget.trials)
    quasi_random = min(QUASI_RANDOM_TRIALS, budget.trials - anchors)
    by_tpe = budget.trials - anchors - quasi_random
    lines = [
        f"trials    {budget.trials}: {anchors} from anchors, {quasi_random} quasi-random, "
        f"{by_tpe} by TPE",
        f"per trial {budget.tokens:,} tokens = {first.steps} steps of "
        f"{first.batch_tokens:,} tokens ({first.sequences} sequences of {first.seq_len})",
        f"in total  {budget.trials * budget.tokens:,} tokens",
    ]
    for name, axis in experiment.space.axes.items():
        lines.append(f"space     {name}: {_describe_axis(axis)}")
    for anchor in experiment.space.anchors:
        values = ", ".join(f"{name} {value}" for name, value in anchor.items())
        lines.append(f"anchor    {values}")
    return lines


def _choice_lines(plan: Plan) -> list[str]:
    lines = []
    for role, member in plan.experiment.suites.members:
        lines.append(f"suite     {role}: {member.name}, weight {member.weight:g}")
    lines.append(f"choice    {plan.experiment.choose}")
    return lines


def _describe_axis(axis: Range | Choices) -> str:
    if isinstance(axis, Choices):
        return "one of " + ", ".join(str(choice) for choice in axis.choices)
    return f"{axis.low:g} to {axis.high:g} ({axis.scale})"


def _base_line(plan: Plan) -> str:
    base = plan.experiment.base
    size = f"{plan.parameters:,} parameters" if plan.parameters else "unknown size"
    if base.pretrain is None:
        name = base.path or f"{base.hub}@{base.revision}"
        return f"base      {name}, {size}, max LR {base.max_lr:g}"
    tokens = f"{base.pretrain.tokens:,} tokens"
    return f"base      pretrained here on {tokens}, {size}, max LR {base.max_lr:g}; then cached"


def _memory_lines(plan: Plan) -> list[str]:
    memory = plan.memory
    if memory is None:
        return ["memory    unknown: set base.shape or base.parameters"]
    available = f"{memory.device.available / GIB:.1f} GiB available ({memory.device.name})"
    need = f"memory    {memory.required / GIB:.1f} GiB per trial, estimated; {available}"
    if memory.step is None:
        rest = "set base.shape to estimate the rest"
        return [need, f"          for weights, gradients and optimizer alone; {rest}"]
    step, sequences = memory.step, plan.first.sequences
    uses = {"weights, gradients and optimizer": memory.states, "bf16 copies": step.copies}
    uses |= {"activations": step.activations, "masks": step.masks, "logits": step.logits}
    uses["libraries and allocator"] = memory.overhead
    shown = [f"{use} {size / GIB:.1f}" for use, size in uses.items() if size >= SHOWN_BYTES]
    passes = f"{memory.micro_batch} of {sequences} sequences per forward pass"
    return [need, f"          {', '.join(shown)}; {passes}"]


def _cost_lines(plan: Plan) -> list[str]:
    if plan.trial_flops is None:
        return ["cost      unknown: set base.shape or base.parameters"]
    budget = plan.experiment.budget
    total = plan.trial_flops * budget.trials
    lines = [f"cost      {plan.trial_flops:.3g} FLOPs of training per trial, {total:.3g} in total"]
    if plan.trial_hours is not None:
        low, high = plan.trial_hours
        in_total = _format_hours(low * budget.trials, high * budget.trials)
        price = ""
        if budget.usd_per_hour:
            usd = budget.trials * budget.usd_per_hour
            price = f", {low * usd:,.0f} to {high * usd:,.0f} USD"
        lines.append(
            f"          {_format_hours(low, high)} per trial, {in_total} in total if trials run "
            f"one by one{price} (at {budget.sustained_tflops:g} TFLOP/s; published runs took up to "
            f"{PUBLISHED_OVERRUN:g} times as long); scoring and start-up are not included"
        )
    return lines


def _format_hours(low: float, high: float) -> str:
    if low < 0.1:
        return f"{low * 3600:.3g} to {high * 3600:.3g} s"
    return f"{low:.3g} to {high:.3g} h"


def _print_lr_curve(console: Console, plan: Plan) -> None:
    schedule, fraction = plan.first.schedule, plan.first.lr_fraction
    curve = plan.lr_curve()
    title = f"LR of the first trial ({schedule}, lr_fraction {fraction:g})"
    columns = [Column(name="step", is_text=True), *(Column(name=f"{step}") for step, _ in curve)]
    print_table(console, title, columns, [Row(cells=("LR", *(f"{lr:.3g}" for _, lr in curve)))])


def _print_sources(console: Console, plan: Plan) -> None:
    has_target = plan.experiment.target is not None
    title = "Sources: share and epochs in the first trial, and the most epochs in any trial"
    if has_target:
        title += "; then those of the target's run"
    rows = []
    for count in plan.epochs:
        source = count.source
        epochs = [count.first_epochs, count.most_epochs]
        if has_target:
            epochs += [count.target_first_epochs or 0, count.target_most_epochs or 0]
        cells = (
            source.name,
            source.role,
            source.language,
            f"{count.tokens:,.0f} {plan.token_origins[source.name]}",
            f"{count.first_share:.1%}",
            *(f"{number:.3g}" for number in epochs),
        )
        rows.append(Row(cells=cells))
    print_table(console, title, [*COLUMNS, *TARGET_COLUMNS] if has_target else COLUMNS, rows)
