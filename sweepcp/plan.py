"""What a search would run and cost, before anything is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweepcp.base import BaseSpec, count_parameters
from sweepcp.data.encode import Encoder
from sweepcp.data.estimate import estimate_tokens
from sweepcp.data.sources import Found, Source, fingerprint
from sweepcp.data.store import Store, store_path
from sweepcp.experiment import Experiment
from sweepcp.recipe import Recipe
from sweepcp.repetition import Reading, epoch_warnings, first_recipe, readings
from sweepcp.search import QUASI_RANDOM
from sweepcp.space import Choices, Range

BYTES_PER_TOKEN = 4.0
"""Assumption for subword tokenizers on English text, used only for estimates."""
OPTIMIZER_BYTES = 16
"""Bytes a parameter: fp32 weights, gradients and two AdamW moments."""


@dataclass(frozen=True)
class Plan:
    """The answer of `sweepcp plan`."""

    experiment: Experiment
    first: Recipe
    """Of trial one, or of the middle of the space where there is no anchor."""
    readings: list[Reading]
    origins: dict[str, str]
    """How the tokens of each source are known: `counted`, `planned` or `estimated`."""
    parameters: int | None
    warnings: list[str]

    @property
    def trial_flops(self) -> float | None:
        """Training of one trial: 6 · parameters · tokens (Kaplan et al. 2020, arXiv 2001.08361), without scoring."""
        return 6.0 * self.parameters * self.experiment.budget.tokens if self.parameters else None

    @property
    def trial_hours(self) -> float | None:
        """Hours of training of one trial at the stated speed."""
        speed = self.experiment.budget.sustained_tflops
        return self.trial_flops / (speed * 1e12) / 3600 if self.trial_flops and speed else None

    def lr_curve(self) -> list[tuple[int, float]]:
        """Step and learning rate of the first recipe: the ends, the peak and what lies between."""
        steps = self.first.steps
        peak = max(1, round(self.first.warmup * steps))
        shown = {1, 2, peak, peak + 1, steps // 4, steps // 2, 3 * steps // 4, steps - 1, steps}
        max_lr = self.experiment.base.max_lr
        return [(n, self.first.lr(n, max_lr)) for n in sorted(shown) if 1 <= n <= steps]


def make_plan(experiment: Experiment, files: dict[str, Found]) -> Plan:
    """Count or estimate tokens, and derive the rest. Reads at most a sample of the texts, writes nothing."""
    counted = {s.name: _tokens(s, files[s.name], experiment.base) for s in experiment.sources}
    tokens = {name: count for name, (count, _) in counted.items()}
    origins = {name: origin for name, (_, origin) in counted.items()}
    first = first_recipe(experiment, tokens)
    found = readings(experiment, tokens)
    plan = Plan(experiment, first, found, origins, count_parameters(experiment.base), [])
    plan.warnings.extend(_warnings(plan))
    return plan


def _tokens(source: Source, found: Found, base: BaseSpec) -> tuple[float, str]:
    """Training tokens of a source, and how they are known."""
    if source.planned_tokens is not None:
        return float(source.planned_tokens), "planned"
    store = store_path(fingerprint(source, found), base.tokenizer_id())
    if (store / "store.json").exists():
        return float(Store(store, source.name).tokens), "counted"
    return estimate_tokens(source, found, _counter(base)), "estimated"


def _counter(base: BaseSpec) -> Callable[[list[str]], float]:
    """Tokens of texts: counted where the tokenizer is at hand, else by the assumed bytes a token."""
    file = Path(base.tokenizer) / "tokenizer.json"
    if base.tokenizer == "bytes":
        return lambda texts: float(sum(len(text.encode()) + 2 for text in texts))
    if not file.is_file():
        return lambda texts: sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN
    return Encoder(file.read_text(encoding="utf-8"), (0,), (0,), 0).count


def _warnings(plan: Plan) -> list[str]:
    experiment, budget = plan.experiment, plan.experiment.budget
    found = []
    if planned := [s.name for s in experiment.sources if s.planned_tokens is not None]:
        found.append(f"planned, `sweepcp search` needs their files: {', '.join(planned)}")
    found += epoch_warnings(plan.readings)
    base = experiment.base
    if base.hub and (base.revision is None or len(base.revision) != 40):
        found.append(f"base.revision {base.revision or '(none)'} is not a commit: it may change between workers")
    axis = experiment.space.lr_fraction
    if isinstance(axis, Range) and axis.high > 1:
        found.append(f"lr_fraction goes up to {axis.high:g}, beyond the base's own max LR")
    proposed = budget.trials - len(experiment.space.anchors) - QUASI_RANDOM
    if proposed <= 0:
        found.append(f"with {budget.trials} trials the model proposes none: anchors and starts use them up")
    if plan.first.steps < 20:
        found.append(f"{plan.first.steps} steps a trial: too few for a schedule to mean anything")
    if base.pretrain is None and plan.parameters and budget.gpus_per_trial:
        gigabytes = OPTIMIZER_BYTES * plan.parameters / 1e9
        if gigabytes > 70:
            found.append(
                f"a trial runs on one GPU and needs {gigabytes:.0f} GB for weights, gradients and optimizer, before "
                "activations: look for a smaller proxy of the same family, or a GPU that has them"
            )
    if plan.trial_hours is None:
        found.append("no time or cost: state budget.sustained_tflops (and usd_per_hour)")
    return found


def show_plan(console: Console, plan: Plan) -> None:
    """The plan as tables and lines."""
    experiment, budget, first = plan.experiment, plan.experiment.budget, plan.first
    anchors = min(len(experiment.space.anchors), budget.trials)
    starts = min(QUASI_RANDOM, budget.trials - anchors)
    rest = budget.trials - anchors - starts
    console.print(Text(f"Plan of {experiment.name}", style="bold"))
    lines = [
        f"trials    {budget.trials}: {anchors} anchors, {starts} quasi-random, {rest} by TPE",
        f"a trial   {budget.tokens:,} tokens = {first.steps} steps of {first.batch_tokens:,} tokens "
        f"({first.sequences} sequences of {first.seq_len})",
        f"in all    {budget.trials * budget.tokens:,} tokens",
    ]
    lines += [f"space     {name}: {_axis(axis)}" for name, axis in experiment.space.axes.items()]
    lines += [f"anchor    {', '.join(f'{k} {v}' for k, v in a.items())}" for a in experiment.space.anchors]
    lines += [f"suite     {role}: {m.name}, weight {m.weight:g}" for role, m in experiment.suites.members]
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
        console.print(Text("estimated: from a sample of the text, before near-duplicates are dropped"), style="dim")
    for warning in plan.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def _axis(axis: Range | Choices) -> str:
    if isinstance(axis, Choices):
        return "one of " + ", ".join(str(c) for c in axis.choices)
    return f"{axis.low:g} to {axis.high:g} ({axis.scale})"


def _base_lines(plan: Plan) -> list[str]:
    base = plan.experiment.base
    size = f"{plan.parameters:,} parameters" if plan.parameters else "parameters unknown"
    if base.pretrain is None:
        return [f"base      {base.path or f'{base.hub}@{base.revision}'}, {size}, max LR {base.max_lr:g}"]
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
            f"          {_time(plan.trial_hours)} a trial at {budget.sustained_tflops:g} TFLOP/s, "
            f"{_time(hours)} of one trial's devices in all{price}; scoring and start-up come on top"
        )
    return lines


def _time(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 0.1 else f"{hours * 3600:.3g} s"


def _lr_table(plan: Plan) -> Table:
    table = Table(title=f"LR of the first trial ({plan.first.schedule}, lr_fraction {plan.first.lr_fraction:g})")
    table.add_column("step")
    for step, _ in plan.lr_curve():
        table.add_column(f"{step}", justify="right")
    table.add_row("LR", *(f"{lr:.3g}" for _, lr in plan.lr_curve()))
    return table


def _source_table(plan: Plan) -> Table:
    target = plan.experiment.target
    title = "Sources: share and epochs in the first trial, and epochs at most" + " (then in the target's run)" * bool(
        target
    )
    table = Table(title=title, header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    names = ["source", "role", "language", "training tokens", "share", "epochs", "at most"]
    for name in names + ["target", "at most"] * bool(target):
        table.add_column(name, justify="left" if name in ("source", "role", "language") else "right", no_wrap=True)
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
