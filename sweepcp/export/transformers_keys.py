"""What the trainers that build on transformers' Trainer have in common: schedule, DeepSpeed's configuration, mix."""

from typing import Any

from sweepcp.export.handoff import Difference, Raw, Source, rounded
from sweepcp.recipe import Recipe


def schedule(recipe: Recipe, peak: float) -> tuple[str, dict[str, Any]]:
    """transformers' name of the schedule, and its arguments besides warmup and total."""
    if recipe.schedule == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": recipe.final_fraction}
    if recipe.schedule == "linear":
        return "polynomial", {"lr_end": rounded(peak * recipe.final_fraction), "power": 1.0}
    if recipe.schedule == "wsd":
        fall = min(round(recipe.decay * recipe.steps), recipe.steps - warmup_steps(recipe))
        kwargs = {"num_decay_steps": fall, "min_lr_ratio": recipe.final_fraction}
        return "warmup_stable_decay", kwargs | {"decay_type": "linear"}
    return "constant_with_warmup", {}


def schedule_differences(recipe: Recipe) -> tuple[Difference, ...]:
    """What transformers' schedules cannot do: a wsd schedule's warmup that begins lower than its end."""
    warmup = round(recipe.warmup * recipe.steps)
    if recipe.schedule == "wsd" and warmup and recipe.final_fraction > 2 / warmup:
        return (Difference("lr", f"its warmup begins at the final fraction, {recipe.final_fraction:g} of the max LR"),)
    return ()


def warmup_steps(recipe: Recipe) -> int:
    """Steps of the warmup, as `sweepcp.schedule` counts them."""
    return round(recipe.warmup * recipe.steps)


def zero_config(source: Source) -> dict[str, Any]:
    """The bundle's configuration of DeepSpeed, with the key that lets transformers save the model whole at the end."""
    config = source.opened.ds_config
    zero = config["zero_optimization"] | {"stage3_gather_16bit_weights_on_model_save": True}
    return config | {"zero_optimization": zero}


def flat(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    """Nested keys in a row: `prefix.a.b`."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(f"{prefix}.{key}", value) if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return found


def mix(source: Source, rows: str) -> tuple[str, ...]:
    """The command that writes the run's tokens in the order of its stream."""
    command = (source.site.python, "-m", "sweepcp", "data", "mix", str(source.opened.path))
    return (*command, "--out", f"{source.out}/mix", "--rows", rows, "--workers", Raw("$(nproc)"))


def mix_size(source: Source) -> str:
    """How much the mix is."""
    tokens = source.bundle.recipe.tokens
    return f"prepare.sh writes the run's {tokens:,} tokens: {9 * tokens / 1e12:.3g} TB, and as much again meanwhile"
