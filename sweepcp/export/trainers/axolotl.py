"""Axolotl: its YAML, on the run's tokens written out document by document."""

import json
from typing import Any

import yaml

from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ExportPlan,
    accumulation_steps,
    tracking_differences,
    unwatched_notes,
)
from sweepcp.export.transformers_keys import (
    adamw_keys,
    flatten_settings,
    mix,
    mix_size,
    schedule,
    schedule_differences,
    zero_config,
)

TRACKERS = {
    "wandb": "use_wandb",
    "mlflow": "use_mlflow",
    "comet_ml": "use_comet",
    "trackio": "use_trackio",
}


def write(source: ExportInput) -> ExportPlan:
    """`axolotl.yaml` and `ds_config.json`.

    Axolotl has no weights for its data, so the mix is written out: each row is what a sequence holds of a document, and
    packing them in their order gives the sequences of the stream again, with documents apart.
    """
    recipe, config, python = source.bundle.recipe, zero_config(source), source.site.python
    content = _content(source)
    differences = [
        *schedule_differences(recipe),
        *tracking_differences(source, TRACKERS),
        Difference(
            "loss",
            "the mean of the processes' means: it weighs a target more where a process has fewer",
        ),
        Difference(
            "targets",
            "the last target of each sequence is left out, and that of a one-token piece is kept",
        ),
    ]
    if recipe.cross_documents:
        differences.append(Difference("attention", "documents do not attend to those before them"))
    settings = {key: value for key, value in content.items() if key != "datasets"}
    settings |= {f"datasets.{key}": value for key, value in content["datasets"][0].items()}
    return ExportPlan(
        files={
            "axolotl.yaml": yaml.safe_dump(content, sort_keys=False),
            "ds_config.json": json.dumps(config, indent=1) + "\n",
        },
        command=("-m", "axolotl.cli.train", f"{source.out}/axolotl.yaml"),
        settings=settings | flatten_settings("ds_config.json", config),
        differences=tuple(differences),
        notes=(*unwatched_notes(source), mix_size(source)),
        prepare=(
            mix(source, "documents"),
            (python, "-m", "axolotl.cli.preprocess", f"{source.out}/axolotl.yaml"),
        ),
        env={"AXOLOTL_DO_NOT_TRACK": "1"},
    )


def _content(source: ExportInput) -> dict[str, Any]:
    bundle, recipe, target = source.bundle, source.bundle.recipe, source.bundle.target
    kind, kwargs = schedule(recipe, source.peak)
    content: dict[str, Any] = {"base_model": source.model}
    if bundle.model.revision is not None:
        content["revision_of_model"] = bundle.model.revision
    content |= {
        "datasets": [{"path": f"{source.out}/mix"}],
        "dataset_prepared_path": f"{source.out}/prepared",
        "output_dir": source.saves,
        "sequence_len": recipe.seq_len,
        "sample_packing": True,
        "sample_packing_sequentially": True,
        "curriculum_sampling": True,
        "shuffle_merged_datasets": False,
        "min_sample_len": 1,
        "pad_to_sequence_len": True,
        "val_set_size": 0.0,
        "micro_batch_size": target.compute.micro_batch,
        "gradient_accumulation_steps": accumulation_steps(source),
        "num_epochs": 1.0,
        "max_steps": recipe.steps,
        "learning_rate": source.peak,
        "lr_scheduler": kind,
        "lr_scheduler_kwargs": kwargs,
        "warmup_steps": recipe.warmup_steps,
        "optimizer": "adamw_torch_fused",
        **adamw_keys(recipe),
        "bf16": target.compute.precision == "bf16",
        "attn_implementation": target.compute.attention,
        "gradient_checkpointing": target.compute.recompute,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "deepspeed": f"{source.out}/ds_config.json",
        "seed": recipe.seed,
        "save_steps": target.checkpoints.every,
        "save_total_limit": target.checkpoints.keep,
        "auto_resume_from_checkpoints": True,
        "logging_steps": 1,
        "use_tensorboard": True,
    }
    return content | {TRACKERS[name]: True for name in target.tracking if name in TRACKERS}
