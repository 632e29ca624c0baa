"""Whether a GPU computes what a CPU does, packed documents what single ones do; and how fast
models are scored."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpu_parts.machine import device, wait
from gpu_parts.models import make_model, resolved, write_model
from gpu_parts.settings import SEQ_LEN, SHAPE, TINY, Finding, Skipped
from gpu_parts.stores import write_store

PACKED_ROWS = ((7, 50, 71), (20, 108), (3, 61, 30, 34))
"""Lengths of the documents in each row of a batch."""
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
"""A model that a CPU scores at once; its weights are large enough for losses to differ."""
ITEMS = 16 if TINY else 200


def isolation(work: Path) -> Finding:
    """Compare packed documents with each alone, and gradients with those of a second time, under
    each implementation of attention."""
    from sweepcp.training.isolation import check_isolation
    from sweepcp.training.process_group import ProcessGroup

    numbers: dict[str, Any] = {}
    texts = []
    wanted = [("sdpa", False), ("sdpa", True), ("varlen", True), ("flash_attention_2", True)]
    for attention, in_bf16 in wanted:
        name = f"{attention} {'bf16' if in_bf16 else 'fp32'}"
        try:
            model = make_model(resolved(attention, in_bf16=in_bf16))
        except Skipped as reason:
            numbers[name] = str(reason)
            texts.append(f"{name}: not here ({reason})")
            continue
        difference, same = compare_packed(model, in_bf16=in_bf16)
        started = time.perf_counter()
        group = ProcessGroup(device=device())
        check_isolation(model, group, seq_len=SEQ_LEN, packed=True)
        seconds = time.perf_counter() - started
        numbers[name] = {"nats": difference, "same_gradients": same, "check_seconds": seconds}
        again = "the same gradients again" if same else "OTHER gradients again"
        texts.append(f"{name}: {difference:.1e} nats, {again}, check {seconds:.1f} s")
    return Finding(
        f"largest difference of a token, packed against alone: {'; '.join(texts)}", numbers
    )


def compare_packed(model: Any, *, in_bf16: bool) -> tuple[float, bool]:
    """Return the largest difference of a token's loss, and whether gradients are reproducible."""
    from sweepcp.training.batches import to_micro_batch
    from sweepcp.training.engine import autocast_context
    from sweepcp.training.loss import token_losses

    batch = packed_batch()
    precision = "bf16" if in_bf16 else "fp32"
    context = autocast_context(device(), precision)

    def losses(of: Any) -> torch.Tensor:
        return token_losses(model, to_micro_batch(of, device=device()))

    with torch.no_grad(), context:
        together = losses(batch).cpu().numpy()
        apart = np.zeros_like(together)
        for row, lengths in enumerate(PACKED_ROWS):
            for end, length in zip(np.cumsum(lengths), lengths, strict=True):
                place = slice(int(end) - length, int(end))
                apart[row, place] = losses(document_alone(batch, row, place)).cpu().numpy()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        with context:
            summed = losses(batch).sum()
        summed.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return float(np.abs(together - apart).max()), torch.equal(*gradients)


def packed_batch() -> Any:
    """Return random tokens in packed documents."""
    from sweepcp.data.stream import IGNORED, Batch, restarting_positions

    length = sum(PACKED_ROWS[0])
    shape = len(PACKED_ROWS), length
    ids = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], shape)
    starts = np.zeros((len(PACKED_ROWS), length + 1), dtype=bool)
    for row, lengths in enumerate(PACKED_ROWS):
        starts[row, np.cumsum([0, *lengths])] = True
    targets = np.where(starts[:, 1:], IGNORED, np.roll(ids, -1, 1))
    sources = np.zeros(len(PACKED_ROWS), dtype=np.int32)
    return Batch(ids, targets, restarting_positions(starts[:, :-1]), sources)


def document_alone(batch: Any, row: int, place: slice) -> Any:
    """Return one document of a batch as a batch."""
    from sweepcp.data.stream import Batch

    rows = slice(row, row + 1)
    return Batch(
        input_ids=batch.input_ids[rows, place],
        targets=batch.targets[rows, place],
        position_ids=batch.position_ids[rows, place],
        source=batch.source[rows],
    )


