"""What the readers have in common. Imported by them from their own folder, which then leaves the import path."""

import contextlib
import enum
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path = [
    place for place in sys.path if Path(place or ".").resolve() != HERE
]  # `axolotl` is not axolotl.py here


def answer(peer, read):
    """Read the folders of the command line; `peer` imports the peer and says its version, `read` reads a folder."""
    *folders, result = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        try:
            content = {"peer": peer()}
        except ModuleNotFoundError as error:
            content = {"missing": str(error)}
        else:
            content["read"] = [_read(read, Path(folder)) for folder in folders]
    Path(result).write_text(json.dumps(content), encoding="utf-8")


def _read(read, folder):
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    try:
        return read(folder, record)
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def recipe_of(bundle, expected):
    """The recipe in a bundle, which must be the one that was exported."""
    import hashlib

    path = Path(bundle)
    found = hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(f"{path} is bundle {found[:16]}, not {expected[:16]}")
    return json.loads((path / "bundle.json").read_text(encoding="utf-8"))["recipe"]


def stream_facts(recipe):
    """What holds where sweepcp's stream feeds the trainer."""
    across = "across" if recipe["cross_documents"] else "within"
    shares = {portion["source"]: portion["share"] for portion in recipe["mixture"]["portions"]}
    return {"seq_len": recipe["seq_len"], "shares": shares, "attention": across, "targets": across}


def mix_shares(place):
    """The shares of a mix that was written out, whose rows are counted by what the trainer loads it with."""
    if not (place / "mix.json").is_file():
        return "the mix is not written yet"
    from datasets import load_from_disk

    content = json.loads((place / "mix.json").read_text(encoding="utf-8"))
    if len(load_from_disk(str(place))) != content["rows"]:
        raise ValueError(f"{place} has not the {content['rows']} rows that were written")
    total = sum(content["tokens"].values())
    return {source: tokens / total for source, tokens in content["tokens"].items()}


def plain(value):
    """A parsed value as JSON has it."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def flat(prefix, content):
    """Nested keys in a row."""
    found = {}
    for key, value in content.items():
        place = f"{prefix}.{key}" if prefix else key
        found |= flat(place, value) if isinstance(value, dict) else {place: plain(value)}
    return found


def read_deepspeed(path, world):
    """What DeepSpeed makes of its configuration, by the keys of the file."""
    import deepspeed.comm
    from deepspeed.runtime.config import DeepSpeedConfig

    deepspeed.comm.get_rank = lambda group=None: (
        0
    )  # without a process group it would take the world for 1

    class World:
        """Of a run that is not started here."""

        @staticmethod
        def get_data_parallel_world_size():
            return world

    content = json.loads(Path(path).read_text(encoding="utf-8"))
    config = DeepSpeedConfig(content, mpu=World)
    names = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
    )
    names += ("zero_force_ds_cpu_optimizer", "steps_per_print")
    parsed = {name: getattr(config, name) for name in names if name in content}
    parsed |= {"bf16": {"enabled": config.bfloat16_config.enabled}}
    parsed |= {"data_types": {"grad_accum_dtype": config.grad_accum_dtype}}
    zero = config.zero_config.model_dump(mode="json")
    aliases = {"stage3_" + name: value for name, value in zero.items()}
    aliases["stage3_prefetch_bucket_size"] = zero["prefetch_bucket_size"]
    aliases["stage3_param_persistence_threshold"] = zero["param_persistence_threshold"]
    aliases["stage3_gather_16bit_weights_on_model_save"] = zero[
        "gather_16bit_weights_on_model_save"
    ]
    settings = flat("ds_config.json", parsed | {"zero_optimization": zero | aliases})
    batch = config.train_batch_size
    precision = "bf16" if config.bfloat16_config.enabled else "fp32"
    if precision == "bf16" and config.grad_accum_dtype != "fp32":
        precision = f"bf16, gradients summed in {config.grad_accum_dtype or 'bf16'}"
    return settings, {"sequences": batch, "clip": config.gradient_clipping, "precision": precision}


def lr_curve(optimizer, scheduler, steps):
    """The LR that each optimizer step uses."""
    found = []
    for _ in range(steps):
        found.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return found


def dummy_optimizer(lr):
    """AdamW on one number, for a scheduler to work on."""
    import torch

    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def read_transformers(args, world, batch, seq_len):
    """The facts that follow from transformers' TrainingArguments, by its own scheduler and choice of what decays."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer
    from transformers.optimization import get_scheduler

    precision = "bf16" if args.bf16 else "fp32"
    mine = (
        args.per_device_train_batch_size * args.gradient_accumulation_steps * world,
        args.max_grad_norm,
        precision,
    )
    if mine != (batch["sequences"], batch["clip"], batch["precision"]):
        raise ValueError(
            f"batch, clip and precision of the arguments are {mine}, DeepSpeed's are {batch}"
        )
    optimizer = dummy_optimizer(args.learning_rate)
    warmup = args.get_warmup_steps(args.max_steps)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        warmup,
        args.max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    tiny = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
    )
    model = LlamaForCausalLM(tiny)
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    adamw = plain(args.optim) in ("adamw_torch", "adamw_torch_fused")
    return {
        "steps": args.max_steps,
        "lr": lr_curve(optimizer, scheduler, args.max_steps),
        "batch": batch["sequences"] * seq_len,
        "optimizer": [args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay]
        if adamw
        else [],
        "decayed": "matrices" if decayed == matrices else "something else",
        "clip": args.max_grad_norm,
        "loss": "targets of the whole batch"
        if args.average_tokens_across_devices
        else "the mean of means",
        "precision": precision,
        "seed": args.seed,
        "checkpoints": [args.save_steps, args.save_total_limit],
        "tracking": sorted(set(args.report_to) - {"tensorboard", "none"}),
    }
