"""Functions shared by the readers, which import this module from their own folder."""

import ast
import contextlib
import enum
import json
import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIX_NOT_WRITTEN = "the mix has not been written yet"
"""As in `sweepcp.export.recipe_facts`."""
HERE = Path(__file__).resolve().parent
# Otherwise `import axolotl` in axolotl.py would import the reader itself.
sys.path = [folder for folder in sys.path if Path(folder or ".").resolve() != HERE]


def run_reader(
    load_peer: Callable[[], str], read_folder: Callable[[Path, dict[str, Any]], dict[str, Any]]
) -> None:
    """Read the folders of the command line and write the result file.

    Args:
        load_peer: Imports the peer and returns its name and version.
        read_folder: Returns settings and facts, given a folder and its parsed `export.json`.
    """
    *folders, result = sys.argv[1:]
    # Peers print while they are imported; standard output stays clean.
    with contextlib.redirect_stdout(sys.stderr):
        try:
            content = {"peer": load_peer()}
        except ModuleNotFoundError as error:
            content = {"missing": str(error)}
        else:
            content["read"] = [_read_or_error(read_folder, Path(folder)) for folder in folders]
    Path(result).write_text(json.dumps(content), encoding="utf-8")


def use_one_process() -> None:
    """Make torch.distributed start a group of this process alone, on a port that is free.

    Trainers start a process group while they parse. Readers may run side by side, so no port can be
    fixed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def read_recipe(bundle: str, *, expected_hash: str) -> dict[str, Any]:
    """Return the recipe of a bundle; raises `ValueError` unless it is the exported bundle."""
    import hashlib

    folder = Path(bundle)
    manifest_hash = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    if manifest_hash != expected_hash:
        raise ValueError(f"{folder} is bundle {manifest_hash[:16]}, not {expected_hash[:16]}")
    return json.loads((folder / "bundle.json").read_text(encoding="utf-8"))["recipe"]


def stream_facts(recipe: Any) -> dict[str, Any]:
    """Return the facts that hold where sweepcp's stream feeds the trainer."""
    across_or_within = "across" if recipe["cross_documents"] else "within"
    return {
        "seq_len": recipe["seq_len"],
        "shares": {p["source"]: p["share"] for p in recipe["mixture"]["portions"]},
        "attention": across_or_within,
        "targets": across_or_within,
    }


def mix_shares(folder: Path) -> Any:
    """Return the token shares of a written mix, after counting its rows as the trainer loads it."""
    if not (folder / "mix.json").is_file():
        return MIX_NOT_WRITTEN
    from datasets import load_from_disk

    content = json.loads((folder / "mix.json").read_text(encoding="utf-8"))
    if len(load_from_disk(str(folder))) != content["rows"]:
        raise ValueError(f"{folder} does not have the {content['rows']} rows that were written")
    total = sum(content["tokens"].values())
    return {source: tokens / total for source, tokens in content["tokens"].items()}


