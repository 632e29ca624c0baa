"""What a promotion takes for granted, as sentences with numbers for the bundle."""

from collections.abc import Iterator
from pathlib import Path

from sweepcp.config.budget import PUBLISHED_OVERRUN
from sweepcp.config.recipe import RELATIVE_FIELDS, Recipe, TrainingMethod
from sweepcp.config.target import Target
from sweepcp.config.types import COMMIT
from sweepcp.models.files import model_identity, read_shards
from sweepcp.models.memory import with_overhead
from sweepcp.promote.bundle import CorpusPlan, Memory, Model
from sweepcp.promote.candidate import Candidate
from sweepcp.runs.run_folder import Run
from sweepcp.util.memory import GIB


def transfer_assumptions(
    candidate: Candidate,
    target: Target,
    *,
    recipe: Recipe,
    model: Model,
    corpora: tuple[CorpusPlan, ...],
    memory: Memory,
) -> list[str]:
    """Return what is assumed when a recipe is transferred to a target.

    Args:
        candidate: The recipe before translation, and the trial that it comes from.
        target: The target of the full run.
        recipe: The translated recipe.
        model: The model of the full run.
        corpora: The corpora of the full run.
        memory: The estimated memory of the full run.
    """
    return [
        *_scale_assumptions(candidate, recipe, model, corpora),
        *_override_assumptions(candidate, target),
        *_absolute_assumptions(candidate, model, recipe),
        *_corpus_assumptions(corpora),
        *_model_and_hardware_assumptions(model, target, memory),
    ]


def has_other_weights(run: Run | None, model: Model) -> bool:
    """Return whether a model on disk has other weights than the base of a run."""
    weights = run.identity.base.get("weights") if run else None
    if weights is None or model.path is None:
        return False
    folder = Path(model.path)
    return model_identity(folder, read_shards(folder))["weights"] != weights


def _scale_assumptions(
    candidate: Candidate, recipe: Recipe, model: Model, corpora: tuple[CorpusPlan, ...]
) -> Iterator[str]:
    """Yield in what the full run differs from the trial; nothing for a published recipe."""
    proxy = candidate.proxy
    if proxy is None:
        return
    quantities = (
        ("parameters", proxy.parameters, model.parameters),
        ("tokens", proxy.tokens, recipe.tokens),
        ("tokens per batch", proxy.batch_tokens, recipe.batch_tokens),
        ("tokens per sequence", proxy.seq_len, recipe.seq_len),
    )
    for quantity, in_trial, in_run in quantities:
        if in_trial != in_run:
            yield (
                f"{quantity}: {in_trial:,} in the trial, {in_run:,} in the full run "
                f"({in_run / in_trial:,.3g} times); the optimum is assumed to be the same"
            )
    if proxy.parameters == model.parameters and has_other_weights(candidate.run, model):
        yield "the model is not the base of the trial; the optimum is assumed to be the same"
    for corpus in corpora:
        epochs = proxy.epochs.get(corpus.name, 0.0)
        if corpus.epochs > max(1.0, 2 * epochs):
            yield (
                f"{corpus.name}: {epochs:.3g} epochs in the trial, {corpus.epochs:.3g} in the full "
                "run"
            )


def _override_assumptions(candidate: Candidate, target: Target) -> Iterator[str]:
    """Yield the fields of the recipe that the target changes."""
    for absolute, relative in RELATIVE_FIELDS.items():
        before = _stated(candidate.method, absolute, relative)
        after = _stated(target, absolute, relative)
        if after is None or after == before or before is None:
            continue
        (old_name, old), (new_name, new) = before, after
        replacement = f"{new:g}" if new_name == old_name else f"{new_name} {new:g}"
        yield f"{old_name}: {old:g} in the recipe, changed to {replacement} by the target"


def _stated(
    settings: TrainingMethod | Target, absolute: str, relative: str
) -> tuple[str, float] | None:
    """Return the name and the value of the one of two alternatives that is stated."""
    for name in (absolute, relative):
        value: float | None = getattr(settings, name)
        if value is not None:
            return name, value
    return None


def _absolute_assumptions(candidate: Candidate, model: Model, recipe: Recipe) -> Iterator[str]:
    """Yield the numbers of the recipe that do not stretch with the run and its max LR."""
    warmup_steps, min_lr = candidate.method.warmup_steps, candidate.method.min_lr
    if warmup_steps is not None and recipe.warmup_steps == warmup_steps:
        in_trial = ""
        if candidate.proxy is not None:
            trial_steps = candidate.proxy.tokens // candidate.proxy.batch_tokens
            in_trial = f"{warmup_steps / trial_steps:.3g} of the {trial_steps:,} steps of a trial, "
        yield (
            f"warmup_steps: {warmup_steps:,} is carried over unchanged: {in_trial}"
            f"{warmup_steps / recipe.steps:.3g} of the {recipe.steps:,} steps of the full run"
        )
    if min_lr is not None and recipe.min_lr == min_lr:
        in_trial = ""
        if candidate.run is not None:
            trial_max_lr = candidate.lr_fraction * candidate.run.experiment.base.max_lr
            in_trial = f"{min_lr / trial_max_lr:.3g} of the trial's max LR {trial_max_lr:.4g}, "
        max_lr = recipe.lr_fraction * model.max_lr
        yield (
            f"min_lr: {min_lr:g} is carried over unchanged: {in_trial}"
            f"{min_lr / max_lr:.3g} of the full run's max LR {max_lr:.4g}"
        )


def _corpus_assumptions(corpora: tuple[CorpusPlan, ...]) -> Iterator[str]:
    """Yield the corpora that exceed their epoch limit, and those whose size was not counted."""
    for corpus in corpora:
        if corpus.epochs > corpus.max_epochs:
            yield f"{corpus.name}: {corpus.epochs:.1f} epochs, more than {corpus.max_epochs:g}"
    planned = [corpus.name for corpus in corpora if corpus.store is None]
    if planned:
        yield f"the token counts of {', '.join(planned)} are stated in the target, not counted"


def _model_and_hardware_assumptions(model: Model, target: Target, memory: Memory) -> Iterator[str]:
    """Yield what is assumed about the model's revision, speed and memory."""
    hardware = target.hardware
    if model.hub and not COMMIT.fullmatch(model.revision or ""):
        yield (
            f"{model.hub}@{model.revision or 'main'} is not a commit: `sweepcp train` refuses it, "
            "because ranks and resumed runs may load different weights"
        )
    if hardware.peak_tflops is not None:
        yield (
            f"hours and cost start from an MFU of {hardware.mfu:.0%}; published runs took up to "
            f"{PUBLISHED_OVERRUN:g} times as long"
        )
    if target.deepspeed.zero_optimization.zero_quantized_weights:
        yield (
            "zero_quantized_weights: weights are gathered in 8 bits, so the full run computes with "
            "other numbers than the trials; the optimum is assumed to be the same"
        )
    required = with_overhead(memory.total) / GIB
    if hardware.memory_gib is not None and required > hardware.memory_gib:
        yield (
            f"the estimated {required:.1f} GiB per GPU under ZeRO-3, with the overhead of the "
            f"allocator and of CUDA, are more than the {hardware.memory_gib:g} GiB that a GPU has"
        )
