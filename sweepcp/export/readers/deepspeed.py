"""`sweepcp train`: the bundle by sweepcp, DeepSpeed's configuration by DeepSpeed."""

import os
from pathlib import Path
from typing import Any

from common import loss_averaging, read_deepspeed, run_reader, stream_facts

os.environ["DS_ACCELERATOR"] = "cpu"


def load_peer() -> str:
    """Import sweepcp and DeepSpeed, and return their versions."""
    import deepspeed

    import sweepcp

    return f"sweepcp {sweepcp.__version__}, deepspeed {deepspeed.__version__}"


def read_folder(_folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Read the bundle that `export.json` names; the trainer has no files in the folder."""
    from sweepcp.promote.bundle import load_bundle

    loaded = load_bundle(Path(record["bundle"]))
    if loaded.id != record["bundle_id"]:
        raise ValueError(f"{record['bundle']} is not the exported bundle")
    bundle, recipe = loaded.bundle, loaded.bundle.recipe
    max_lr, checkpoints = bundle.model.max_lr, bundle.target.checkpoints
    world_size = record["nodes"] * record["per_node"]
    settings, deepspeed = read_deepspeed(loaded.path / "ds_config.json", world_size)
    facts = stream_facts(recipe.model_dump(mode="json")) | {
        "steps": recipe.steps,
        "lr": [recipe.lr(step, max_lr=max_lr) for step in range(1, recipe.steps + 1)],
        "batch": deepspeed["sequences"] * recipe.seq_len,
        **optimizer_facts(recipe),
        "clip": deepspeed["clip"],
        "dropout": 0.0,
        "loss": loss_averaging(over_batch=True),
        "precision": deepspeed["precision"],
        "order": "stream order",
        "seed": recipe.seed,
        "model": bundle.model.path or bundle.model.hub,
        "checkpoints": [checkpoints.every, checkpoints.keep],
        "tracking": sorted(bundle.target.tracking),
    }
    return {"settings": settings, "facts": facts}


def optimizer_facts(recipe: Any) -> dict[str, Any]:
    """Return the facts of the optimizer that sweepcp builds for a small model."""
    import torch

    from sweepcp.training.engine import build_adamw

    model = torch.nn.Sequential(
        torch.nn.Embedding(4, 4), torch.nn.RMSNorm(4), torch.nn.Linear(4, 4)
    )
    decayed, undecayed = build_adamw(model, recipe).param_groups
    only_matrices = all(p.ndim >= 2 for p in decayed["params"])
    all_matrices = all(p.ndim < 2 for p in undecayed["params"]) and undecayed["weight_decay"] == 0
    return {
        "optimizer": [*decayed["betas"], decayed["eps"], decayed["weight_decay"]],
        "decayed": "matrices" if only_matrices and all_matrices else "other parameters",
    }


if __name__ == "__main__":
    run_reader(load_peer, read_folder)
