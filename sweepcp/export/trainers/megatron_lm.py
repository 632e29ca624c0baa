"""Megatron-LM: its arguments, on the token stores, with tensor and pipeline parallelism."""

from string import Template

from sweepcp.config.model_dimensions import COUNTED_MODEL_TYPES
from sweepcp.config.recipe import Recipe
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ExportPlan,
    download_commands,
    dropout_notes,
    monitoring_notes,
    python_literal,
    tracking_differences,
)

Arguments = dict[str, str | int | float | bool | list[str]]
LR_DECAY_STYLES = {"cosine": "cosine", "linear": "linear", "constant": "constant"}
"""Schedule of a recipe → `--lr-decay-style`, which is WSD for the others."""
WSD_DECAY_STYLES = {"wsd": "linear", "wsd-1-sqrt": "minus_sqrt"}
"""Schedule of a recipe → `--lr-wsd-decay-style`."""
SCRIPT = Template("""\
import runpy
import sys

MEGATRON = $megatron
ARGUMENTS = [
$arguments
]

if __name__ == "__main__":
    sys.path.insert(0, MEGATRON)
    sys.argv = [MEGATRON + "/pretrain_gpt.py", *ARGUMENTS]
    runpy.run_path(sys.argv[0], run_name="__main__")
""")


