"""Megatron-LM: its arguments, on the token stores as they are, with tensor and pipeline parallelism."""

from string import Template

from sweepcp.config.model_dimensions import COUNTED
from sweepcp.config.recipe import Recipe
from sweepcp.errors import InvalidInput
from sweepcp.export.export_plan import (
    Difference,
    ExportInput,
    ExportPlan,
    fetch_model,
    python_literal,
    round_to_12_digits,
    tracking_differences,
    unwatched_notes,
)

Arguments = dict[str, str | int | float | bool | list[str]]
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


def write(source: ExportInput) -> ExportPlan:
    """`pretrain.py`, which holds the arguments and starts `pretrain_gpt.py` of the checkout that the site names."""
    arguments, megatron = _arguments(source), source.site.megatron
    order = "shuffled by Megatron-LM: shares are met over the run, and not within one sequence at every step"
    return ExportPlan(
        files={
            "pretrain.py": SCRIPT.substitute(
                megatron=python_literal(megatron),
                arguments="\n".join(
                    f"    {', '.join(map(python_literal, line))}," for line in _lines(arguments)
                ),
            )
        },
        command=(f"{source.out}/pretrain.py",),
        settings={"MEGATRON": megatron, **arguments},
        differences=(
            Difference("order", order),
            Difference("checkpoints", "it keeps all of them: remove old ones, or the disk fills"),
            *tracking_differences(source, ("wandb",)),
        ),
        notes=(
            *unwatched_notes(source),
            "its checkpoints are of its own format: what serves the model has to convert the last",
        ),
        prepare=_prepare(source),
        env={"CUDA_DEVICE_MAX_CONNECTIONS": "1"},
        saves_on_term=True,
    )


def _arguments(source: ExportInput) -> Arguments:
    """Arguments of `pretrain_gpt.py`: True for those without a value."""
    return _model(source) | _data(source) | _steps(source) | _machines(source)


def _model(source: ExportInput) -> Arguments:
    """The architecture, all of it: a converted checkpoint states neither the rotary base nor its scaling."""
    shape, where = source.bundle.model.shape, source.opened.path / "bundle.json"
    if shape.model_type not in COUNTED or shape.rope_type not in ("default", "llama3"):
        rule = f"a model of type {' or '.join(COUNTED)}, with rotary positions as they are or scaled as llama3"
        found = f"{shape.model_type}, {shape.rope_type}"
        raise InvalidInput(
            file=where, key="model.shape", found=found, rule=rule, fix="export to another trainer"
        )
    for key in ("rope_theta", "rms_norm_eps"):
        if getattr(shape, key) is None:
            fix = f"add `{key}: ...` to the target's shape, as in the model's config.json, and promote again"
            raise InvalidInput(
                file=where,
                key=f"model.shape.{key}",
                found=None,
                rule="stated: Megatron-LM takes another value otherwise",
                fix=fix,
            )
    rope: Arguments = {
        "--position-embedding-type": "rope",
        "--rotary-base": int(shape.rope_theta or 0),
    }
    if shape.rope_type == "llama3":
        rope |= {"--use-rope-scaling": True, "--rope-scaling-factor": shape.rope_factor or 8.0}
    return rope | {
        "--num-layers": shape.num_hidden_layers,
        "--hidden-size": shape.hidden_size,
        "--ffn-hidden-size": shape.intermediate_size,
        "--num-attention-heads": shape.num_attention_heads,
        "--group-query-attention": True,
        "--num-query-groups": shape.num_key_value_heads,
        "--kv-channels": shape.head_dim or shape.hidden_size // shape.num_attention_heads,
        "--max-position-embeddings": shape.max_position_embeddings,
        "--normalization": "RMSNorm",
        "--norm-epsilon": shape.rms_norm_eps or 0.0,
        "--swiglu": True,
        "--disable-bias-linear": True,
        "--untie-embeddings-and-output-weights": not shape.tie_word_embeddings,
        "--make-vocab-size-divisible-by": 1,
        "--attention-dropout": 0.0,
        "--hidden-dropout": 0.0,
        "--pretrained-checkpoint": f"{source.out}/base",
        "--tokenizer-type": "HuggingFaceTokenizer",
        "--tokenizer-model": source.model_folder,
    }


