"""Batches of lm-eval requests: those of lm-eval, bounded, and shared by the ranks of a run."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import Collator

from sweepcp.models.loading import byte_tokenizer
from sweepcp.scoring import lm_eval_batches, lm_eval_tasks
from sweepcp.scoring.lm_eval_answers import AnswerTokens
from sweepcp.scoring.lm_eval_batches import MAX_LOGITS, bounded_batches
from sweepcp.scoring.lm_eval_model import GroupModel, Request
from sweepcp.scoring.scorer import Scorer
from sweepcp.training.process_group import ALONE, ProcessGroup
from tests.unit.test_task_items import CONTEXT, model


class OneOfTwo(ProcessGroup):
    """A rank of two that gets nothing from the other: the sum over both is left to the test."""

    def all_reduce_sum(self, array: np.ndarray) -> np.ndarray:
        return array


def some_requests(count: int, longest: int = CONTEXT + 8) -> list[Request]:
    """Requests of all lengths, of which some share a context and some are longer than the model."""
    drawn = random.Random(3)
    requests: list[Request] = []
    for _ in range(count):
        context = drawn.choices(range(256), k=drawn.randint(1, longest))
        answers = [drawn.choices(range(256), k=drawn.randint(1, 3)) for _ in range(2)]
        # Two answers that differ in their last token, so that lm-eval computes one row for both.
        answers.append([*answers[0][:-1], (answers[0][-1] + 1) % 256])
        requests += [(("", ""), context, answer) for answer in answers]
    return requests


def make_shared(group: ProcessGroup = ALONE, *, in_bf16: bool = False) -> GroupModel:
    return GroupModel(model(), byte_tokenizer(), group, in_bf16=in_bf16)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The inputs of every forward pass of lm-eval's model."""
    inputs: list[torch.Tensor] = []
    real = HFLM._model_call

    def call(self: HFLM, tokens: torch.Tensor, **arguments: Any) -> torch.Tensor:
        inputs.append(tokens)
        return real(self, tokens, **arguments)

    monkeypatch.setattr(HFLM, "_model_call", call)
    return inputs


def tokens(requests: list[Request]) -> list[AnswerTokens]:
    return [AnswerTokens(context, answer) for _, context, answer in requests]


