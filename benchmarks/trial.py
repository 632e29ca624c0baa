"""What a trial costs beside a bare PyTorch loop, and what isolating documents costs on a CPU.

python benchmarks/trial.py [--json FILE] [--markdown FILE] [--pairs 9] [--threads 1]

`steps` takes turns: a short training of a trial (its stream, engine and loop), and a loop that is
written in PyTorch on the same batches, read in advance. `memory` measures the growth of each one's
resident memory in a process of its own. `isolation` takes forward and backward passes over rows of
2,048 tokens: documents isolated as `auto` does, against causal attention over whole rows.
The exit status is 1 if a ratio is above its limit.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_parts.stores import write_record
from measuring import Goal, add_output_options, describe_machine, finish, markdown_table
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from sweepcp.config.attention import expected_attention
from sweepcp.config.recipe import Mixture, Recipe, SourceShare
from sweepcp.data.stream import IGNORED, Batch, MixtureStream, restarting_positions
from sweepcp.data.token_store import TokenStore, write_index
from sweepcp.training.batches import to_micro_batch
from sweepcp.training.engine import PlainEngine, build_adamw
from sweepcp.training.loop import run_training
from sweepcp.training.loss import token_losses

CPU = torch.device("cpu")
MAX_LR = 3e-3
LIMITS = {"steps": 1.03, "memory": 1.3, "isolation": 1.1}
ROW_TOKENS = 2048
MEAN_DOCUMENTS = (100, 500, 100_000)
"""Tokens per document on average in `isolation`; the last one means whole rows."""
SIZES: dict[str, dict[str, Any]] = {
    "0.1 M": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "vocab_size": 258,
    },
    "5 M": {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 688,
        "vocab_size": 4096,
    },
}
"""The quickstart's Llama, and a larger one."""
TRAININGS = (("0.1 M", 128, 8, 30), ("0.1 M", ROW_TOKENS, 1, 10), ("5 M", 128, 8, 6))
"""Size of the model, tokens per sequence, sequences per step and steps of a short training."""


def make_model(size: str, attention: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size], max_position_embeddings=ROW_TOKENS, tie_word_embeddings=True
    )
    config._attn_implementation = attention
    return LlamaForCausalLM(config).train()


def make_stream(folder: Path, number: int) -> tuple[Recipe, list[TokenStore]]:
    """Return a training's recipe, and a store of random documents of 100 tokens on average."""
    size, seq_len, sequences, steps_taken = TRAININGS[number]
    store = folder / size
    if not store.exists():
        store.mkdir()
        rng = np.random.default_rng(0)
        lengths = (1 + rng.exponential(100, 4000)).astype(np.int32)
        tokens = rng.integers(0, SIZES[size]["vocab_size"], int(lengths.sum())).astype("<u2")
        tokens.tofile(store / "train.bin")
        with (store / "train.idx").open("wb") as index:
            write_index(index, np.dtype("<u2"), len(lengths), lambda: [lengths])
        (store / "held_out.jsonl").write_text("")
        write_record(
            store, tokens=len(tokens), documents=len(lengths), held_out=0, tokenizer="none"
        )
    share = SourceShare(source="a", role="domain", language="en", share=1.0)
    batch_tokens = sequences * seq_len
    recipe = Recipe(
        seq_len=seq_len,
        batch_tokens=batch_tokens,
        tokens=steps_taken * batch_tokens,
        lr_fraction=0.1,
        mixture=Mixture(portions=(share,)),
    )
    return recipe, [TokenStore(store, "a")]


def attention_for(seq_len: int) -> str:
    return expected_attention(
        "auto", device="cpu", precision="fp32", seq_len=seq_len, isolated=True
    )


def train_trial(model: Any, recipe: Recipe, stores: list[TokenStore]) -> float:
    """Train as a trial does; returns the last loss."""
    engine = PlainEngine(model, recipe, micro_batch=None, precision="fp32", halves=True)
    loss = 0.0
    for metrics in run_training(engine, recipe, MixtureStream(recipe, stores), max_lr=MAX_LR):
        loss = metrics.loss
    return loss


def train_bare(model: Any, recipe: Recipe, batches: list[Any]) -> float:
    """Train in a loop as one writes it in PyTorch, on batches that are tensors; the last loss."""
    optimizer = build_adamw(model, recipe)
    loss = torch.zeros(())
    for step, (ids, targets, arguments) in enumerate(batches, start=1):
        logits = model(input_ids=ids, use_cache=False, **arguments).logits
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr(step, max_lr=MAX_LR)
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def read_batches(recipe: Recipe, stores: list[TokenStore], attention: str) -> list[Any]:
    """Return the batches of a recipe as ids, targets and what separates their documents."""
    batches = []
    for batch in MixtureStream(recipe, stores).batches():
        made = to_micro_batch(batch, device=CPU)
        ids, arguments = made.input_ids, dict[str, Any](position_ids=made.position_ids)
        if attention == "varlen":
            ids = ids.reshape(1, -1)
            arguments = {
                "position_ids": made.position_ids.reshape(1, -1),
                "cu_seq_lens_q": made.cu_seq_lens,
                "cu_seq_lens_k": made.cu_seq_lens,
                "max_length_q": made.longest,
                "max_length_k": made.longest,
            }
        batches.append((ids.contiguous(), made.targets, arguments))
    return batches


