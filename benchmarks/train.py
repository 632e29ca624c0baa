"""The full run's steps against transformers' Trainer, and its memory when it loads and exports.

python benchmarks/train.py against [--size cpu|135m|1b]   tokens/s of both, step by step in turn
python benchmarks/train.py memory                         peak of each of two ranks; status 1 if
                                                          it is above the bound

Both sides of `against` have the same model with random weights, DeepSpeed configuration, sdpa
attention, batches, positions and targets, in the same processes. --size 135m and 1b need a GPU; on
CPUs two processes of one thread each train the small model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_parts.stores import write_record

from sweepcp.config.target import load_target
from sweepcp.data.stream import IGNORED, MixtureStream
from sweepcp.data.token_store import write_index
from sweepcp.promote.bundle import Bundle, load_bundle
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.util.files import write_json

WARMUP_STEPS, TIMED_STEPS = 4, 40
MEMORY_ALLOWANCE = 64 << 20
"""Bytes that are neither weights nor shards: communication, Python objects."""
PEAK_TFLOPS = 989.0
"""Dense bf16 of an H100 SXM, from its data sheet."""
ROLES = {"code": "domain", "docs": "general"}


@dataclass(frozen=True)
class Size:
    """What is trained: a Llama, the batch and the device."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int
    seq_len: int
    sequences: int
    micro_batch: int
    device: str


SIZES = {
    "cpu": Size(256, 4, 4, 683, 8192, 256, 8, 2, "cpu"),
    "135m": Size(576, 30, 9, 1536, 49_152, 2048, 64, 16, "cuda"),
    "1b": Size(2048, 22, 16, 5632, 32_000, 2048, 32, 8, "cuda"),
}
MEMORY_SIZE = Size(768, 24, 12, 2048, 32_000, 256, 8, 2, "cpu")


def llama_config(size: Size) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.inner,
        vocab_size=size.vocabulary,
        max_position_embeddings=size.seq_len,
        bos_token_id=1,
        eos_token_id=2,
    )


def write_store(folder: Path, size: Size, tokenizer: str, rng: np.random.Generator) -> None:
    """Write a token store of random documents, some shorter and some longer than a sequence."""
    folder.mkdir()
    lengths = rng.integers(20, 2 * size.seq_len, 400).astype(np.int32)
    tokens = rng.integers(3, size.vocabulary, int(lengths.sum())).astype("<u2")
    tokens.tofile(folder / "train.bin")
    with (folder / "train.idx").open("wb") as index:
        write_index(index, np.dtype("<u2"), len(lengths), lambda: [lengths])
    (folder / "held_out.jsonl").write_text("")
    # Promoting asks for held-out documents, which these steps do not read.
    write_record(
        folder, tokens=len(tokens), documents=len(lengths), held_out=8, tokenizer=tokenizer
    )


