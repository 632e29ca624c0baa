"""What the trainers that build on transformers' Trainer have in common: schedule, DeepSpeed's configuration, mix."""

from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ShellVariable,
    accumulation_steps,
    round_to_12_digits,
)


def schedule(recipe: Recipe, peak: float) -> tuple[str, dict[str, Any]]:
    """transformers' name of the schedule, and its arguments besides warmup and total."""
    if recipe.schedule == "cosine":
        return "cosine_with_min_lr", {"min_lr_rate": recipe.final_fraction}
    if recipe.schedule == "linear":
        return "polynomial", {
            "lr_end": round_to_12_digits(peak * recipe.final_fraction),
            "power": 1.0,
        }
    if recipe.schedule == "wsd":
        kwargs = {"num_decay_steps": recipe.decay_steps, "min_lr_ratio": recipe.final_fraction}
        return "warmup_stable_decay", kwargs | {"decay_type": "linear"}
    return "constant_with_warmup", {}


def schedule_differences(recipe: Recipe) -> tuple[Difference, ...]:
    """What transformers' schedules cannot do: a wsd schedule's warmup that begins lower than its end."""
    warmup = recipe.warmup_steps
    if recipe.schedule == "wsd" and warmup and recipe.final_fraction > 2 / warmup:
        return (
            Difference(
                "lr",
                f"its warmup begins at the final fraction, {recipe.final_fraction:g} of the max LR",
            ),
        )
    return ()


def adamw_keys(recipe: Recipe) -> dict[str, Any]:
    """AdamW and clipping, by the names that transformers and Axolotl give them."""
    return {
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": 1e-8,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
    }


def training_arguments(source: ExportInput) -> dict[str, Any]:
    """What `TrainingArguments` call the run's steps, for those that hand their own on to them."""
    recipe, target = source.bundle.recipe, source.bundle.target
    kind, kwargs = schedule(recipe, source.peak)
    return {
        "output_dir": source.saves,
        "max_steps": recipe.steps,
        "per_device_train_batch_size": target.compute.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(source),
        "learning_rate": source.peak,
        "lr_scheduler_type": kind,
        "lr_scheduler_kwargs": kwargs,
        "warmup_steps": recipe.warmup_steps,
        "optim": "adamw_torch_fused",
        **adamw_keys(recipe),
        "bf16": target.compute.precision == "bf16",
    }


def zero_config(source: ExportInput) -> dict[str, Any]:
    """The bundle's configuration of DeepSpeed, with the key that lets transformers save the model whole at the end."""
    config = source.opened.ds_config
    zero = config["zero_optimization"] | {"stage3_gather_16bit_weights_on_model_save": True}
    return config | {"zero_optimization": zero}


def flatten_settings(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    """Nested keys in a row: `prefix.a.b`."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= (
            flatten_settings(f"{prefix}.{key}", value)
            if isinstance(value, dict)
            else {f"{prefix}.{key}": value}
        )
    return found


def mix(source: ExportInput, rows: str) -> tuple[str, ...]:
    """The command that writes the run's tokens in the order of its stream."""
    command = (source.site.python, "-m", "sweepcp", "data", "mix", str(source.opened.path))
    return (
        *command,
        "--out",
        f"{source.out}/mix",
        "--rows",
        rows,
        "--workers",
        ShellVariable("$(nproc)"),
    )


def mix_size(source: ExportInput) -> str:
    """How much the mix is."""
    tokens = source.bundle.recipe.tokens
    return f"prepare.sh writes the run's {tokens:,} tokens: {9 * tokens / 1e12:.3g} TB, and as much again meanwhile"
