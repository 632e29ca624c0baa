"""torchtitan: its ConfigManager on the exported function, and its own LR scheduler."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from common import (
    dummy_optimizer,
    flatten,
    loss_averaging,
    lr_curve,
    read_recipe,
    run_reader,
    stream_facts,
    to_json_value,
)

NORM_PARAMETERS = ("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight", "norm.weight")
MATRICES = (
    "tok_embeddings.weight",
    "layers.0.attention.wq.weight",
    "layers.0.feed_forward.w1.weight",
    "lm_head.weight",
)
"""Names of torchtitan's Llama 3, one of each kind."""


def load_peer() -> str:
    """Import torchtitan, and return its version."""
    from importlib.metadata import version

    import torchtitan.config.manager  # noqa: F401  (raises here if a dependency is missing)

    return f"torchtitan {version('torchtitan')}"


def read_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read the function `run` in `sweepcp_run.py`."""
    config = load_config(folder)
    recipe = read_recipe(config.dataloader.bundle, expected_hash=config.dataloader.bundle_hash)
    training, parallelism = config.training, config.parallelism
    world_size = record["nodes"] * record["per_node"]
    model_parallel = parallelism.tensor_parallel_degree * parallelism.pipeline_parallel_degree
    ranks = world_size // model_parallel
    if training.global_batch_size % (ranks * training.local_batch_size):
        raise ValueError(
            f"{ranks} ranks with {training.local_batch_size} sequences do not divide the batch"
        )
    checkpoint = config.checkpoint
    one_model = checkpoint.initial_load_path == config.hf_assets_path
    facts = stream_facts(recipe) | {
        "steps": training.steps,
        "lr": lr_per_step(config),
        "batch": training.global_batch_size * training.seq_len,
        "seq_len": training.seq_len,
        **optimizer_facts(config),
        "clip": training.max_norm,
        # Its model has none.
        "dropout": 0.0,
        "loss": loss_averaging(over_batch=True),
        "precision": precision(training),
        "order": "stream order",
        "seed": config.debug.seed,
        "checkpoints": [checkpoint.interval, checkpoint.keep_latest_k],
        "tracking": ["wandb"] if config.metrics.enable_wandb else [],
        "model": record["model"] if one_model else "two models",
    }
    if not uses_flex_attention(config):
        facts["attention"] = "across"
    return {"settings": config_settings(config), "facts": facts}


def load_config(folder: Path) -> Any:
    """Return the configuration that the exported function builds."""
    from torchtitan.config.manager import ConfigManager

    # The module of the folder before, which has the same name.
    sys.modules.pop("sweepcp_run", None)
    sys.path.insert(0, str(folder))
    try:
        return ConfigManager().parse_args(["--module", "sweepcp_run", "--config", "run"])
    finally:
        sys.path.remove(str(folder))


def lr_per_step(config: Any) -> list[float]:
    """Return the LR of each step by torchtitan's own scheduler."""
    steps = config.training.steps
    optimizer = dummy_optimizer(optimizer_arguments(config, "lm_head.weight")["lr"])
    scheduler = config.lr_scheduler.build(optimizers=[optimizer], training_steps=steps)
    return lr_curve(optimizer, scheduler, steps)


def optimizer_facts(config: Any) -> dict[str, Any]:
    """Return the facts of the optimizer and of what it decays."""
    adamw = optimizer_arguments(config, "lm_head.weight")
    names = {group.optimizer_name for group in config.optimizer.param_groups}
    expected = dict.fromkeys(MATRICES, adamw["weight_decay"]) | dict.fromkeys(NORM_PARAMETERS, 0.0)
    decay = {name: optimizer_arguments(config, name)["weight_decay"] for name in expected}
    adamw_values = [*adamw["betas"], adamw["eps"], adamw["weight_decay"]]
    return {
        "optimizer": adamw_values if names == {"AdamW"} else [],
        "decayed": "matrices" if decay == expected else str(decay),
    }


def optimizer_arguments(config: Any, parameter: Any) -> Any:
    """Return the arguments for a parameter: those of the first group whose pattern matches."""
    for group in config.optimizer.param_groups:
        if re.search(group.pattern, parameter):
            return group.optimizer_kwargs
    raise ValueError(f"no group of parameters matches {parameter}")


def precision(training: Any) -> str:
    """Return the precision of computation; master weights must be fp32."""
    if training.dtype != "float32":
        return "no fp32 master weights"
    return {"float32": "fp32", "bfloat16": "bf16"}[training.mixed_precision_param]


def uses_flex_attention(config: Any) -> bool:
    """Return whether attention is flex attention, which isolates documents by their positions."""
    from torchtitan.models.common.attention import FlexAttention

    return isinstance(attention_backend(config), FlexAttention.Config)


def attention_backend(config: Any) -> Any:
    """Return the configuration of the model's attention."""
    return config.model_spec.model.first_attention.inner_attention


def config_settings(config: Any) -> dict[str, Any]:
    """Return what was parsed, by its path in `Trainer.Config`."""
    from torchtitan.distributed.activation_checkpoint import FullAC

    settings = flatten("", as_dict(config))
    for number, group in enumerate(config.optimizer.param_groups):
        for key, value in field_values(group).items():
            settings[f"optimizer.param_groups.{number}.{key}"] = to_json_value(value)
    policy = config.activation_checkpoint
    full_recompute = isinstance(policy, FullAC.Config)
    backend = type(attention_backend(config)).__qualname__
    settings["model_spec.flavor"] = config.model_spec.flavor
    settings["attention backend"] = "flex" if uses_flex_attention(config) else backend
    settings["activation_checkpoint"] = "FullAC" if full_recompute else to_json_value(policy)
    return settings


def field_values(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass with their values."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def as_dict(config: Any) -> dict[str, Any]:
    """Return nested dataclasses as dictionaries, without the model."""
    values = {}
    for name, value in field_values(config).items():
        if name == "model_spec":
            continue
        nested = dataclasses.is_dataclass(value)
        values[name] = as_dict(value) if nested else to_json_value(value)
    return values


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
