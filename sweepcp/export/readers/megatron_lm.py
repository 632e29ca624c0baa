"""Megatron-LM: its own argument parser and LR scheduler, from the checkout in the script."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import dummy_optimizer, loss_averaging, run_reader, script_constants, to_json_value


def load_peer() -> str:
    """Import Megatron-LM from its checkout, and return its version."""
    import torch

    # Megatron-LM imports `override` from typing, which has it since Python 3.12.
    if sys.version_info < (3, 12):
        import typing

        import typing_extensions

        typing.override = typing_extensions.override
    script = script_constants(Path(sys.argv[1]) / "pretrain.py")
    checkout = os.environ.get("MEGATRON_LM", script["MEGATRON"])
    if not Path(checkout, "pretrain_gpt.py").is_file():
        raise ModuleNotFoundError(
            f"no Megatron-LM in {checkout}: name a checkout in the site file or in $MEGATRON_LM"
        )
    sys.path.insert(0, checkout)
    # Nothing is trained here, so the GPU that validate_args asks for may be a pretended one.
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(major=9, minor=0)
    import megatron.core
    import megatron.training.arguments  # noqa: F401  (raises here if a dependency is missing)

    return f"Megatron-LM {megatron.core.__version__}"


def read_folder(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read the arguments in `pretrain.py`."""
    from megatron.training.arguments import parse_args, validate_args

    script = script_constants(folder / "pretrain.py")
    sys.argv = ["pretrain_gpt.py", *script["ARGUMENTS"]]
    os.environ |= {"WORLD_SIZE": str(record["nodes"] * record["per_node"])} | record["env"]
    args = parse_args()
    validate_args(args)
    if args.global_batch_size % (args.data_parallel_size * args.micro_batch_size):
        raise ValueError(f"{args.data_parallel_size} ranks do not divide the batch")
    # Transformer Engine and the fused softmax take a causal mask of their own in place of the data
    # loader's, which is the one that separates documents.
    reads_mask = args.transformer_impl == "local" and not args.masked_softmax_fusion
    isolated = args.reset_attention_mask and reads_mask
    converted = args.pretrained_checkpoint == f"{folder}/base"
    facts = {
        "steps": args.train_iters,
        "lr": lr_per_step(args),
        "batch": args.global_batch_size * args.seq_length,
        "seq_len": args.seq_length,
        "shares": blend_shares(args, record["stores"]),
        "optimizer": [args.adam_beta1, args.adam_beta2, args.adam_eps, args.weight_decay],
        "decayed": decayed_parameters(args),
        "clip": args.clip_grad,
        "dropout": float(max(args.attention_dropout, args.hidden_dropout)),
        "loss": loss_averaging(over_batch=args.calculate_per_token_loss),
        "precision": precision(args),
        "attention": "within" if isolated else "across",
        "targets": "within" if args.eod_mask_loss else "across",
        "order": "shuffled",
        "seed": args.seed,
        "checkpoints": [args.save_interval, "all"],
        "tracking": ["wandb"] if args.wandb_project else [],
        "model": record["model"] if converted else args.pretrained_checkpoint,
    }
    return {"settings": {"MEGATRON": script["MEGATRON"]} | parsed_options(args), "facts": facts}


def lr_per_step(args: Any) -> list[float]:
    """Return the LR of each step by Megatron-LM's own scheduler."""
    from megatron.training import global_vars
    from megatron.training.training import get_optimizer_param_scheduler

    global_vars._GLOBAL_ARGS = args
    optimizer = dummy_optimizer(args.lr)
    for group in optimizer.param_groups:
        group |= {"wd_mult": 1.0, "lr_mult": 1.0, "max_lr": args.lr, "min_lr": args.min_lr}
    scheduler = get_optimizer_param_scheduler(optimizer)
    curve = []
    for _ in range(args.train_iters):
        curve.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(args.global_batch_size)
    return curve


def blend_shares(args: Any, stores: Any) -> dict[str, float]:
    """Return the token share of each source, from the weights of the data paths."""
    from megatron.core.datasets.utils import get_blend_from_list

    prefixes, weights = get_blend_from_list(args.data_path)
    source_of = {f"{folder}/train": source for source, folder in stores.items()}
    shares = dict.fromkeys(stores, 0.0)
    for prefix, weight in zip(prefixes, weights, strict=True):
        shares[source_of[prefix]] = weight / sum(weights)
    return shares


def decayed_parameters(args: Any) -> str:
    """Return to which parameters Megatron-LM's Adam applies weight decay."""
    import torch
    from megatron.core.optimizer import OptimizerConfig, get_standard_config_overrides

    overrides = get_standard_config_overrides(OptimizerConfig(lr=args.lr, min_lr=args.min_lr))
    parameters = {
        "matrix": torch.nn.Parameter(torch.zeros(2, 2)),
        "vector": torch.nn.Parameter(torch.zeros(2)),
    }
    undecayed = set()
    for key, group in overrides.items():
        if group.get("wd_mult") == 0:
            undecayed |= {name for name, p in parameters.items() if key.matches(p, name)}
    decayed = set(parameters) - undecayed
    if decayed == {"matrix"} and args.optimizer == "adam":
        return "matrices"
    return f"{args.optimizer}: {sorted(decayed)}"


def precision(args: Any) -> str:
    """Return the precision of computation, and of gradient accumulation where it differs."""
    if not args.bf16:
        return "fp16" if args.fp16 else "fp32"
    if args.accumulate_allreduce_grads_in_fp32:
        return "bf16"
    return "bf16, gradients accumulated in bf16"


def parsed_options(args: Any) -> dict[str, Any]:
    """Return what was parsed, by the names of the options."""
    import argparse

    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    options = {}
    for action in parser._actions:
        if not hasattr(args, action.dest):
            continue
        value = to_json_value(getattr(args, action.dest))
        if isinstance(action, argparse._StoreFalseAction):
            value = not value
        options |= dict.fromkeys(action.option_strings, value)
    return options


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
