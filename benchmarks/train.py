"""The full run's steps against transformers' Trainer, and the memory of loading and exporting in parts.

python benchmarks/train.py against [--size cpu|135m|1b]    tokens/s, in turn, step by step, in the same processes
python benchmarks/train.py memory             peak of each of two ranks, status 1 if above the bound

Both sides of `against` have the same model with random weights, DeepSpeed configuration, batches, positions and
targets. With --size 135m and 1b they need a GPU; on CPUs two processes of one thread each run the small model.
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

from sweepcp.config.target import load_target
from sweepcp.data.stream import IGNORED, MixtureStream
from sweepcp.data.token_store import TokenStore, write_index
from sweepcp.promote.bundle import load_bundle
from sweepcp.promote.candidate import candidate_from_publication
from sweepcp.promote.translate import promote
from sweepcp.util.files import write_json

WARM, TIMED = 4, 40
"""Steps before the clock, and under it."""
CONSTANT = 64 << 20
"""Bytes of memory that belong to neither weights nor shards: communication, Python objects."""


@dataclass(frozen=True)
class Size:
    """What is trained: a Llama, the batch, the machine."""

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


def config_of(size: Size) -> Any:
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


def write_inputs(folder: Path, size: Size, processes: int) -> Path:
    """Model, token stores and the bundle."""
    from transformers import LlamaForCausalLM

    from sweepcp.models.loading import byte_tokenizer

    LlamaForCausalLM(config_of(size)).save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    for name in ("code", "docs"):
        lengths = rng.integers(20, 2 * size.seq_len, 400).astype(np.int32)
        (folder / name).mkdir()
        rng.integers(3, size.vocabulary, int(lengths.sum())).astype("<u2").tofile(
            folder / name / "train.bin"
        )
        with (folder / name / "train.idx").open("wb") as index:
            write_index(index, np.dtype("<u2"), len(lengths), lambda lengths=lengths: [lengths])  # type: ignore[misc]
        (folder / name / "held_out.jsonl").write_text("")
    from sweepcp.config.base_model import BaseSpec
    from sweepcp.models.base import tokenizer_id

    tokenizer = tokenizer_id(BaseSpec(path=str(folder / "model"), max_lr=1.0))
    for name in ("code", "docs"):
        tokens = (folder / name / "train.bin").stat().st_size // 2
        meta = {
            "tokenizer": tokenizer,
            "train": {"tokens": tokens},
            "held_out": {"documents": 8},
        }  # none is read here
        write_json(folder / name / "store.json", meta)
    portions = [
        {"source": name, "role": role, "language": "en", "share": 0.5}
        for name, role in (("code", "domain"), ("docs", "general"))
    ]
    recipe = {"published": "a benchmark", "lr_fraction": 0.1, "mixture": {"portions": portions}}
    steps = WARM + TIMED
    target = {
        "name": "benchmark",
        "model": {"path": str(folder / "model"), "max_lr": 1e-3},
        "corpora": {
            name: {"store": str(folder / name), "max_epochs": 1e9} for name in ("code", "docs")
        },
        "tokens": steps * size.sequences * size.seq_len,
        "batch_tokens": size.sequences * size.seq_len,
        "seq_len": size.seq_len,
        "hardware": {
            "device": size.device,
            "nodes": 1,
            "per_node": processes,
            "peak_tflops": 989.0,
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
    candidate = candidate_from_publication(str(folder / "recipe.yaml"))
    loaded_target, file = load_target(str(folder / "target.yaml"))
    promote(candidate, loaded_target, file=file, out=folder / "bundle")
    return folder / "bundle"


def ours(bundle: Path) -> Iterator[Any]:
    """The loop of `sweepcp train` with its log, a row a step."""
    from sweepcp.full_run.run_log import RunLog
    from sweepcp.models.files import read_shards
    from sweepcp.training.loop import run_training
    from sweepcp.training.zero_engine import ZeroEngine, join_process_group

    opened = load_bundle(bundle)
    found = opened.bundle
    ranks = join_process_group(found.target.hardware.device)
    shards = read_shards(Path(str(found.model.path)), bundle, "model")
    engine = ZeroEngine(shards, found.recipe, opened.ds_config, "sdpa", False, ranks)
    stream = MixtureStream(
        found.recipe, [TokenStore(Path(str(c.store)), c.name) for c in found.corpora]
    )
    out = bundle / "run"
    out.mkdir(exist_ok=True)
    log = RunLog(opened, out, ranks, 0, lambda text: None)
    for row in run_training(engine, found.recipe, found.model.max_lr, stream):
        log.row(row)
        yield row


def both(bundle: Path) -> list[tuple[float, float]]:
    """Seconds of a step of ours, and of one of transformers' Trainer on the same sequences, in turn, step by step.

    The Trainer's step is everything between two of ours: its batches, callbacks and optimizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    opened = load_bundle(bundle)
    found, recipe = opened.bundle, opened.bundle.recipe
    rows = ours(bundle)
    next(rows)
    config = {
        k: v
        for k, v in opened.ds_config.items()
        if k not in ("data_types", "zero_force_ds_cpu_optimizer")
    }
    on_cpu = found.target.hardware.device == "cpu"
    arguments = TrainingArguments(
        output_dir=str(bundle / "trainer"),
        deepspeed=config | {"zero_allow_untested_optimizer": True},
        per_device_train_batch_size=found.target.compute.micro_batch,
        gradient_accumulation_steps=int(config["gradient_accumulation_steps"]),
        max_steps=recipe.steps - 1,
        learning_rate=recipe.lr_fraction * found.model.max_lr,
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
    stream = MixtureStream(recipe, [TokenStore(Path(str(c.store)), c.name) for c in found.corpora])
    items = []
    for step in range(1, recipe.steps + 1):
        batch = stream.batch(step)
        assert (batch.targets == IGNORED).any()
        for ids, targets, places in zip(
            batch.input_ids, batch.targets, batch.position_ids, strict=True
        ):
            labels = torch.tensor(targets)
            columns = {
                "input_ids": torch.tensor(ids),
                "position_ids": torch.tensor(places),
                "labels": labels,
            }
            items.append(columns | {"shift_labels": labels})
    seconds: list[tuple[float, float]] = []

    class Turns(TrainerCallback):
        left = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            entered = time.perf_counter()
            next(rows)
            now = time.perf_counter()
            seconds.append((now - entered, entered - self.left))
            self.left = time.perf_counter()

    model = AutoModelForCausalLM.from_pretrained(
        found.model.path, attn_implementation="sdpa", dtype=torch.float32
    )
    model.config.use_cache = False
    Trainer(model=model, args=arguments, train_dataset=items, callbacks=[Turns()]).train()
    return seconds[WARM - 1 :]


def against(size: str) -> None:
    """Interleaved pairs of steps; ratios above 1 are ours being faster."""
    shape = SIZES[size]
    processes = 2 if shape.device == "cpu" else 1
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_inputs(Path(folder), shape, processes)
        found = load_bundle(bundle).bundle
        seconds = worker("both", bundle, processes)
    ratios = sorted(trainer / own for own, trainer in seconds)
    speed = found.recipe.batch_tokens / statistics.median(own for own, _ in seconds)
    other = found.recipe.batch_tokens / statistics.median(trainer for _, trainer in seconds)
    flops = found.model.shape.flops_per_token(shape.seq_len) * speed
    used = f" (MFU {flops / 989e12:.1%} of 989 TFLOP/s)" if shape.device == "cuda" else ""
    quarter = len(ratios) // 4
    print(
        f"{size}, {found.model.parameters:,} parameters, {processes} processes: sweepcp {speed:,.0f} tokens/s{used}, "
        f"Trainer {other:,.0f}; ratio of {len(ratios)} pairs of steps: median {statistics.median(ratios):.3f}, "
        f"middle half {ratios[quarter]:.3f} to {ratios[-1 - quarter]:.3f}"
    )


def worker(kind: str, path: Path, processes: int) -> Any:
    """The answer of a group of processes: what its first rank writes."""
    answer = path / "answer"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(processes),
        __file__,
    ]
    env = os.environ | {
        "OMP_NUM_THREADS": "1" if processes > 1 else os.environ.get("OMP_NUM_THREADS", "4")
    }
    if SIZES["cpu"].device == "cpu" and processes > 1:
        env |= {"DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, "worker", kind, str(path)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stderr[-8000:])
    return json.loads(answer.read_text())


def peak_of(path: str = "/proc/self/status") -> int:
    """Most resident bytes since `reset_peak`."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


def reset_peak() -> int:
    """Forget the peak; the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_of()


def load_and_export(model: Path) -> None:
    """Growth of this rank's memory while loading, and while exporting; written beside the model by rank."""
    import torch

    from sweepcp.config.recipe import Mixture, Recipe, SourceShare
    from sweepcp.config.target import Target
    from sweepcp.models.files import read_shards
    from sweepcp.training.deepspeed_config import zero_config
    from sweepcp.training.zero_engine import ZeroEngine, join_process_group

    ranks = join_process_group("cpu")

    class Measured(ZeroEngine):
        def _load_base(self) -> None:
            super()._load_base()
            self.loaded = peak_of()

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
    config = zero_config(recipe, Target.model_validate_json(json.dumps(content)), ranks.ranks)
    shards = read_shards(model, model, "model")
    ranks.wait()
    before = reset_peak()
    engine = Measured(shards, recipe, config, "sdpa", False, ranks)
    loading = engine.loaded - before
    torch.zeros(1)
    before = reset_peak()
    engine.save_weights(model.parent / "out")
    write_json(
        model / f"rank-{ranks.rank}.memory", {"loading": loading, "exporting": peak_of() - before}
    )


def peer_load(model: Path) -> None:
    """Growth of this rank's memory in `from_pretrained` under ZeRO-3."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    from sweepcp.training.zero_engine import join_process_group

    ranks = join_process_group("cpu")
    config = {
        "train_batch_size": 2,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
    }
    kept = HfDeepSpeedConfig(config)
    before = reset_peak()
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    write_json(model / f"rank-{ranks.rank}.memory", {"loading": peak_of() - before})
    del kept


def memory() -> None:
    """A model of many shards on two ranks."""
    from transformers import LlamaForCausalLM

    shape = Size(768, 24, 12, 2048, 32_000, 256, 8, 2, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        LlamaForCausalLM(config_of(shape)).save_pretrained(model, max_shard_size="32MB")
        files = sorted(model.glob("*.safetensors"))
        whole, shard = sum(f.stat().st_size for f in files), max(f.stat().st_size for f in files)
        bound = whole // 2 + shard + CONSTANT
        print(
            f"model of {whole >> 20} MiB in {len(files)} shards of at most {shard >> 20} MiB, two ranks; "
            f"bound: half + a shard + {CONSTANT >> 20} MiB = {bound >> 20} MiB"
        )
        failed = False
        for kind, name in (
            ("load_and_export", "sweepcp"),
            ("peer_load", "from_pretrained under ZeRO-3"),
        ):
            worker(kind, model, 2)
            for rank in (0, 1):
                found = json.loads((model / f"rank-{rank}.memory").read_text())
                print(
                    f"{name}, rank {rank}: "
                    + ", ".join(f"{k} {v >> 20} MiB" for k, v in found.items()),
                    flush=True,
                )
                failed |= name == "sweepcp" and max(found.values()) > bound
        sys.exit(int(failed))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["against", "memory", "worker"])
    parser.add_argument("worker", nargs="*")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    given = parser.parse_args()
    if given.what == "against":
        against(given.size)
    elif given.what == "memory":
        memory()
    else:
        kind, path = given.worker
        result = {"both": both, "load_and_export": load_and_export, "peer_load": peer_load}[kind](
            Path(path)
        )
        if os.environ["RANK"] == "0":
            (Path(path) / "answer").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