def write_bundle(folder: Path, size: Size, processes: int) -> Path:
    """Write the model, the token stores and the bundle."""
    from transformers import LlamaForCausalLM

    from sweepcp.config.base_model import BaseSpec
    from sweepcp.models.base import tokenizer_id
    from sweepcp.models.loading import byte_tokenizer

    LlamaForCausalLM(llama_config(size)).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    tokenizer = tokenizer_id(BaseSpec(path=str(folder / "model"), max_lr=1.0))
    rng = np.random.default_rng(0)
    for name in ROLES:
        write_store(folder / name, size, tokenizer, rng)
    portions = [
        {"source": name, "role": role, "language": "en", "share": 0.5}
        for name, role in ROLES.items()
    ]
    recipe = {"published": "a benchmark", "lr_fraction": 0.1, "mixture": {"portions": portions}}
    batch_tokens = size.sequences * size.seq_len
    target = {
        "name": "benchmark",
        "model": {"path": str(folder / "model"), "max_lr": 1e-3},
        "corpora": {name: {"store": str(folder / name), "max_epochs": 1e9} for name in ROLES},
        "tokens": (WARMUP_STEPS + TIMED_STEPS) * batch_tokens,
        "batch_tokens": batch_tokens,
        "seq_len": size.seq_len,
        "hardware": {
            "device": size.device,
            "nodes": 1,
            "per_node": processes,
            "peak_tflops": PEAK_TFLOPS,
        },
        "compute": {
            "micro_batch": size.micro_batch,
            "precision": "bf16" if size.device == "cuda" else "fp32",
        },
        "checkpoints": {"every": 10**6},
        "watch": {"every": 10**6},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    (folder / "target.yaml").write_text(json.dumps(target))
    loaded_target, file = load_target(str(folder / "target.yaml"))
    candidate = candidate_from_publication(str(folder / "recipe.yaml"))
    promote(candidate, loaded_target, file=file, out=folder / "bundle")
    return folder / "bundle"


def sweepcp_steps(folder: Path) -> Iterator[Any]:
    """The loop of `sweepcp train` with its log; yields after each step."""
    from sweepcp.full_run.preflight import stores_of_bundle
    from sweepcp.full_run.run_log import RunLog
    from sweepcp.models.files import read_shards
    from sweepcp.training.loop import run_training
    from sweepcp.training.zero_engine import ZeroEngine, join_process_group

    loaded = load_bundle(folder)
    bundle = loaded.bundle
    group = join_process_group(bundle.target.hardware.device)
    assert loaded.ds_config is not None
    engine = ZeroEngine(
        read_shards(Path(str(bundle.model.path))),
        bundle.recipe,
        loaded.ds_config,
        group,
        attention="sdpa",
        recompute=False,
    )
    stream = MixtureStream(bundle.recipe, stores_of_bundle(bundle))
    out = folder / "run"
    out.mkdir(exist_ok=True)
    log = RunLog(loaded, out, group, steps_done=0)
    for metrics in run_training(engine, bundle.recipe, stream, max_lr=bundle.model.max_lr):
        log.write_step(metrics)
        yield metrics


def trainer_arguments(bundle: Bundle, ds_config: dict[str, Any], out: Path) -> Any:
    """The bundle's settings as arguments of transformers' Trainer."""
    from transformers import TrainingArguments

    recipe = bundle.recipe
    on_cpu = bundle.target.hardware.device == "cpu"
    own_keys = ("data_types", "zero_force_ds_cpu_optimizer")
    config = {key: value for key, value in ds_config.items() if key not in own_keys}
    return TrainingArguments(
        output_dir=str(out),
        deepspeed=config | {"zero_allow_untested_optimizer": True},
        per_device_train_batch_size=bundle.target.compute.micro_batch,
        gradient_accumulation_steps=int(config["gradient_accumulation_steps"]),
        max_steps=recipe.steps - 1,
        learning_rate=recipe.lr_fraction * bundle.model.max_lr,
        lr_scheduler_type="cosine",
        optim="adamw_torch_fused",
        adam_beta1=recipe.betas[0],
        adam_beta2=recipe.betas[1],
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        bf16=not on_cpu,
        use_cpu=on_cpu,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )


def trainer_items(bundle: Bundle) -> list[dict[str, Any]]:
    """The sequences of all steps as the Trainer's data set."""
    import torch

    from sweepcp.full_run.preflight import stores_of_bundle

    stream = MixtureStream(bundle.recipe, stores_of_bundle(bundle))
    items = []
    for step in range(1, bundle.recipe.steps + 1):
        batch = stream.batch(step)
        assert (batch.targets == IGNORED).any()
        for ids, targets, positions in zip(
            batch.input_ids, batch.targets, batch.position_ids, strict=True
        ):
            labels = torch.tensor(targets)
            item = {
                "input_ids": torch.tensor(ids),
                "position_ids": torch.tensor(positions),
                "labels": labels,
                "shift_labels": labels,
            }
            items.append(item)
    return items


def time_both(folder: Path) -> list[tuple[float, float]]:
    """Seconds of a step of sweepcp, and of the Trainer on the same sequences, step by step in turn.

    The Trainer's step is everything between two of sweepcp: its batches, callbacks and optimizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback

    loaded = load_bundle(folder)
    assert loaded.ds_config is not None
    steps = sweepcp_steps(folder)
    next(steps)
    arguments = trainer_arguments(loaded.bundle, loaded.ds_config, folder / "trainer")
    items = trainer_items(loaded.bundle)
    seconds: list[tuple[float, float]] = []

    class TakeTurns(TrainerCallback):
        left = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            entered = time.perf_counter()
            next(steps)
            now = time.perf_counter()
            seconds.append((now - entered, entered - self.left))
            self.left = time.perf_counter()

    model = AutoModelForCausalLM.from_pretrained(
        str(loaded.bundle.model.path), attn_implementation="sdpa", dtype=torch.float32
    )
    model.config.use_cache = False
    Trainer(model=model, args=arguments, train_dataset=items, callbacks=[TakeTurns()]).train()
    return seconds[WARMUP_STEPS - 1 :]


def against(size_name: str) -> None:
    """Compare interleaved pairs of steps; ratios above 1 mean that sweepcp is faster."""
    size = SIZES[size_name]
    processes = 2 if size.device == "cpu" else 1
    with tempfile.TemporaryDirectory() as folder:
        path = write_bundle(Path(folder), size, processes)
        bundle = load_bundle(path).bundle
        seconds = run_workers("time_both", path, processes)
    ratios = sorted(trainer / own for own, trainer in seconds)
    speed = bundle.recipe.batch_tokens / statistics.median(own for own, _ in seconds)
    trainer_speed = bundle.recipe.batch_tokens / statistics.median(other for _, other in seconds)
    flops = bundle.model.shape.flops_per_token(size.seq_len) * speed
    mfu = f" (MFU {flops / (PEAK_TFLOPS * 1e12):.1%} of {PEAK_TFLOPS:.0f} TFLOP/s)"
    quarter = len(ratios) // 4
    print(
        f"{size_name}, {bundle.model.parameters:,} parameters, {processes} processes: "
        f"sweepcp {speed:,.0f} tokens/s{mfu if size.device == 'cuda' else ''}, "
        f"Trainer {trainer_speed:,.0f}; ratio of {len(ratios)} pairs of steps: "
        f"median {statistics.median(ratios):.3f}, "
        f"middle half {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
    )


def run_workers(task: str, path: Path, processes: int) -> Any:
    """Run a task of `WORKER_TASKS` in a group of processes; returns the first rank's result."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--nproc-per-node", str(processes), __file__, "worker", task, str(path)]
    threads = "1" if processes > 1 else os.environ.get("OMP_NUM_THREADS", "4")
    env = os.environ | {"OMP_NUM_THREADS": threads}
    if processes > 1:
        env |= {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-8000:])
    return json.loads((path / "answer").read_text())


