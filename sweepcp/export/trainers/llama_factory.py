"""LLaMA-Factory: its YAML for `stage: pt`, on the run's tokens written out sequence by sequence."""

import json
from typing import Any

import yaml

from sweepcp.export.export_plan import Difference, ExportInput, ExportPlan, unwatched_notes
from sweepcp.export.transformers_keys import (
    flatten_settings,
    mix,
    mix_size,
    schedule_differences,
    training_arguments,
    zero_config,
)

ATTENTION = {"sdpa": "sdpa", "eager": "disabled", "flash_attention_2": "fa2"}


def write(source: ExportInput) -> ExportPlan:
    """`llama_factory.yaml` and `ds_config.json`.

    Its weights are those of documents before packing, so the mix is written out and read as tokenised data.
    """
    recipe, config = source.bundle.recipe, zero_config(source)
    arguments = _arguments(source)
    differences = [*schedule_differences(recipe)]
    left_out = "left out are the last target of each sequence and the padding token, which is EOS where there is none"
    if recipe.cross_documents:
        differences.append(Difference("targets", left_out))
    else:
        differences.append(
            Difference("attention", "documents attend to those before them in their sequence")
        )
        kept = "the first token of a document is predicted from the one before it"
        differences.append(Difference("targets", f"{kept}; {left_out}"))
    return ExportPlan(
        files={
            "llama_factory.yaml": yaml.safe_dump(arguments, sort_keys=False),
            "ds_config.json": json.dumps(config, indent=1) + "\n",
        },
        command=("-m", "llamafactory.launcher", f"{source.out}/llama_factory.yaml"),
        settings=arguments | flatten_settings("ds_config.json", config),
        differences=tuple(differences),
        notes=(*unwatched_notes(source), mix_size(source)),
        prepare=(mix(source, "sequences"),),
    )


def _arguments(source: ExportInput) -> dict[str, Any]:
    bundle, recipe, target = source.bundle, source.bundle.recipe, source.bundle.target
    return {
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": source.model,
        "model_revision": bundle.model.revision or "main",
        "flash_attn": ATTENTION[target.compute.attention],
        "disable_gradient_checkpointing": not target.compute.recompute,
        "dataset": ["mix"],
        "tokenized_path": f"{source.out}/mix",
        "cutoff_len": recipe.seq_len,
        "disable_shuffling": True,
        **training_arguments(source),
        "deepspeed": f"{source.out}/ds_config.json",
        "average_tokens_across_devices": True,
        "seed": recipe.seed,
        "save_strategy": "steps",
        "save_steps": target.checkpoints.every,
        "save_total_limit": target.checkpoints.keep,
        "logging_steps": 1,
        "report_to": list(target.tracking),
    } | ({} if source.on_gpu else {"use_cpu": True})
