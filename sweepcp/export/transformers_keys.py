"""Settings shared by trainers that build on transformers' Trainer: schedule, AdamW, ZeRO, mix."""

from typing import Any

from sweepcp.config.recipe import Recipe
from sweepcp.config.schedule import WSD_SCHEDULES
from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ShellVariable,
    accumulation_steps,
    zero_config_of,
)

BYTE_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")
MIX_BYTES_PER_TOKEN = 9
"""Token id and label as int32, attention mask as int8; see `sweepcp.data.materialize`."""


def complete_checkpoint(export_input: ExportInput) -> str:
    """Return the path, with a `*` for any step, of the last file of the Trainer's checkpoints."""
    return f"{export_input.checkpoint_folder}/checkpoint-*/trainer_state.json"


def scheduler_arguments(export_input: ExportInput) -> tuple[str, dict[str, Any]]:
    """Return transformers' name of the schedule, and its arguments besides warmup and length."""
    recipe = export_input.bundle.recipe
    if recipe.schedule == "cosine":
        if recipe.min_lr is not None:
            return "cosine_with_min_lr", {"min_lr": recipe.min_lr}
        return "cosine_with_min_lr", {"min_lr_rate": export_input.final_factor}
    if recipe.schedule == "linear":
        return "polynomial", {"lr_end": export_input.final_lr, "power": 1.0}
    if recipe.schedule in WSD_SCHEDULES:
        return "warmup_stable_decay", {
            "num_decay_steps": recipe.decay_steps,
            "min_lr_ratio": export_input.final_factor,
            "decay_type": "1-sqrt" if recipe.schedule == "wsd-1-sqrt" else "linear",
        }
    return "constant_with_warmup", {}


def schedule_differences(export_input: ExportInput) -> tuple[Difference, ...]:
    """Return the difference of transformers' wsd schedules, whose warmup starts above 0."""
    recipe, final_factor = export_input.bundle.recipe, export_input.final_factor
    warmup = recipe.warmup_length
    # min_lr_ratio raises the start of the warmup, too. Up to the LR of the recipe's second step the
    # first step is within the tolerance of `is_same_lr`.
    if recipe.schedule not in WSD_SCHEDULES or not warmup or final_factor <= 2 / warmup:
        return ()
    start = f"the final fraction, {final_factor:g} of the max LR"
    return (Difference("lr", f"the warmup starts at {start}"),)


def adamw_arguments(recipe: Recipe) -> dict[str, Any]:
    """Return AdamW's and clipping's arguments as transformers and Axolotl name them."""
    return {
        "adam_beta1": recipe.betas[0],
        "adam_beta2": recipe.betas[1],
        "adam_epsilon": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.clip,
    }


def training_arguments(export_input: ExportInput) -> dict[str, Any]:
    """Return the run's `TrainingArguments`, for trainers that pass them through unchanged."""
    recipe, target = export_input.bundle.recipe, export_input.bundle.target
    scheduler, scheduler_kwargs = scheduler_arguments(export_input)
    return {
        "output_dir": export_input.checkpoint_folder,
        "max_steps": recipe.steps,
        "per_device_train_batch_size": target.compute.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(export_input),
        "learning_rate": export_input.max_lr,
        "lr_scheduler_type": scheduler,
        "lr_scheduler_kwargs": scheduler_kwargs,
        "warmup_steps": recipe.warmup_length,
        "optim": "adamw_torch_fused",
        **adamw_arguments(recipe),
        "bf16": target.compute.precision == "bf16",
    }


def transformers_attention(export_input: ExportInput) -> str:
    """Return the target's attention by transformers' name.

    `varlen` is sweepcp's own, and `auto` may be it. Their place takes sdpa, which computes the same
    and needs no further package.
    """
    attention = export_input.bundle.target.compute.attention
    return "sdpa" if attention in ("auto", "varlen") else attention


def deepspeed_config(export_input: ExportInput) -> dict[str, Any]:
    """Return the bundle's DeepSpeed configuration, with the key that transformers needs to save."""
    config = zero_config_of(export_input)
    # Without it, `Trainer.save_model` writes ZeRO shards instead of one model.
    zero = config["zero_optimization"] | {"stage3_gather_16bit_weights_on_model_save": True}
    return config | {"zero_optimization": zero}


def flatten_settings(prefix: str, content: dict[str, Any]) -> dict[str, Any]:
    """Return nested keys as `prefix.a.b` → value."""
    settings: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}.{key}"
        settings |= flatten_settings(path, value) if isinstance(value, dict) else {path: value}
    return settings


def mix_command(export_input: ExportInput, rows: str) -> tuple[str, ...]:
    """Return the command that writes the run's tokens in the order of its stream.

    Args:
        export_input: Bundle and output folder.
        rows: `documents` or `sequences`, as `sweepcp data mix --rows` takes it.
    """
    bundle = str(export_input.loaded.path)
    command = (export_input.site.python, "-m", "sweepcp", "data", "mix", bundle)
    mix_folder = f"{export_input.out}/mix"
    workers = ShellVariable("$(nproc)")
    return (*command, "--out", mix_folder, "--rows", rows, "--workers", workers)


def mix_size_note(export_input: ExportInput) -> str:
    """Return the note on the disk space of the mix."""
    tokens = export_input.bundle.recipe.tokens
    size = _readable_bytes(MIX_BYTES_PER_TOKEN * tokens)
    return (
        f"prepare.sh writes the run's {tokens:,} tokens to disk: {size}, "
        "plus the same amount of temporary space."
    )


def _readable_bytes(count: int) -> str:
    """Return a number of bytes in the unit in which it has one to three digits before the point."""
    power = min((len(str(count)) - 1) // 3, len(BYTE_UNITS) - 1)
    # Three significant digits of 999,999 bytes are 1e+03 kB.
    if float(f"{count / 1000**power:.3g}") >= 1000 and power + 1 < len(BYTE_UNITS):
        power += 1
    return f"{count / 1000**power:.3g} {BYTE_UNITS[power]}"
