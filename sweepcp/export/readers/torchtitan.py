"""torchtitan: its ConfigManager on the exported function, and its own LR scheduler."""

import dataclasses
import sys

from common import answer, dummy_optimizer, flat, lr_curve, plain, recipe_of, stream_facts


def peer():
    from importlib.metadata import version

    import torchtitan.config.manager  # noqa: F401

    return f"torchtitan {version('torchtitan')}"


def read(folder, record):
    from torchtitan.components.optimizer import LRSchedulersContainer
    from torchtitan.config.manager import ConfigManager
    from torchtitan.distributed.activation_checkpoint import FullAC
    from torchtitan.models.common.attention import FlexAttention

    sys.modules.pop("sweepcp_run", None)
    sys.path.insert(0, str(folder))
    try:
        config = ConfigManager().parse_args(["--module", "sweepcp_run", "--config", "run"])
    finally:
        sys.path.remove(str(folder))
    recipe = recipe_of(config.dataloader.bundle, config.dataloader.bundle_hash)
    training, parallel = config.training, config.parallelism
    world = record["nodes"] * record["per_node"]
    ranks = world // (parallel.tensor_parallel_degree * parallel.pipeline_parallel_degree)
    if training.global_batch_size % (ranks * training.local_batch_size):
        raise ValueError(
            f"{ranks} ranks with {training.local_batch_size} sequences do not divide the batch"
        )

    groups = config.optimizer.param_groups
    names = [
        "tok_embeddings.weight",
        "layers.0.attention.wq.weight",
        "layers.0.attention_norm.weight",
    ]
    names += [
        "layers.0.ffn_norm.weight",
        "layers.0.feed_forward.w1.weight",
        "norm.weight",
        "lm_head.weight",
    ]
    kwargs = {name: first_match(groups, name) for name in names}
    main = kwargs["lm_head.weight"]
    wanted = {name: 0.0 if "norm" in name else main["weight_decay"] for name in names}
    decayed = {name: kwargs[name]["weight_decay"] for name in names}
    optimizer = dummy_optimizer(main["lr"])
    schedule: LRSchedulersContainer = config.lr_scheduler.build(
        optimizers=[optimizer], training_steps=training.steps
    )
    adamw = {group.optimizer_name for group in groups} == {"AdamW"}
    dtypes = {"float32": "fp32", "bfloat16": "bf16"}
    masters = training.dtype == "float32"
    backend = config.model_spec.model.first_attention.inner_attention
    isolated = isinstance(backend, FlexAttention.Config)
    settings = flat("", as_dict(config))
    for i, group in enumerate(groups):
        settings |= {
            f"optimizer.param_groups.{i}.{key}": plain(value)
            for key, value in vars_of(group).items()
        }
    policy = config.activation_checkpoint
    settings |= {
        "model_spec.flavor": config.model_spec.flavor,
        "attention backend": "flex" if isolated else type(backend).__qualname__,
        "activation_checkpoint": "FullAC" if isinstance(policy, FullAC.Config) else plain(policy),
    }
    facts = stream_facts(recipe) | {
        "steps": training.steps,
        "lr": lr_curve(optimizer, schedule, training.steps),
        "batch": training.global_batch_size * training.seq_len,
        "seq_len": training.seq_len,
        "optimizer": [*main["betas"], main["eps"], main["weight_decay"]] if adamw else [],
        "decayed": "matrices" if decayed == wanted else str(decayed),
        "clip": training.max_norm,
        "loss": "targets of the whole batch",
        "precision": dtypes[training.mixed_precision_param] if masters else "no fp32 masters",
        "order": "the stream",
        "seed": config.debug.seed,
        "checkpoints": [config.checkpoint.interval, config.checkpoint.keep_latest_k],
        "tracking": ["wandb"] if config.metrics.enable_wandb else [],
        "model": record["model"]
        if config.checkpoint.initial_load_path == config.hf_assets_path
        else "two models",
    }
    if not isolated:
        facts["attention"] = "across"
    return {"settings": settings, "facts": facts}


def first_match(groups, name):
    """The arguments of the first group whose pattern matches a parameter, as torchtitan takes it."""
    import re

    return next(group.optimizer_kwargs for group in groups if re.search(group.pattern, name))


def vars_of(config):
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def as_dict(config):
    """Nested dataclasses as dictionaries, without the model."""
    found = {}
    for name, value in vars_of(config).items():
        if name == "model_spec":
            continue
        found[name] = as_dict(value) if dataclasses.is_dataclass(value) else plain(value)
    return found


if __name__ == "__main__":
    answer(peer, read)
