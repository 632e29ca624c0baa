"""LLaMA-Factory: its YAML for `stage: pt`, on the run's tokens written sequence by sequence."""

import json
from typing import Any

import yaml

from sweepcp.config.schedule import WSD_SCHEDULES
from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ExportPlan,
    dropout_differences,
    monitoring_notes,
)
from sweepcp.export.transformers_keys import (
    complete_checkpoint,
    deepspeed_config,
    flatten_settings,
    mix_command,
    mix_size_note,
    schedule_differences,
    scheduler_arguments,
    training_arguments,
    transformers_attention,
)

ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}
"""transformers' name of an attention implementation → LLaMA-Factory's `flash_attn`."""


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan `llama_factory.yaml` and `ds_config.json`.

    LLaMA-Factory's dataset weights count documents before packing, so the mix is written to disk
    and read as tokenised data.
    """
    arguments = _arguments(export_input)
    config = deepspeed_config(export_input)
    return ExportPlan(
        files={
            "llama_factory.yaml": yaml.safe_dump(arguments, sort_keys=False),
            "ds_config.json": json.dumps(config, indent=1) + "\n",
        },
        command=("-m", "llamafactory.launcher", f"{export_input.out}/llama_factory.yaml"),
        settings=arguments | flatten_settings("ds_config.json", config),
        differences=_differences(export_input),
        notes=(*monitoring_notes(export_input), mix_size_note(export_input)),
        prepare=(mix_command(export_input, "sequences"),),
        complete_checkpoint=complete_checkpoint(export_input),
    )


def _differences(export_input: ExportInput) -> tuple[Difference, ...]:
    recipe = export_input.bundle.recipe
    common = (
        *schedule_differences(export_input),
        *dropout_differences(export_input.random_settings),
    )
    ignored = (
        "the last target of each sequence and the padding token (EOS, if the tokenizer has none) "
        "are ignored"
    )
    if recipe.cross_documents:
        return (*common, Difference("targets", ignored))
    first_token = "the first token of a document is predicted from the previous document"
    return (
        *common,
        Difference("attention", "documents attend to earlier documents in their sequence"),
        Difference("targets", f"{first_token}; {ignored}"),
    )


def _schedule_arguments(export_input: ExportInput) -> dict[str, Any]:
    """Return a wsd schedule with the steps that hold the max LR, and nothing for the others.

    Where they are not stated, LLaMA-Factory sets them to a third of those after the warmup.
    """
    recipe = export_input.bundle.recipe
    if recipe.schedule not in WSD_SCHEDULES:
        return {}
    _, arguments = scheduler_arguments(export_input)
    held = recipe.steps - recipe.warmup_length - recipe.decay_steps
    return {"lr_scheduler_kwargs": arguments | {"num_stable_steps": held}}


def _arguments(export_input: ExportInput) -> dict[str, Any]:
    bundle, target = export_input.bundle, export_input.bundle.target
    recipe = bundle.recipe
    arguments: dict[str, Any] = {
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": export_input.model,
        "model_revision": bundle.model.revision or "main",
        "flash_attn": ATTENTION[transformers_attention(export_input)],
        "disable_gradient_checkpointing": not target.compute.recompute,
        "dataset": ["mix"],
        "tokenized_path": f"{export_input.out}/mix",
        # `packing` stays unset: in `stage: pt` it lowers cutoff_len by one.
        "cutoff_len": recipe.seq_len,
        "disable_shuffling": True,
        **training_arguments(export_input),
        "deepspeed": f"{export_input.out}/ds_config.json",
        **_schedule_arguments(export_input),
        "average_tokens_across_devices": True,
        "seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": target.checkpoints.every,
        "save_total_limit": target.checkpoints.keep,
        "logging_steps": 1,
        "report_to": list(target.tracking),
    }
    return arguments if export_input.on_gpu else arguments | {"use_cpu": True}