def _data(source: ExportInput) -> Arguments:
    """Weights are shares of sequences, and so of tokens."""
    recipe, blend = source.bundle.recipe, []
    for portion in recipe.mixture.portions:
        if portion.share > 0:
            blend += [repr(portion.share), f"{source.stores[portion.source]}/train"]
    within = not recipe.cross_documents
    return {
        "--data-path": blend,
        "--split": "100,0,0",
        "--data-cache-path": f"{source.out}/cache",
        "--seq-length": recipe.seq_len,
        "--reset-position-ids": within,
        "--reset-attention-mask": within,
        "--eod-mask-loss": within,
        "--eval-iters": 0,
    }


def _steps(source: ExportInput) -> Arguments:
    bundle, recipe = source.bundle, source.bundle.recipe
    style = {"cosine": "cosine", "linear": "linear", "wsd": "WSD", "constant": "constant"}[
        recipe.schedule
    ]
    arguments: Arguments = {
        "--train-iters": recipe.steps,
        "--micro-batch-size": bundle.target.compute.micro_batch,
        "--global-batch-size": recipe.sequences,
        "--calculate-per-token-loss": True,
        "--lr": source.peak,
        "--min-lr": round_to_12_digits(
            source.peak * (1.0 if recipe.schedule == "constant" else recipe.final_fraction)
        ),
        "--lr-decay-style": style,
        "--lr-decay-iters": recipe.steps,
        "--lr-warmup-iters": recipe.warmup_steps,
        "--lr-warmup-init": 0.0,
        "--optimizer": "adam",
        "--adam-beta1": recipe.betas[0],
        "--adam-beta2": recipe.betas[1],
        "--adam-eps": 1e-8,
        "--weight-decay": recipe.weight_decay,
        "--clip-grad": recipe.clip,
        "--seed": recipe.seed,
    }
    return arguments | _wsd(recipe)


def _wsd(recipe: Recipe) -> Arguments:
    if recipe.schedule != "wsd":
        return {}
    return {"--lr-wsd-decay-style": "linear", "--lr-wsd-decay-iters": recipe.decay_steps}


def _machines(source: ExportInput) -> Arguments:
    target = source.bundle.target
    bf16, several = target.compute.precision == "bf16", target.parallelism.tensor > 1
    arguments: Arguments = {
        "--bf16": bf16,
        "--accumulate-allreduce-grads-in-fp32": bf16,
        "--tensor-model-parallel-size": target.parallelism.tensor,
        "--pipeline-model-parallel-size": target.parallelism.pipeline,
        "--sequence-parallel": several,
        "--use-distributed-optimizer": True,
        "--overlap-grad-reduce": True,
        "--overlap-param-gather": True,
        "--load": source.saves,
        "--save": source.saves,
        "--save-interval": target.checkpoints.every,
        "--ckpt-format": "torch_dist",
        "--exit-signal-handler": True,
        "--distributed-timeout-minutes": 30,
        "--log-interval": 1,
        "--log-throughput": True,
        "--tensorboard-dir": f"{source.saves}/tensorboard",
    }
    if "wandb" in target.tracking:
        arguments |= {"--wandb-project": source.bundle.name, "--wandb-exp-name": source.job}
    if target.compute.recompute:
        arguments |= {
            "--recompute-granularity": "full",
            "--recompute-method": "uniform",
            "--recompute-num-layers": 1,
        }
    return arguments


def _lines(arguments: Arguments) -> list[list[str]]:
    """An option with its values a line; a path of data with its weight a line, too."""
    lines: list[list[str]] = []
    for key, value in arguments.items():
        if isinstance(value, bool):
            lines += [[key]] if value else []
        elif isinstance(value, list):
            lines += [[key], *([value[i], value[i + 1]] for i in range(0, len(value), 2))]
        else:
            lines.append([key, str(value)])
    return lines


def _prepare(source: ExportInput) -> tuple[tuple[str, ...], ...]:
    """Fetch the model where it is on a hub, and convert it to the parts that the processes load."""
    folder, python, parallel = (
        source.model_folder,
        source.site.python,
        source.bundle.target.parallelism,
    )
    kind = "mistral" if source.bundle.model.shape.model_type == "mistral" else "llama3"
    convert = [python, f"{source.site.megatron}/tools/checkpoint/convert.py", "--model-type", "GPT"]
    convert += [
        "--loader",
        "llama_mistral",
        "--model-size",
        kind,
        "--checkpoint-type",
        "hf",
        "--load-dir",
        folder,
    ]
    convert += ["--tokenizer-model", folder, "--make-vocab-size-divisible-by", "1"]
    convert += ["--saver", "core", "--save-dir", f"{source.out}/base"]
    convert += ["--target-tensor-parallel-size", str(parallel.tensor)]
    convert += ["--target-pipeline-parallel-size", str(parallel.pipeline)]
    return (*fetch_model(source), tuple(convert))