def equal(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@torch.no_grad()
def test_the_batches_of_small_models_are_those_of_lm_eval(passes: list[torch.Tensor]):
    requests = some_requests(50)
    stock = HFLM(pretrained=model(), tokenizer=byte_tokenizer(), batch_size=32)
    expected = stock._loglikelihood_tokens(requests, disable_tqdm=True)
    theirs = list(passes)
    passes.clear()
    assert make_shared()._loglikelihood_tokens(requests) == expected
    assert equal(passes, theirs)
    assert [len(rows) for rows in theirs] == [32, 32, 30]


def test_batches_are_those_of_the_installed_collator():
    requests = some_requests(200)
    collator = Collator(
        requests,
        sort_fn=lambda request: (-len(request[1] + request[2]), tuple(request[1] + request[2])),
        group_by="contexts",
        group_fn=lambda request: request[1] + request[2][:-1],
    )
    theirs = [[tuple(request[1]) for request in batch] for batch in collator.get_batched(n=32)]
    ours = bounded_batches(tokens(requests), max_length=CONTEXT, vocab_size=300)
    assert [[tuple(requests[row[0]][1]) for row in batch] for batch in ours] == theirs


@pytest.mark.parametrize(
    ("length", "vocab_size", "rows"),
    [
        (2048, 128_256, 2),
        (2048, 49_152, 5),
        (512, 32_000, 32),
        (128, 258, 32),
        (8192, 128_256, 1),  # more than the bound in one request
        (1024, 512 * 1024, 1),  # exactly the bound
        (1024, 256 * 1024, 2),
        (512, 1024 * 1024 + 1, 1),
    ],
)
def test_a_pass_has_at_most_so_many_logits(length: int, vocab_size: int, rows: int):
    requests: list[Request] = [("", [1] * (length - 1), [2 + n, 3]) for n in range(100)]
    batches = bounded_batches(tokens(requests), max_length=1 << 20, vocab_size=vocab_size)
    assert {len(batch) for batch in batches[:-1]} == {rows}
    assert sorted(index for batch in batches for row in batch for index in row) == list(range(100))
    if rows > 1:
        assert rows * length * vocab_size <= MAX_LOGITS


def test_of_a_longer_context_the_model_computes_what_it_takes():
    requests: list[Request] = [("", [1] * 5000, [2 + n, 3]) for n in range(64)]
    (first, *_) = bounded_batches(tokens(requests), max_length=1024, vocab_size=32_768)
    assert len(first) == 16


@pytest.mark.parametrize("count", [1, 20, 30, 50])
@torch.no_grad()
def test_two_ranks_share_the_batches_and_get_the_answers_of_one(
    count: int, passes: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    requests = some_requests(count)
    monkeypatch.setattr(lm_eval_batches, "MAX_LOGITS", 8 * 40 * 300)
    expected = make_shared()._loglikelihood_tokens(requests)
    alone = list(passes)
    partial, by_rank = [], []
    for rank in range(2):
        passes.clear()
        shared = make_shared(OneOfTwo(rank=rank, world_size=2))
        partial.append(np.array(shared._loglikelihood_tokens(requests), dtype=float))
        by_rank.append(list(passes))
    assert list(map(tuple, partial[0] + partial[1])) == expected
    # As many passes on every rank, which a partitioned model needs, of the batches of one process.
    assert len(by_rank[0]) == len(by_rank[1]) == -(-len(alone) // 2)
    assert equal(by_rank[0], alone[::2])
    assert equal(by_rank[1], [*alone[1::2], *alone[: len(alone) % 2]])


@torch.no_grad()
def test_rolling_log_likelihoods_are_bounded_and_shared(
    passes: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
):
    class Instance:
        def __init__(self, text: str) -> None:
            self.args = (text,)

    letters = "".join(random.Random(4).choices("abcdefgh", k=450))
    texts = [Instance(letters[:150]), Instance("hello"), Instance(letters[150:])]
    expected = HFLM(
        pretrained=model(), tokenizer=byte_tokenizer(), batch_size=32
    ).loglikelihood_rolling(texts, disable_tqdm=True)
    assert make_shared().loglikelihood_rolling(texts, disable_tqdm=True) == expected
    monkeypatch.setattr(lm_eval_batches, "MAX_LOGITS", 4 * CONTEXT * 300)
    sums = []
    for rank in range(2):
        passes.clear()
        shared = make_shared(OneOfTwo(rank=rank, world_size=2))
        sums.append(shared.loglikelihood_rolling(texts, disable_tqdm=True))
        assert list(map(len, passes)) == [4, [1, 4][rank]]  # of the batches of 4, 4 and 1
    assert np.add(*sums) == pytest.approx(expected, rel=1e-6)


def test_only_ranks_of_several_wait_for_each_other_in_generation(monkeypatch: pytest.MonkeyPatch):
    options: dict[str, Any] = {}
    monkeypatch.setattr(HFLM, "_model_generate", lambda _self, **given: options.update(given))
    make_shared()._model_generate(context=None)
    assert options == {"context": None}
    make_shared(OneOfTwo(world_size=2))._model_generate(context=None)
    assert options == {"context": None, "synced_gpus": True}


def test_the_group_of_a_run_scores_its_tasks(monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}
    monkeypatch.setattr(lm_eval_tasks, "LmEvalTasks", lambda *_, **options: given.update(options))
    member = SimpleNamespace(held_out=None, language="en")
    spec: Any = SimpleNamespace(
        suites=SimpleNamespace(members=[("general", member)]),
        generated_tasks=None,
        precision="fp32",
        scoring="shared",
        working_folder=Path(),
    )
    group = OneOfTwo(rank=1, world_size=2)
    _ = Scorer(spec, model(), byte_tokenizer(), group).tasks
    assert given["group"] is group
    assert given["scoring"] == "shared"


def test_log_probabilities_are_fp32_in_bf16():
    lm = make_shared(in_bf16=True)
    assert (lm.softmax_dtype, lm.mixed_precision_dtype) == (torch.float32, torch.bfloat16)