def make_scorer(work: Path, model: Any, *, precision: str, on: torch.device, seq_len: int) -> Any:
    """Return the scorer of held-out text and of generated lm-eval tasks."""
    from sweepcp.config.suites import MemberSpec, Suites
    from sweepcp.models.loading import byte_tokenizer
    from sweepcp.scoring.scorer import Scorer
    from sweepcp.scoring.spec import make_scoring_spec
    from sweepcp.training.process_group import ProcessGroup

    stores = {"docs": write_store(work / "stores", "docs")}
    suites = Suites(
        domain=(MemberSpec(cloze="docs", items=ITEMS), MemberSpec(swap="docs", items=ITEMS)),
        general=(MemberSpec(held_out="docs"),),
    )
    spec = make_scoring_spec(
        suites, stores, languages={"docs": "en"}, seq_len=seq_len, packed=True, precision=precision
    )
    return Scorer(spec, model, byte_tokenizer(), ProcessGroup(device=on))


def gpu_against_cpu(work: Path) -> Finding:
    """Score one small model on this device in fp32 and bf16, and on a CPU in fp32."""
    from sweepcp.models.loading import load_model

    folder = write_model(work / "small", SMALL)

    def scores(on: torch.device, precision: str) -> list[Any]:
        model = load_model(
            str(folder), revision=None, device=on, attention="auto", in_bf16=precision == "bf16"
        )
        scorer = make_scorer(work, model, precision=precision, on=on, seq_len=128)
        found: list[Any] = scorer.score()
        return found

    exact = scores(torch.device("cpu"), "fp32")
    numbers: dict[str, Any] = {}
    texts = []
    for precision in ("fp32", "bf16"):
        found = scores(device(), precision)
        numbers[precision] = compare_scores(found, exact)
        largest = max(numbers[precision]["scores"].values())
        items = numbers[precision]["items"]
        texts.append(
            f"{precision}: scores differ by at most {largest:.1e}, bits of a document or an answer "
            f"by {numbers[precision]['bits']:.1e}, {items} answers"
        )
    again = scores(device(), "bf16")
    same = all(a.amount == b.amount for a, b in zip(found, again, strict=True))
    numbers["same_again"] = same
    texts.append("the same again" if same else "NOT the same again")
    return Finding(f"relative to a CPU in fp32: {'; '.join(texts)}", numbers)


def compare_scores(found: list[Any], exact: list[Any]) -> dict[str, Any]:
    """Return relative differences of scores, and of the bits of single items."""
    scores: dict[str, float] = {}
    bits, items = 0.0, 0
    for mine, other in zip(found, exact, strict=True):
        amounts, expected = np.array(mine.amount), np.array(other.amount)
        difference = abs(float(amounts.sum() - expected.sum()))
        scores[f"{mine.name} {mine.unit}"] = difference / max(1.0, float(expected.sum()))
        if mine.unit == "bits per byte":
            bits = max(bits, float(np.abs(amounts / expected - 1).max()))
        else:
            items += int((amounts != expected).sum())
    return {"scores": scores, "bits": bits, "items": items}


def scoring_speed(work: Path) -> Finding:
    """Measure items and tokens per second as trials of the model of 135 M parameters are scored."""
    attention = resolved("auto", in_bf16=True)
    scorer = make_scorer(
        work, make_model(attention), precision="bf16", on=device(), seq_len=SEQ_LEN
    )
    scorer.score()  # builds the tasks, and starts the kernels

    started = time.perf_counter()
    scorer.tasks.score()
    wait()
    items_per_second = 2 * ITEMS / (time.perf_counter() - started)
    started = time.perf_counter()
    scorer.score_held_out()
    wait()
    seconds = time.perf_counter() - started
    tokens = sum(int(text.lengths.sum()) for _, _, text in scorer.held_out_texts)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device().type == "cuda" else None
    numbers = {
        "items_per_second": items_per_second,
        "items": 2 * ITEMS,
        "held_out_tokens_per_second": tokens / seconds,
        "memory_gib": peak,
        "attention": attention,
    }
    text = (
        f"{items_per_second:,.0f} items/s ({ITEMS} of 4 and {ITEMS} of 2 choices), held-out text "
        f"{tokens / seconds:,.0f} tokens/s under {attention}"
    )
    return Finding(text + (f", peak {peak:.2f} GiB" if peak else ""), numbers)