def to_json_value(value: Any) -> Any:
    """Return a parsed value as JSON represents it."""
    if isinstance(value, enum.Enum):
        return to_json_value(value.value)
    if isinstance(value, dict):
        return {str(key): to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [to_json_value(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def flatten(prefix: str, content: Any) -> dict[str, Any]:
    """Return nested keys as `prefix.a.b` → JSON value."""
    settings = {}
    for key, value in content.items():
        path = f"{prefix}.{key}" if prefix else key
        settings |= (
            flatten(path, value) if isinstance(value, dict) else {path: to_json_value(value)}
        )
    return settings


def script_constants(path: Path) -> dict[str, Any]:
    """Return the literals that a script assigns at its top level, without running it."""
    constants = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            with contextlib.suppress(ValueError):
                constants[node.targets[0].id] = ast.literal_eval(node.value)
    return constants


def read_deepspeed(path: Path, world_size: int) -> Any:
    """Parse a DeepSpeed configuration with DeepSpeed.

    Returns:
        Settings by the keys of the file, and a dictionary with `sequences`, `clip` and `precision`.
    """
    import deepspeed.comm
    from deepspeed.runtime.config import DeepSpeedConfig

    # Without a process group, DeepSpeedConfig would assume a world size of 1.
    deepspeed.comm.get_rank = lambda group=None: 0

    class DataParallelWorld:
        """Stands for the processes of the run, none of which is started here."""

        @staticmethod
        def get_data_parallel_world_size() -> int:
            return world_size

    content = json.loads(Path(path).read_text(encoding="utf-8"))
    config = DeepSpeedConfig(content, mpu=DataParallelWorld)
    settings = flatten("ds_config.json", _deepspeed_settings(config, content))
    return settings, {
        "sequences": config.train_batch_size,
        "clip": config.gradient_clipping,
        "precision": _deepspeed_precision(config),
    }


def config_dropout(model: str, overrides: dict[str, Any]) -> float:
    """Return the largest dropout or jitter that a model's config.json states, 0 for a hub model.

    Args:
        model: Folder of the model, or hub id.
        overrides: Keys of the file that the trainer sets to another value.
    """
    file = Path(model) / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    settings = flatten("", content | overrides)
    return max(
        (
            float(value)
            for key, value in settings.items()
            if re.search("drop|jitter", key)
            and not re.search(r"(^|\.)(classifier|summary)_", key)
            and type(value) in (int, float)
        ),
        default=0.0,
    )


def lr_curve(optimizer: Any, scheduler: Any, steps: int) -> list[float]:
    """Return the LR that each optimizer step uses."""
    curve = []
    for _ in range(steps):
        curve.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return curve


def dummy_optimizer(lr: float) -> Any:
    """Return AdamW with one parameter, for a scheduler to work on."""
    import torch

    return torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def transformers_facts(
    args: Any, deepspeed: Any, *, world_size: int, seq_len: int
) -> dict[str, Any]:
    """Return the facts that follow from transformers' `TrainingArguments`.

    Args:
        args: The parsed `TrainingArguments`.
        deepspeed: The second value of `read_deepspeed`, which must agree with them.
        world_size: Processes of the run.
        seq_len: Tokens per sequence.
    """
    precision = "bf16" if args.bf16 else "fp32"
    sequences = args.per_device_train_batch_size * args.gradient_accumulation_steps * world_size
    arguments = {"sequences": sequences, "clip": args.max_grad_norm, "precision": precision}
    if arguments != deepspeed:
        raise ValueError(f"the arguments have {arguments}, DeepSpeed's configuration {deepspeed}")
    uses_adamw = to_json_value(args.optim) in ("adamw_torch", "adamw_torch_fused")
    adamw = [args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay]
    global_mean = args.average_tokens_across_devices
    return {
        "steps": args.max_steps,
        "lr": _transformers_lr_curve(args),
        "batch": sequences * seq_len,
        "optimizer": adamw if uses_adamw else [],
        "decayed": _transformers_decayed(),
        "clip": args.max_grad_norm,
        "loss": loss_averaging(over_batch=global_mean),
        "precision": precision,
        "seed": args.seed,
        "checkpoints": [args.save_steps, args.save_total_limit],
        "tracking": sorted(set(args.report_to) - {"tensorboard", "none"}),
    }


def loss_averaging(*, over_batch: bool) -> str:
    """Return the value of the fact `loss`."""
    return "mean over the targets of the whole batch" if over_batch else "mean of per-process means"


def _read_or_error(
    read_folder: Callable[[Path, dict[str, Any]], dict[str, Any]], folder: Path
) -> dict[str, Any]:
    record = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    try:
        return read_folder(folder, record)
    # Argument parsers exit instead of raising.
    except (Exception, SystemExit) as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def _deepspeed_settings(config: Any, content: Any) -> dict[str, Any]:
    """Return what DeepSpeed parsed, by the keys of its configuration file."""
    names = (
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "zero_force_ds_cpu_optimizer",
        "steps_per_print",
        "wall_clock_breakdown",
        "memory_breakdown",
    )
    settings = {name: getattr(config, name) for name in names if name in content}
    if config.communication_data_type is not None:
        settings["communication_data_type"] = _dtype_name(config.communication_data_type)
    settings["bf16"] = {"enabled": config.bfloat16_config.enabled}
    settings["data_types"] = {"grad_accum_dtype": config.grad_accum_dtype}
    zero = config.zero_config.model_dump(mode="json")
    # The configuration dumps field names; files use their aliases, which begin with `stage3_`.
    aliases = {f"stage3_{name}": value for name, value in zero.items()}
    settings["zero_optimization"] = zero | aliases
    return settings


def _dtype_name(dtype: Any) -> str:
    """Return a torch dtype as DeepSpeed's configuration names it."""
    return {"torch.float32": "fp32", "torch.bfloat16": "bf16"}.get(str(dtype), str(dtype))


def _deepspeed_precision(config: Any) -> str:
    if not config.bfloat16_config.enabled:
        return "fp32"
    if str(config.communication_data_type) != "torch.float32":
        return f"bf16, gradients reduced in {config.communication_data_type or 'bf16'}"
    if config.grad_accum_dtype != "fp32":
        return f"bf16, gradients accumulated in {config.grad_accum_dtype or 'bf16'}"
    return "bf16"


def _transformers_lr_curve(args: Any) -> list[float]:
    """Return the LR of each step by transformers' own scheduler."""
    from transformers.optimization import get_scheduler

    optimizer = dummy_optimizer(args.learning_rate)
    scheduler = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(args.max_steps),
        args.max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    return lr_curve(optimizer, scheduler, args.max_steps)


def _transformers_decayed() -> str:
    """Return to which parameters of a Llama model transformers applies weight decay."""
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer

    tiny = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
    )
    model = LlamaForCausalLM(tiny)
    decayed = set(Trainer.get_decay_parameter_names(None, model))
    matrices = {name for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    return "matrices" if decayed == matrices else "other parameters"