def peak_memory() -> int:
    """The most resident bytes since `reset_peak_memory`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no VmHWM")


def reset_peak_memory() -> int:
    """Forget the peak, and return the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_memory()


def load_and_export(model: Path) -> None:
    """Measure the growth of this rank's memory while it loads, and while it exports."""
    import torch

    from sweepcp.config.recipe import Mixture, Recipe, SourceShare
    from sweepcp.config.target import Target
    from sweepcp.models.files import read_shards
    from sweepcp.training.deepspeed_config import zero_config
    from sweepcp.training.zero_engine import ZeroEngine, join_process_group

    group = join_process_group("cpu")

    class MeasuredEngine(ZeroEngine):
        def _load_base(self) -> None:
            super()._load_base()
            self.peak_when_loaded = peak_memory()

    mixture = Mixture(portions=(SourceShare(source="a", role="domain", language="en", share=1.0),))
    recipe = Recipe(seq_len=8, batch_tokens=16, tokens=16, lr_fraction=0.1, mixture=mixture)
    content = {
        "name": "memory",
        "model": {"path": str(model), "max_lr": 1.0},
        "tokens": 16,
        "batch_tokens": 16,
        "seq_len": 8,
        "hardware": {"device": "cpu", "nodes": 1, "per_node": 2},
        "compute": {"precision": "fp32"},
        "checkpoints": {"every": 1},
        "watch": {"every": 1},
    }
    target = Target.model_validate_json(json.dumps(content))
    config = zero_config(recipe, target, world_size=group.world_size)
    shards = read_shards(model)
    group.barrier()
    before = reset_peak_memory()
    engine = MeasuredEngine(shards, recipe, config, group, attention="sdpa", recompute=False)
    loading = engine.peak_when_loaded - before
    torch.zeros(1)
    before = reset_peak_memory()
    engine.save_weights(model.parent / "out")
    result = {"loading": loading, "exporting": peak_memory() - before}
    write_json(model / f"rank-{group.rank}.memory", result)


def load_with_transformers(model: Path) -> None:
    """Measure the growth of this rank's memory in `from_pretrained` under ZeRO-3."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from sweepcp.training.zero_engine import join_process_group

    group = join_process_group("cpu")
    config = {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
    }
    # transformers keeps a weak reference to it: ZeRO-3 is on as long as it exists.
    ds_config = HfDeepSpeedConfig(config)
    before = reset_peak_memory()
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    write_json(model / f"rank-{group.rank}.memory", {"loading": peak_memory() - before})
    del ds_config


def memory() -> None:
    """Measure a model of many files on two ranks; exit with 1 if sweepcp exceeds the bound."""
    from transformers import LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        LlamaForCausalLM(llama_config(MEMORY_SIZE)).save_pretrained(model, max_shard_size="32MB")
        sizes = [file.stat().st_size for file in model.glob("*.safetensors")]
        bound = sum(sizes) // 2 + max(sizes) + MEMORY_ALLOWANCE
        print(
            f"model of {sum(sizes) >> 20} MiB in {len(sizes)} files of at most "
            f"{max(sizes) >> 20} MiB, two ranks; bound: half + a file + "
            f"{MEMORY_ALLOWANCE >> 20} MiB = {bound >> 20} MiB"
        )
        exceeded = False
        for task, name in (
            ("load_and_export", "sweepcp"),
            ("load_with_transformers", "from_pretrained under ZeRO-3"),
        ):
            run_workers(task, model, 2)
            for rank in (0, 1):
                peaks = json.loads((model / f"rank-{rank}.memory").read_text())
                shown = ", ".join(f"{key} {value >> 20} MiB" for key, value in peaks.items())
                print(f"{name}, rank {rank}: {shown}", flush=True)
                exceeded |= name == "sweepcp" and max(peaks.values()) > bound
    sys.exit(int(exceeded))


WORKER_TASKS = {
    "time_both": time_both,
    "load_and_export": load_and_export,
    "load_with_transformers": load_with_transformers,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["against", "memory", "worker"])
    parser.add_argument("worker", nargs="*")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    arguments = parser.parse_args()
    if arguments.what == "against":
        against(arguments.size)
    elif arguments.what == "memory":
        memory()
    else:
        task, path = arguments.worker
        result = WORKER_TASKS[task](Path(path))
        if os.environ["RANK"] == "0":
            (Path(path) / "answer").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
