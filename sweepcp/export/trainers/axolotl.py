"""Axolotl: its YAML, on the run's tokens written document by document."""

import json
from typing import Any

import yaml

from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ExportPlan,
    accumulation_steps,
    dropout_differences,
    dropout_notes,
    monitoring_notes,
    tracking_differences,
)
from sweepcp.export.transformers_keys import (
    adamw_arguments,
    complete_checkpoint,
    deepspeed_config,
    flatten_settings,
    mix_command,
    mix_size_note,
    schedule_differences,
    scheduler_arguments,
    transformers_attention,
)

TRACKERS = {
    "wandb": "use_wandb",
    "mlflow": "use_mlflow",
    "comet_ml": "use_comet",
    "trackio": "use_trackio",
}
"""accelerate's name of a tracker → Axolotl's key."""


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan `axolotl.yaml` and `ds_config.json`.

    Axolotl has no dataset weights, so the mix is written to disk. Each row is the part of a
    document that lies in one sequence. Packing the rows in order restores the sequences of the
    stream, with documents isolated from each other.
    """
    content = _config(export_input)
    zero_config = deepspeed_config(export_input)
    config_file = f"{export_input.out}/axolotl.yaml"
    settings = {key: value for key, value in content.items() if key != "datasets"}
    settings |= {f"datasets.{key}": value for key, value in content["datasets"][0].items()}
    preprocess = (export_input.site.python, "-m", "axolotl.cli.preprocess", config_file)
    return ExportPlan(
        files={
            "axolotl.yaml": yaml.safe_dump(content, sort_keys=False),
            "ds_config.json": json.dumps(zero_config, indent=1) + "\n",
        },
        command=("-m", "axolotl.cli.train", config_file),
        settings=settings | flatten_settings("ds_config.json", zero_config),
        differences=_differences(export_input),
        notes=(
            *monitoring_notes(export_input),
            *dropout_notes(export_input),
            mix_size_note(export_input),
        ),
        prepare=(mix_command(export_input, "documents"), preprocess),
        env={"AXOLOTL_DO_NOT_TRACK": "1"},
        complete_checkpoint=complete_checkpoint(export_input),
    )


def _differences(export_input: ExportInput) -> tuple[Difference, ...]:
    recipe = export_input.bundle.recipe
    differences = [
        *schedule_differences(export_input),
        *tracking_differences(export_input, TRACKERS),
        *dropout_differences(_nested(export_input.random_settings)),
        Difference(
            "loss",
            "mean of per-process means, so a target weighs more on a process with fewer targets",
        ),
        Difference(
            "targets",
            "the last target of each sequence is ignored, and "
            "the token of a one-token row is a target",
        ),
    ]
    if recipe.cross_documents:
        differences.append(Difference("attention", "documents do not attend to earlier documents"))
    return tuple(differences)


def _nested(settings: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in settings.items() if "." in key}


def _config(export_input: ExportInput) -> dict[str, Any]:
    bundle, target = export_input.bundle, export_input.bundle.target
    recipe = bundle.recipe
    scheduler, scheduler_kwargs = scheduler_arguments(export_input)
    content: dict[str, Any] = {"base_model": export_input.model}
    if bundle.model.revision is not None:
        content["revision_of_model"] = bundle.model.revision
    content |= {
        "datasets": [{"path": f"{export_input.out}/mix"}],
        "dataset_prepared_path": f"{export_input.out}/prepared",
        "output_dir": export_input.checkpoint_folder,
        "sequence_len": recipe.seq_len,
        # Packs are filled in the order of the rows only with these five keys together.
        "sample_packing": True,
        "sample_packing_sequentially": True,
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "min_sample_len": 1,
        "pad_to_sequence_len": True,
        "val_set_size": 0.0,
        "micro_batch_size": target.compute.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(export_input),
        "num_epochs": 1.0,
        "max_steps": recipe.steps,
        "learning_rate": export_input.max_lr,
        "lr_scheduler": scheduler,
        "lr_scheduler_kwargs": scheduler_kwargs,
        "warmup_steps": recipe.warmup_length,
        "optimizer": "adamw_torch_fused",
        **adamw_arguments(recipe),
        "bf16": target.compute.precision == "bf16",
        # Of packed rows, Axolotl computes sdpa with PyTorch's kernel for documents where it can.
        "attn_implementation": transformers_attention(export_input),
        "gradient_checkpointing": target.compute.recompute,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "deepspeed": f"{export_input.out}/ds_config.json",
        "seed": recipe.seed,
        "save_steps": target.checkpoints.every,
        "save_total_limit": target.checkpoints.keep,
        "auto_resume_from_checkpoints": True,
        "logging_steps": 1,
        "use_tensorboard": True,
    }
    # Axolotl sets attributes of the configuration by these names, nested ones it cannot.
    if overrides := {key: 0.0 for key in export_input.random_settings if "." not in key}:
        content["overrides_of_model_config"] = overrides
    return content | {TRACKERS[name]: True for name in target.tracking if name in TRACKERS}
