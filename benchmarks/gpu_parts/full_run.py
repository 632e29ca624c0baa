"""The full run: a trial of the quickstart promoted and trained, and steps under ZeRO-3."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from gpu_parts.machine import device
from gpu_parts.measuring import describe, measure_steps
from gpu_parts.models import DIMENSIONS, write_model
from gpu_parts.searches import sweepcp
from gpu_parts.settings import MICRO_BATCH, PEAK, SEQ_LEN, SHAPE, TINY, Finding, Skipped
from gpu_parts.stores import make_recipe, write_stores

STEPS = 10 if TINY else 100


def promote(work: Path) -> Finding:
    """Promote the first trial of the part `quickstart` to this device."""
    run = work / "quickstart"
    if not (run / "trials" / "0000" / "trial.json").exists():
        raise Skipped("the part quickstart has left no trial")
    target = {
        "name": "quickstart-1gpu",
        "model": {"run_base": True},
        "tokens": STEPS * 1024,
        "batch_tokens": 1024,
        "seq_len": 128,
        "hardware": hardware() | {"peak_tflops": PEAK},
        "compute": {"micro_batch": 4 if TINY else 8, "precision": "fp32" if TINY else "bf16"},
        "checkpoints": {"every": STEPS // 2},
        "watch": {"every": STEPS // 2},
    }
    (work / "target.yaml").write_text(yaml.safe_dump(target, sort_keys=False))
    bundle = work / "bundle"
    sweepcp(*("promote", run, "--trial", "0000", "--target", work / "target.yaml", "--out", bundle))
    content = json.loads((bundle / "bundle.json").read_text())
    numbers = {"steps": STEPS, "memory": content.get("memory")}
    return Finding(f"trial 0000 of the quickstart, {STEPS} steps on one {device().type}", numbers)


def hardware() -> dict[str, Any]:
    """Return the hardware of a target: this device."""
    return {"device": device().type, "nodes": 1, "per_node": 1, "memory_gib": 80}


def train(work: Path) -> Finding:
    """Train the promoted bundle under ZeRO-3, and score it."""
    if not (work / "bundle" / "bundle.json").exists():
        raise Skipped("the part promote has left no bundle")
    sweepcp("train", work / "bundle")
    run = work / "bundle" / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    report = json.loads((run / "scorecard.json").read_text())["report"]
    ending = json.loads((run / "ended.json").read_text())
    speed = median(row["tokens_per_second"] for row in rows[len(rows) // 2 :])
    numbers = {
        "steps": len(rows),
        "first_loss": rows[0]["loss"],
        "last_loss": rows[-1]["loss"],
        "tokens_per_second": speed,
        "memory_gib": ending["memory_gib"],
        "memory_ratio": ending["memory_ratio"],
        "domain": report["domain"],
        "general": report["general"],
    }
    memory = ""
    if ending["memory_ratio"]:
        memory = f", peak {ending['memory_gib']:.2f} GiB ({ending['memory_ratio']:.2f} × estimate)"
    text = (
        f"{len(rows)} steps, loss {rows[0]['loss']:.3f} to {rows[-1]['loss']:.3f}, {speed:,.0f} "
        f"tokens/s{memory}; reporting half: domain {report['domain']:+.2f} %, general "
        f"{report['general']:+.2f} %"
    )
    return Finding(text, numbers)


def zero_steps(work: Path) -> Finding:
    """Measure the steps of a full run of the model of 135 M parameters, in one process."""
    from sweepcp.config.target import Target
    from sweepcp.data.stream import MixtureStream
    from sweepcp.models.attention import attention_of
    from sweepcp.models.files import read_shards
    from sweepcp.promote.estimates import estimate_memory
    from sweepcp.training.deepspeed_config import zero_config
    from sweepcp.training.loop import run_training
    from sweepcp.training.zero_engine import ZeroEngine, join_process_group

    recipe = make_recipe()
    model = write_model(work / "135m", SHAPE)
    content = {
        "name": "steps",
        "model": {"path": str(model), "max_lr": 3e-3},
        "tokens": recipe.tokens,
        "batch_tokens": recipe.batch_tokens,
        "seq_len": SEQ_LEN,
        "hardware": hardware(),
        "compute": {"micro_batch": MICRO_BATCH, "precision": "fp32" if TINY else "bf16"},
        "checkpoints": {"every": 1000},
        "watch": {"every": 1000},
    }
    target = Target.model_validate_json(json.dumps(content))
    group = join_process_group(device().type)
    engine = ZeroEngine(
        read_shards(model),
        recipe,
        zero_config(recipe, target, world_size=1),
        group,
        attention=target.compute.attention,
        recompute=False,
    )
    rows = run_training(engine, recipe, MixtureStream(recipe, write_stores(work)), max_lr=3e-3)
    found = measure_steps(lambda: next(rows).loss)
    estimate = estimate_memory(DIMENSIONS, target, isolated=True).total / 2**30
    measured = found["memory_gib"]
    found |= {
        "attention": attention_of(engine.model),
        "estimated_memory_gib": estimate,
        "memory_ratio": None if measured is None else measured / estimate,
    }
    return Finding(f"{found['attention']}: {describe(found)}", found)