def make_export_plan(export_input: ExportInput) -> ExportPlan:
    """Plan `pretrain.py`, which starts `pretrain_gpt.py` of the site's checkout with its arguments.

    Raises:
        InvalidInput: Megatron-LM cannot express the model, or needs a value that is not stated.
    """
    megatron = export_input.site.megatron
    arguments = _arguments(export_input)
    lines = [", ".join(map(python_literal, words)) for words in _argument_lines(arguments)]
    script = SCRIPT.substitute(
        megatron=python_literal(megatron), arguments="\n".join(f"    {line}," for line in lines)
    )
    own_format = (
        "Checkpoints have Megatron-LM's own format. Convert the last one to serve the model."
    )
    return ExportPlan(
        files={"pretrain.py": script},
        command=(f"{export_input.out}/pretrain.py",),
        settings={"MEGATRON": megatron, **arguments},
        differences=(
            Difference(
                "order",
                "shuffled by Megatron-LM, so the shares hold over the whole run, "
                "not within one sequence at every step",
            ),
            Difference(
                "checkpoints", "all checkpoints are kept; delete old ones before they fill the disk"
            ),
            *_attention_differences(export_input),
            *tracking_differences(export_input, ("wandb",)),
        ),
        notes=(*monitoring_notes(export_input), *dropout_notes(export_input), own_format),
        prepare=_prepare_commands(export_input),
        env={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
        saves_on_term=True,
        complete_checkpoint=f"{export_input.checkpoint_folder}/latest_checkpointed_iteration.txt",
    )


def _attention_differences(export_input: ExportInput) -> tuple[Difference, ...]:
    if export_input.bundle.recipe.cross_documents:
        return ()
    across = "documents attend to earlier documents in their sequence"
    return (Difference("attention", f"{across}: Transformer Engine ignores the mask of documents"),)


def _arguments(export_input: ExportInput) -> Arguments:
    """Return the arguments of `pretrain_gpt.py`; the value of a flag is True or False."""
    return (
        _model_arguments(export_input)
        | _data_arguments(export_input)
        | _training_arguments(export_input)
        | _system_arguments(export_input)
    )


def _model_arguments(export_input: ExportInput) -> Arguments:
    """Return the whole architecture."""
    _check_model(export_input)
    dimensions = export_input.bundle.model.shape
    heads = dimensions.num_attention_heads
    # A converted checkpoint states neither the rotary base nor its scaling.
    rope: Arguments = {
        "--position-embedding-type": "rope",
        "--rotary-base": int(dimensions.rope_theta or 0),
    }
    if dimensions.rope_type == "llama3":
        factor = dimensions.rope_factor or 8.0
        rope |= {"--use-rope-scaling": True, "--rope-scaling-factor": factor}
    return rope | {
        "--num-layers": dimensions.num_hidden_layers,
        "--hidden-size": dimensions.hidden_size,
        "--ffn-hidden-size": dimensions.intermediate_size,
        "--num-attention-heads": heads,
        "--group-query-attention": True,
        "--num-query-groups": dimensions.num_key_value_heads,
        "--kv-channels": dimensions.head_dim or dimensions.hidden_size // heads,
        "--max-position-embeddings": dimensions.max_position_embeddings,
        "--normalization": "RMSNorm",
        "--norm-epsilon": dimensions.rms_norm_eps or 0.0,
        "--swiglu": True,
        "--disable-bias-linear": True,
        "--untie-embeddings-and-output-weights": not dimensions.tie_word_embeddings,
        "--make-vocab-size-divisible-by": 1,
        "--attention-dropout": 0.0,
        "--hidden-dropout": 0.0,
        "--pretrained-checkpoint": f"{export_input.out}/base",
        "--tokenizer-type": "HuggingFaceTokenizer",
        "--tokenizer-model": export_input.model_folder,
    }


def _check_model(export_input: ExportInput) -> None:
    """Raise `InvalidInput` for an architecture that Megatron-LM's arguments cannot describe."""
    dimensions = export_input.bundle.model.shape
    supported_type = dimensions.model_type in COUNTED_MODEL_TYPES
    if not supported_type or dimensions.rope_type not in ("default", "llama3"):
        types = " or ".join(COUNTED_MODEL_TYPES)
        raise InvalidInput(
            key="model.shape",
            found=f"{dimensions.model_type}, {dimensions.rope_type}",
            rule=f"model type {types}, with rotary positions that are unscaled or scaled as llama3",
            fix="export to another trainer",
        )
    for key in ("rope_theta", "rms_norm_eps"):
        if getattr(dimensions, key) is None:
            raise InvalidInput(
                key=f"model.shape.{key}",
                found=None,
                rule="a stated value, because Megatron-LM's default differs",
                fix=f"add `{key}: ...` to the target's shape, as in the model's config.json, "
                "and promote again",
            )


def _data_arguments(export_input: ExportInput) -> Arguments:
    """Return the blend: Megatron-LM's weights are shares of sequences, and so of tokens."""
    recipe = export_input.bundle.recipe
    blend: list[str] = []
    for portion in recipe.mixture.portions:
        if portion.share > 0:
            blend += [repr(portion.share), f"{export_input.store_folders[portion.source]}/train"]
    isolated = not recipe.cross_documents
    return {
        "--data-path": blend,
        "--split": "100,0,0",
        "--data-cache-path": f"{export_input.out}/cache",
        "--seq-length": recipe.seq_len,
        "--reset-position-ids": isolated,
        "--reset-attention-mask": isolated,
        "--eod-mask-loss": isolated,
        "--eval-iters": 0,
    }


def _training_arguments(export_input: ExportInput) -> Arguments:
    bundle, recipe = export_input.bundle, export_input.bundle.recipe
    constant = recipe.schedule == "constant"
    arguments: Arguments = {
        "--train-iters": recipe.steps,
        "--micro-batch-size": bundle.target.compute.micro_batch,
        "--global-batch-size": recipe.sequences,
        "--calculate-per-token-loss": True,
        "--lr": export_input.max_lr,
        "--min-lr": export_input.max_lr if constant else export_input.final_lr,
        "--lr-decay-style": LR_DECAY_STYLES.get(recipe.schedule, "WSD"),
        "--lr-decay-iters": recipe.steps,
        "--lr-warmup-iters": recipe.warmup_length,
        "--lr-warmup-init": 0.0,
        "--optimizer": "adam",
        "--adam-beta1": recipe.betas[0],
        "--adam-beta2": recipe.betas[1],
        "--adam-eps": recipe.epsilon,
        "--weight-decay": recipe.weight_decay,
        "--clip-grad": recipe.clip,
        "--seed": recipe.seed,
    }
    return arguments | _wsd_arguments(recipe)


def _wsd_arguments(recipe: Recipe) -> Arguments:
    if recipe.schedule not in WSD_DECAY_STYLES:
        return {}
    style = WSD_DECAY_STYLES[recipe.schedule]
    return {"--lr-wsd-decay-style": style, "--lr-wsd-decay-iters": recipe.decay_steps}


def _system_arguments(export_input: ExportInput) -> Arguments:
    """Return precision, parallelism, checkpoints and logs."""
    target = export_input.bundle.target
    checkpoint_folder = export_input.checkpoint_folder
    bf16 = target.compute.precision == "bf16"
    arguments: Arguments = {
        "--bf16": bf16,
        "--accumulate-allreduce-grads-in-fp32": bf16,
        "--tensor-model-parallel-size": target.parallelism.tensor,
        "--pipeline-model-parallel-size": target.parallelism.pipeline,
        "--sequence-parallel": target.parallelism.tensor > 1,
        "--use-distributed-optimizer": True,
        "--overlap-grad-reduce": True,
        "--overlap-param-gather": True,
        "--load": checkpoint_folder,
        "--save": checkpoint_folder,
        "--save-interval": target.checkpoints.every,
        "--ckpt-format": "torch_dist",
        "--exit-signal-handler": True,
        "--distributed-timeout-minutes": 30,
        "--log-interval": 1,
        "--log-throughput": True,
        "--tensorboard-dir": f"{checkpoint_folder}/tensorboard",
    }
    if "wandb" in target.tracking:
        arguments["--wandb-project"] = export_input.bundle.name
        arguments["--wandb-exp-name"] = export_input.job_name
    if target.compute.recompute:
        arguments["--recompute-granularity"] = "full"
        arguments["--recompute-method"] = "uniform"
        arguments["--recompute-num-layers"] = 1
    return arguments


def _argument_lines(arguments: Arguments) -> list[list[str]]:
    """Return the words of each line: an option and its value, or a data path and its weight."""
    lines: list[list[str]] = []
    for option, value in arguments.items():
        if isinstance(value, bool):
            lines += [[option]] if value else []
        elif isinstance(value, list):
            lines.append([option])
            lines += [value[i : i + 2] for i in range(0, len(value), 2)]
        else:
            lines.append([option, str(value)])
    return lines


def _prepare_commands(export_input: ExportInput) -> tuple[tuple[str, ...], ...]:
    """Return the commands that download a hub model and convert it to Megatron-LM's shards."""
    model_folder = export_input.model_folder
    parallelism = export_input.bundle.target.parallelism
    mistral = export_input.bundle.model.shape.model_type == "mistral"
    converter = f"{export_input.site.megatron}/tools/checkpoint/convert.py"
    convert = [export_input.site.python, converter, "--model-type", "GPT"]
    convert += ["--loader", "llama_mistral", "--model-size", "mistral" if mistral else "llama3"]
    convert += ["--checkpoint-type", "hf", "--load-dir", model_folder]
    convert += ["--tokenizer-model", model_folder, "--make-vocab-size-divisible-by", "1"]
    convert += ["--saver", "core", "--save-dir", f"{export_input.out}/base"]
    convert += ["--target-tensor-parallel-size", str(parallelism.tensor)]
    convert += ["--target-pipeline-parallel-size", str(parallelism.pipeline)]
    return (*download_commands(export_input), tuple(convert))