def take_turns(ours: Callable[[], Any], other: Callable[[], Any], pairs: int) -> dict[str, Any]:
    """Run both in turn; returns the CPU seconds of each and the ratios of the pairs."""
    seconds: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        taken = {}
        # Which one is first alternates, so that a drift of the machine favours neither.
        for work in (ours, other) if pair % 2 else (other, ours):
            started = time.process_time()
            work()
            taken[work] = time.process_time() - started
        if pair:  # the first one is warm-up
            seconds.append((taken[ours], taken[other]))
    ratios = sorted(one / another for one, another in seconds)
    quarter = len(ratios) // 4
    return {
        "seconds": statistics.median(one for one, _ in seconds),
        "other_seconds": statistics.median(another for _, another in seconds),
        "ratio": statistics.median(ratios),
        "middle_half": [ratios[quarter], ratios[-1 - quarter]],
        "pairs": pairs,
    }


def steps(folder: Path, number: int, pairs: int) -> dict[str, Any]:
    """Compare a trial's training with the bare loop, from the same weights."""
    size, seq_len, *_ = TRAININGS[number]
    attention = attention_for(seq_len)
    recipe, stores = make_stream(folder, number)
    batches = read_batches(recipe, stores, attention)
    model = make_model(size, attention)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = {}

    def trial() -> None:
        model.load_state_dict(weights)
        losses["trial"] = train_trial(model, recipe, stores)

    def bare() -> None:
        model.load_state_dict(weights)
        losses["bare"] = train_bare(model, recipe, batches)

    found = take_turns(trial, bare, pairs)
    assert np.isclose(losses["trial"], losses["bare"], rtol=1e-4), losses
    return found | {"attention": attention, "losses": losses}


def peak_growth(arm: str, folder: Path, number: int) -> int:
    """Return the bytes by which resident memory grows while this process trains."""
    from train import peak_memory, reset_peak_memory

    size, seq_len, *_ = TRAININGS[number]
    attention = attention_for(seq_len)
    recipe, stores = make_stream(folder, number)
    torch.ones(8, 8).matmul(torch.ones(8, 8))  # what the libraries allocate once
    before = reset_peak_memory()
    model = make_model(size, attention)
    if arm == "trial":
        # The copy that a worker restores before every trial.
        weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(weights)
        train_trial(model, recipe, stores)
    else:
        train_bare(model, recipe, read_batches(recipe, stores, attention))
    return peak_memory() - before


def memory(folder: Path, number: int) -> dict[str, Any]:
    """Compare the memory of both, each in a process of its own."""
    grown = {}
    for arm in ("trial", "bare"):
        command = [sys.executable, __file__, "--memory-of", arm, str(folder), str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[arm] = int(done.stdout.split()[-1])
    return {"ratio": grown["trial"] / grown["bare"], "bytes": grown}


def row_batch(size: str, mean: int) -> Batch:
    """Return two rows of documents of `mean` tokens on average."""
    rng, shape = np.random.default_rng(0), (2, ROW_TOKENS)
    starts = np.zeros(shape, dtype=bool)
    place = 0
    while place < starts.size:
        starts.flat[place] = True
        place += 1 + int(rng.exponential(mean))
    ids = rng.integers(0, SIZES[size]["vocab_size"], shape)
    return Batch(ids, np.roll(ids, -1, 1), restarting_positions(starts), np.zeros(2, dtype=int))


def isolation(size: str, mean: int, pairs: int) -> dict[str, Any]:
    """Compare isolated documents with causal attention over the rows."""
    whole = np.zeros((2, ROW_TOKENS), dtype=bool)
    batch = row_batch(size, mean)
    rows = Batch(batch.input_ids, batch.targets, restarting_positions(whole), batch.source)

    def passes(attention: str, over: Batch) -> Callable[[], None]:
        model = make_model(size, attention)

        def work() -> None:
            model.zero_grad()
            token_losses(model, to_micro_batch(over, device=CPU)).sum().backward()

        return work

    isolated = passes(attention_for(ROW_TOKENS), batch)
    return take_turns(isolated, passes("sdpa", rows), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_output_options(parser)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        arm, folder, number = arguments.memory_of
        print(peak_growth(arm, Path(folder), int(number)))
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    machine = describe_machine() | {"threads": arguments.threads}
    found = measure(arguments.pairs)
    rows = [(label, f"{part['ratio']:.3f}", middle_half(part)) for label, part in found.items()]
    status = finish(
        arguments,
        machine=machine,
        results=found,
        text=markdown_table(["part", "ratio", "middle half"], rows),
        goals=[
            Goal(label, part["ratio"], LIMITS[label.partition(",")[0]], at_least=False)
            for label, part in found.items()
        ],
    )
    sys.exit(status)


def measure(pairs: int) -> dict[str, dict[str, Any]]:
    """Measure every part, and report each as soon as it is known."""
    found: dict[str, dict[str, Any]] = {}

    def keep(label: str, part: dict[str, Any]) -> None:
        found[label] = part
        print(f"{label}: {part['ratio']:.3f} {middle_half(part)}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        for number, (size, seq_len, *_) in enumerate(TRAININGS):
            keep(f"steps, {size} at {seq_len}", steps(Path(name), number, pairs))
            keep(f"memory, {size} at {seq_len}", memory(Path(name), number))
    for size in SIZES:
        for mean in MEAN_DOCUMENTS:
            keep(f"isolation, {size}, documents of {mean:,}", isolation(size, mean, pairs))
    return found


def middle_half(part: dict[str, Any]) -> str:
    """Return the range of the middle half of a part's ratios; empty where there is one only."""
    return " to ".join(f"{value:.3f}" for value in part.get("middle_half", ()))


if __name__ == "__main__":
    main()
