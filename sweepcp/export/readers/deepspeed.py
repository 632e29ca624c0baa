"""`sweepcp train`: the bundle by sweepcp, and its configuration of DeepSpeed by DeepSpeed."""

import os

from common import answer, read_deepspeed, stream_facts

os.environ["DS_ACCELERATOR"] = "cpu"


def peer():
    import deepspeed

    import sweepcp

    return f"sweepcp {sweepcp.__version__}, deepspeed {deepspeed.__version__}"


def read(folder, record):
    from pathlib import Path

    import torch

    from sweepcp.engine import adamw
    from sweepcp.promote.bundle import open_bundle

    opened = open_bundle(Path(record["bundle"]))
    if opened.id != record["bundle_id"]:
        raise ValueError(f"{record['bundle']} is not the bundle that was exported")
    bundle, recipe = opened.bundle, opened.bundle.recipe
    settings, batch = read_deepspeed(
        Path(record["bundle"]) / "ds_config.json", record["nodes"] * record["per_node"]
    )
    tiny = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.RMSNorm(4), torch.nn.Linear(4, 4))
    decayed, plain = adamw(tiny, recipe).param_groups
    matrices = all(p.ndim >= 2 for p in decayed["params"]) and all(
        p.ndim < 2 for p in plain["params"]
    )
    facts = stream_facts(recipe.model_dump(mode="json")) | {
        "steps": recipe.steps,
        "lr": [recipe.lr(step, bundle.model.max_lr) for step in range(1, recipe.steps + 1)],
        "batch": batch["sequences"] * recipe.seq_len,
        "optimizer": [*decayed["betas"], decayed["eps"], decayed["weight_decay"]],
        "decayed": "matrices" if matrices and plain["weight_decay"] == 0 else "something else",
        "clip": batch["clip"],
        "loss": "targets of the whole batch",
        "precision": batch["precision"],
        "order": "the stream",
        "seed": recipe.seed,
        "model": bundle.model.path or bundle.model.hub,
        "checkpoints": [bundle.target.checkpoints.every, bundle.target.checkpoints.keep],
        "tracking": sorted(bundle.target.tracking),
    }
    return {"settings": settings, "facts": facts}


if __name__ == "__main__":
    answer(peer, read)
