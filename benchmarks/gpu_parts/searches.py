"""Searches: the quickstart on shares of a GPU, and trials per hour of larger models."""

import json
import subprocess
import sys
from collections import Counter, deque
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from gpu_parts.settings import SHAPE, TINY, Finding

SIZES: dict[str, dict[str, Any]] = {
    "15m": {
        "hidden_size": 384,
        "num_hidden_layers": 8,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "intermediate_size": 1024,
        "max_position_embeddings": 512,
    },
    "135m": SHAPE,
}
RATE_SEQ_LEN, RATE_BATCH_TOKENS, RATE_STEPS = (128, 1024, 5) if TINY else (512, 16_384, 60)
RATE_TRIALS = 4 if TINY else 8
if TINY:
    SIZES["15m"] = SHAPE


def sweepcp(*arguments: object) -> None:
    """Run a command of sweepcp; its output goes to the log of the part, its error is raised."""
    command = [sys.executable, "-m", "sweepcp", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: deque[str] = deque(maxlen=5)
        for line in process.stderr:
            sys.stderr.write(line)
            lines.append(line.strip())
    if process.returncode:
        said = " ".join(lines)
        raise RuntimeError(f"status {process.returncode} of sweepcp {arguments[0]}: {said}")


def search(experiment: object, run: Path, *, share: float, trials: int) -> dict[str, Any]:
    """Search with a share of a GPU per trial, and return what its records say.

    In the rehearsal the trials are on the CPU: two at a time where they would share a GPU.
    """
    settings = [f"budget.trials={trials}", f"budget.gpus_per_trial={share}"]
    if TINY:
        settings[1:] = ["budget.gpus_per_trial=0", f"budget.concurrency={1 if share == 1 else 2}"]
        settings += [
            f"suites.{role}.{place}.items=16" for role in ("domain", "general") for place in (1, 2)
        ]
    options = [word for setting in settings for word in ("--set", setting)]
    sweepcp("search", experiment, "--out", run, *options)
    return read_run(run, on_gpu=share > 0 and not TINY)


def read_run(run: Path, *, on_gpu: bool) -> dict[str, Any]:
    """Summarise the trials of a run; raises if one is not done, or ran elsewhere."""
    files = sorted(run.glob("trials/*/trial.json"))
    trials = [json.loads(file.read_text()) for file in files]
    statuses = Counter(trial["status"] for trial in trials)
    if set(statuses) != {"done"}:
        reasons = {str(t["reason"]).strip().splitlines()[-1] for t in trials if t["reason"]}
        raise RuntimeError(f"{dict(statuses)}: {'; '.join(sorted(reasons))}")
    costs = [trial["cost"] for trial in trials]
    workers = sorted({cost["worker"] for cost in costs})
    if any((", CPU," in worker) == on_gpu for worker in workers):
        raise RuntimeError(f"trials ran on {'; '.join(workers)}")
    ends = [file.stat().st_mtime for file in files]
    used = [cost["train_seconds"] + cost["score_seconds"] for cost in costs]
    # From the start of the first trial, so that starting Ray and the base's scores do not count.
    lasted = max(ends) - min(end - seconds for end, seconds in zip(ends, used, strict=True))
    memory = [cost["memory_gib"] for cost in costs if cost.get("memory_gib")]
    estimates = [cost["estimated_memory_gib"] for cost in costs if cost.get("estimated_memory_gib")]
    return {
        "trials": len(trials),
        "trials_per_hour": 3600 * len(trials) / lasted,
        "at_a_time": sum(used) / lasted,
        "train_seconds": fmean(cost["train_seconds"] for cost in costs),
        "score_seconds": fmean(cost["score_seconds"] for cost in costs),
        "tokens_per_second": fmean(cost["tokens_per_second"] for cost in costs),
        "micro_batches": sorted({cost.get("micro_batch") or 0 for cost in costs}),
        "attention": sorted({cost.get("attention") or "unknown" for cost in costs}),
        "memory_gib": max(memory, default=None),
        "estimated_memory_gib": max(estimates, default=None),
        "workers": workers,
    }


def describe(found: dict[str, Any]) -> str:
    """Return a run's summary for the RESULT line."""
    memory = ""
    if found["memory_gib"]:
        estimate = found["estimated_memory_gib"]
        memory = f", peak {found['memory_gib']:.2f} GiB (estimated {estimate:.2f})"
    return (
        f"{found['trials_per_hour']:,.0f} trials/hour ({found['trials']} trials, "
        f"{found['at_a_time']:.1f} at a time); a trial trains {found['train_seconds']:.1f} s "
        f"({found['tokens_per_second']:,.0f} tokens/s) and is scored {found['score_seconds']:.1f} "
        f"s; micro batch {'/'.join(map(str, found['micro_batches']))}, attention "
        f"{'/'.join(found['attention'])}{memory}; workers: {'; '.join(found['workers'])}"
    )


def quickstart(work: Path, share: float, trials: int) -> Finding:
    """Search the quickstart; the parts share one base, pretrained by the first of them."""
    name = "quickstart" if share == 1 else f"quickstart-{share:g}"
    experiment: object = "quickstart"
    if TINY:
        content = shipped_quickstart()
        content["base"]["pretrain"]["tokens"] = 40_960
        content["budget"]["tokens"] = 10_240
        experiment = write_experiment(work / "quickstart.yaml", content)
        trials = 2
    found = search(experiment, work / name, share=share, trials=trials)
    return Finding(describe(found), found)


def rate(work: Path, size: str, share: float) -> Finding:
    """Search with a base of some size and random weights, for trials per hour."""
    from gpu_parts.models import write_model

    content = shipped_quickstart()
    content["base"] = {"path": str(write_model(work / size, SIZES[size])), "max_lr": 3e-4}
    content["training"] |= {"seq_len": RATE_SEQ_LEN, "batch_tokens": RATE_BATCH_TOKENS}
    content["budget"] |= {"tokens": RATE_STEPS * RATE_BATCH_TOKENS}
    experiment = write_experiment(work / f"{size}.yaml", content)
    trials = RATE_TRIALS if share < 1 else RATE_TRIALS // 2
    found = search(experiment, work / f"{size}-{share:g}", share=share, trials=trials)
    return Finding(describe(found), found)


def shipped_quickstart() -> dict[str, Any]:
    """Return the content of the shipped experiment."""
    from sweepcp.config.yaml_files import find_config_file

    path = find_config_file("quickstart", kind="experiments", key="EXPERIMENT")
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def write_experiment(path: Path, content: dict[str, Any]) -> Path:
    """Write an experiment file."""
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path
