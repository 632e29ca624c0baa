"""Whether a GPU computes what a CPU does, packed documents what single ones do; and how fast
models are scored."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gpu_parts.machine import device, wait
from gpu_parts.models import make_model, resolved, write_model
from gpu_parts.settings import SEQ_LEN, SHAPE, TINY, Finding, Skipped
from gpu_parts.stores import write_store

if TYPE_CHECKING:
    from sweepcp.config.types import ScoringMode

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


def make_scorer(
    work: Path,
    model: Any,
    *,
    precision: str,
    on: torch.device,
    seq_len: int,
    scoring: "ScoringMode" = "exact",
) -> Any:
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
        suites,
        stores,
        languages={"docs": "en"},
        seq_len=seq_len,
        packed=True,
        precision=precision,
        scoring=scoring,
    )
    return Scorer(spec, model, byte_tokenizer(), ProcessGroup(device=on))


def gpu_against_cpu(work: Path) -> Finding:
    """Score one small model on this device in fp32 and bf16, and on a CPU in fp32."""
    from sweepcp.models.loading import load_model

    folder = write_model(work / "small", SMALL)

    def scores(on: torch.device, precision: str, scoring: "ScoringMode" = "exact") -> list[Any]:
        model = load_model(
            str(folder), revision=None, device=on, attention="auto", in_bf16=precision == "bf16"
        )
        scorer = make_scorer(work, model, precision=precision, on=on, seq_len=128, scoring=scoring)
        found: list[Any] = scorer.score()
        if scorer.scoring != scoring:
            raise RuntimeError(f"{scoring} scoring in {precision} became {scorer.scoring}")
        return found

    exact = scores(torch.device("cpu"), "fp32")
    numbers: dict[str, Any] = {}
    texts = []
    cases: tuple[tuple[str, ScoringMode], ...] = (
        ("fp32", "exact"),
        ("fp32", "shared"),
        ("bf16", "exact"),
    )
    for precision, scoring in cases:
        name = precision if scoring == "exact" else f"{precision} {scoring}"
        found = scores(device(), precision, scoring)
        numbers[name] = compare_scores(found, exact)
        texts.append(
            f"{name}: scores differ by at most {max(numbers[name]['scores'].values()):.1e}, bits "
            f"of a document or an answer by {numbers[name]['bits']:.1e}, {numbers[name]['items']} "
            "answers"
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
    model = make_model(attention)
    numbers: dict[str, Any] = {"items": 2 * ITEMS, "attention": attention}
    texts = []
    modes: tuple[ScoringMode, ...] = ("exact", "shared")
    for scoring in modes:
        scorer = make_scorer(
            work, model, precision="bf16", on=device(), seq_len=SEQ_LEN, scoring=scoring
        )
        scorer.score()  # builds the tasks, and starts the kernels
        items_per_second = 2 * ITEMS / seconds_of(scorer.tasks.score)
        numbers[scoring] = {"items_per_second": items_per_second, "decided": scorer.scoring}
        texts.append(f"{scoring} {items_per_second:,.0f} items/s ({scorer.scoring})")
    tokens = sum(int(text.lengths.sum()) for _, _, text in scorer.held_out_texts)
    numbers["held_out_tokens_per_second"] = tokens / seconds_of(scorer.score_held_out)
    texts.append(f"held-out text {numbers['held_out_tokens_per_second']:,.0f} tokens/s")
    on_gpu = device().type == "cuda"
    numbers["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None
    if on_gpu:
        texts.append(f"peak {numbers['memory_gib']:.2f} GiB")
    return Finding(
        f"{ITEMS} items of 4 and {ITEMS} of 2 choices under {attention}: {', '.join(texts)}",
        numbers,
    )


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long something takes, with what the device has been given to do."""
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started
