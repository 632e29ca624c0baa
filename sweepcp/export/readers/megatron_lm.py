"""Megatron-LM: the arguments by its own parser, out of the checkout that the script names, and its own LR scheduler."""

import ast
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from common import answer, dummy_optimizer, plain


def peer():
    import torch

    if sys.version_info < (3, 12):  # it imports this from typing
        import typing

        import typing_extensions

        typing.override = typing_extensions.override
    script = constants(Path(sys.argv[1]) / "pretrain.py")
    checkout = os.environ.get("MEGATRON_LM", script["MEGATRON"])
    if not Path(checkout, "pretrain_gpt.py").is_file():
        raise ModuleNotFoundError(
            f"no Megatron-LM in {checkout}: name a checkout in the site file, or by MEGATRON_LM"
        )
    sys.path.insert(0, checkout)
    torch.cuda.get_device_capability = lambda device=None: (
        9,
        0,
    )  # nothing is trained here: its checks ask for a GPU
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(major=9, minor=0)
    import megatron.core
    import megatron.training.arguments

    return f"Megatron-LM {megatron.core.__version__}"


def constants(path):
    """The constants of a script, which is not run."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in body
        if isinstance(node, ast.Assign)
    }


def read(folder, record):
    import torch
    from megatron.core.datasets.utils import get_blend_from_list
    from megatron.core.optimizer import OptimizerConfig, get_standard_config_overrides
    from megatron.training import global_vars
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.training import get_optimizer_param_scheduler

    script = constants(folder / "pretrain.py")
    sys.argv = ["pretrain_gpt.py", *script["ARGUMENTS"]]
    os.environ |= {"WORLD_SIZE": str(record["nodes"] * record["per_node"])} | record["env"]
    args = parse_args()
    validate_args(args)
    if args.global_batch_size % (args.data_parallel_size * args.micro_batch_size):
        raise ValueError(f"{args.data_parallel_size} ranks do not divide the batch")

    global_vars._GLOBAL_ARGS = args
    optimizer = dummy_optimizer(args.lr)
    for group in optimizer.param_groups:
        group |= {"wd_mult": 1.0, "lr_mult": 1.0, "max_lr": args.lr, "min_lr": args.min_lr}
    scheduler = get_optimizer_param_scheduler(optimizer)
    curve = []
    for _ in range(args.train_iters):
        curve.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(args.global_batch_size)

    overrides = get_standard_config_overrides(OptimizerConfig(lr=args.lr, min_lr=args.min_lr))
    shapes = {
        "matrix": torch.nn.Parameter(torch.zeros(2, 2)),
        "vector": torch.nn.Parameter(torch.zeros(2)),
    }
    decayed = {
        name
        for name, parameter in shapes.items()
        if not any(
            key.matches(parameter, name) and group.get("wd_mult") == 0
            for key, group in overrides.items()
        )
    }
    prefixes, weights = get_blend_from_list(args.data_path)
    by_path = {f"{place}/train": name for name, place in record["stores"].items()}
    shares = dict.fromkeys(record["stores"], 0.0)
    for prefix, weight in zip(prefixes, weights, strict=True):
        shares[by_path[prefix]] = weight / sum(weights)
    within = args.reset_position_ids and args.reset_attention_mask
    facts = {
        "steps": args.train_iters,
        "lr": curve,
        "batch": args.global_batch_size * args.seq_length,
        "seq_len": args.seq_length,
        "shares": shares,
        "optimizer": [args.adam_beta1, args.adam_beta2, args.adam_eps, args.weight_decay],
        "decayed": "matrices"
        if decayed == {"matrix"} and args.optimizer == "adam"
        else f"{sorted(decayed)}",
        "clip": args.clip_grad,
        "loss": "targets of the whole batch"
        if args.calculate_per_token_loss
        else "the mean of means",
        "precision": precision(args),
        "attention": "within" if within else "across",
        "targets": "within" if args.eod_mask_loss else "across",
        "order": "shuffled",
        "seed": args.seed,
        "checkpoints": [args.save_interval, "all"],
        "tracking": ["wandb"] if args.wandb_project else [],
        "model": record["model"]
        if args.pretrained_checkpoint == f"{folder}/base"
        else args.pretrained_checkpoint,
    }
    return {"settings": {"MEGATRON": script["MEGATRON"]} | settings(args), "facts": facts}


def precision(args):
    if not args.bf16:
        return "fp16" if args.fp16 else "fp32"
    return "bf16" if args.accumulate_allreduce_grads_in_fp32 else "bf16, gradients summed in bf16"


def settings(args):
    """What was parsed, by the names of the options."""
    import argparse

    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    found = {}
    for action in parser._actions:
        if not hasattr(args, action.dest):
            continue
        value = plain(getattr(args, action.dest))
        if isinstance(action, argparse._StoreFalseAction):
            value = not value
        for option in action.option_strings:
            found[option] = value
    return found


if __name__ == "__main__":
    answer(peer, read)
