"""Answers with shared contexts: rows, masks and indices, and the answers of many architectures."""

import random
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from sweepcp.models.attention import use_row_attention
from sweepcp.models.loading import byte_tokenizer
from sweepcp.scoring import answer_model, answer_passes, shared_contexts
from sweepcp.scoring.answer_model import BOUND, AnswerModel, _sample
from sweepcp.scoring.answer_passes import Answer, Branches, exact_passes
from sweepcp.scoring.lm_eval_answers import AnswerTokens
from sweepcp.scoring.shared_contexts import branch_mask, context_rows, shared_passes
from sweepcp.training.process_group import ALONE

LONGEST = 64
REQUESTS = [
    AnswerTokens([1, 2], [3, 4, 5]),
    AnswerTokens([9], [7]),
    AnswerTokens([1, 2], [3, 4, 6]),  # differs in its last token
    AnswerTokens([1, 2], [3, 8, 5]),
    AnswerTokens([1, 2], [3]),  # the start of another answer
]


def some_requests(count: int = 12, longest: int = 40) -> list[AnswerTokens]:
    """Contexts with four answers each, of which some begin alike, and one text longer than models
    take."""
    drawn = random.Random(1)

    def draw(most: int) -> list[int]:
        return [drawn.randrange(1, 256) for _ in range(drawn.randint(1, most))]

    requests = []
    for _ in range(count):
        context, start = draw(longest), draw(3)
        answers = [draw(8), draw(2), [*start, *draw(4)], [*start, *draw(4)]]
        requests += [AnswerTokens(context, answer) for answer in answers]
    return [*requests, AnswerTokens([5] * LONGEST, [1, 2, 3]), AnswerTokens([5] * LONGEST, [4])]


def make_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of random weights, in which what a token sees changes its logits."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": 300,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": LONGEST,
        "initializer_range": 0.5,
        "pad_token_id": 0,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | changes)).eval()


def stock_answers(model: PreTrainedModel, requests: list[AnswerTokens]) -> list[Answer]:
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=32)
    assert lm.max_length == LONGEST
    answers: list[Answer] = lm._loglikelihood_tokens(
        [(("", ""), list(context), list(scored)) for context, scored in requests],
        disable_tqdm=True,
    )
    return answers


def wrap(model: PreTrainedModel, *, in_bf16: bool = False) -> AnswerModel:
    return AnswerModel(model, ALONE, max_length=LONGEST, in_bf16=in_bf16)


def largest_difference(ours: list[Answer], theirs: list[Answer]) -> float:
    return max(abs(our[0] - their[0]) for our, their in zip(ours, theirs, strict=True))


def test_a_row_is_a_context_and_the_tree_of_its_answers():
    first, second = context_rows(REQUESTS, max_length=LONGEST)
    assert first.tokens == [1, 2, 3, 4, 8]
    assert first.positions == [0, 1, 2, 3, 3]
    assert first.last == [4, 4, 4, 3, 4]
    assert sorted(first.answers) == [
        (0, [3, 4, 5], [1, 2, 3]),
        (2, [3, 4, 6], [1, 2, 3]),
        (3, [3, 8, 5], [1, 2, 4]),
        (4, [3], [1]),
    ]
    assert (second.tokens, second.positions, second.last) == ([9], [0], [0])
    assert second.answers == [(1, [7], [0])]


def test_contexts_of_a_pass_end_in_the_same_column():
    (one,) = shared_passes(REQUESTS, max_length=LONGEST, vocab_size=300, pass_tokens=10)
    assert one.input_ids.tolist() == [[1, 2, 3, 4, 8], [0, 9, 0, 0, 0]]
    assert one.branches is not None
    assert one.branches.position.tolist() == [[0, 1, 2, 3, 3], [0, 0, 0, 0, 0]]
    assert one.branches.last.tolist() == [[4, 4, 4, 3, 4], [0, 1, 2, 3, 4]]
    assert one.kept == 4  # from the end of the context on
    read = dict(zip(one.answers, one.columns[one.predictor].split(one.lengths), strict=True))
    assert {index: columns.tolist() for index, columns in read.items()} == {
        0: [0, 1, 2],
        1: [4],
        2: [0, 1, 2],
        3: [0, 1, 3],
        4: [0],
    }
    tokens = dict(zip(one.answers, one.token.split(one.lengths), strict=True))
    assert all(tokens[i].tolist() == request.scored for i, request in enumerate(REQUESTS))


def test_a_token_sees_its_context_and_its_own_answer():
    mask = branch_mask(torch.tensor([[4, 4, 4, 3, 4], [0, 1, 2, 3, 4]]))
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 0, 1],
    ]
    assert torch.equal(mask[1, 0], torch.eye(5, dtype=torch.bool))


def test_of_a_longer_context_each_answer_sees_what_lm_eval_leaves():
    requests = [AnswerTokens([1, 2, 3, 4], [5]), AnswerTokens([1, 2, 3, 4], [6, 7])]
    rows = context_rows(requests, max_length=4)
    assert sorted(row.tokens for row in rows) == [[1, 2, 3, 4], [2, 3, 4, 6]]
    (row,) = context_rows(requests, max_length=5)
    assert row.tokens == [1, 2, 3, 4, 6]


def test_rows_and_passes_are_bounded(monkeypatch: pytest.MonkeyPatch):
    requests = [AnswerTokens([1], [2 + n, 3, 4]) for n in range(6)]
    monkeypatch.setattr(shared_contexts, "ROW_ANSWERS", 6)
    rows = context_rows(requests, max_length=LONGEST)
    assert [len(row.answers) for row in rows] == [2, 2, 2]
    assert [len(row.tokens) for row in rows] == [5, 5, 5]
    options: dict[str, Any] = {"max_length": LONGEST, "vocab_size": 10, "pass_tokens": 10}
    passes = shared_passes(requests, **options)
    assert [one.input_ids.shape for one in passes] == [(2, 5), (1, 5)]
    monkeypatch.setattr(shared_contexts, "MAX_LOGITS", 2 * 5 * 10 - 1)
    assert len(shared_passes(requests, **options)) == 3
    assert shared_passes([], **options) == []
    assert sorted(index for one in passes for index in one.answers) == list(range(6))


def test_passes_of_a_model_that_computes_all_logits_are_bounded_by_all(
    monkeypatch: pytest.MonkeyPatch,
):
    requests = [AnswerTokens([n] * 9, [2]) for n in range(1, 5)]
    monkeypatch.setattr(shared_contexts, "MAX_LOGITS", 2 * 9 * 10)
    options: dict[str, Any] = {"max_length": LONGEST, "vocab_size": 10, "pass_tokens": 100}
    assert len(shared_passes(requests, **options)) == 1
    assert len(shared_passes(requests, **options, keeps_logits=False)) == 2


def test_columns_are_bounded_where_there_are_several_answers_or_rows():
    requests = [AnswerTokens([1] * 4, [n, n, n]) for n in range(4)]
    options: dict[str, Any] = {"max_length": LONGEST, "vocab_size": 10, "pass_tokens": 100}
    assert [one.input_ids.shape for one in shared_passes(requests, **options)] == [(1, 12)]
    bounded = shared_passes(requests, **options, most_columns=10)
    assert [one.input_ids.shape for one in bounded] == [(2, 8)]
    longer = [*requests[:1], AnswerTokens([1] * 9, [2])]
    shapes = [one.input_ids.shape for one in shared_passes(longer, **options, most_columns=10)]
    assert shapes == [(1, 6), (1, 9)]


def test_logits_behind_a_context_are_computed_once_for_all_answers():
    """Hundreds of choices with one token each would otherwise take hundreds of vocabularies."""
    requests = [AnswerTokens([1, 2, 3], [token]) for token in range(4, 250)]
    model = make_model("llama")
    wrapped = wrap(model)
    stock = stock_answers(model, requests)
    for passes in (wrapped.shared_passes(requests), wrapped.exact_passes(requests)):
        assert [one.columns.numel() for one in passes] == [1]
        assert largest_difference(wrapped.compute(passes, count=len(requests)), stock) < BOUND


def test_a_mean_model_gives_answers_that_are_computed_by_hand():
    """Logits are the mean of the tokens that a token sees, times the token that is predicted."""

    class Mean(torch.nn.Module):
        config: Any = AutoConfig.for_model("llama", vocab_size=10, _attn_implementation="sdpa")
        device, dtype = torch.device("cpu"), torch.float32

        def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None):
            length = input_ids.shape[1]
            causal = torch.ones(length, length).tril()
            seen = causal if attention_mask is None else (attention_mask[:, 0] == 0).float()
            total = (seen * input_ids[:, None, :]).sum(-1) / seen.sum(-1)
            logits = total[:, :, None] * torch.arange(10.0)
            return type("Output", (), {"logits": logits})

    model: Any = Mean()
    wrapped = wrap(model)
    for passes in (wrapped.shared_passes(REQUESTS), wrapped.exact_passes(REQUESTS)):
        answers = wrapped.compute(passes, count=len(REQUESTS))
        expected = torch.log_softmax(9 * torch.arange(10.0), dim=0)[7]
        assert answers[1][0] == pytest.approx(float(expected))
        nats = 0.0
        for seen, token in (((1, 2), 3), ((1, 2, 3), 8), ((1, 2, 3, 8), 5)):
            mean = sum(seen) / len(seen)
            nats += float(torch.log_softmax(mean * torch.arange(10.0), dim=0)[token])
        assert answers[3][0] == pytest.approx(nats, rel=1e-5)
        assert [is_greedy for _, is_greedy in answers] == [False] * 5


SHARES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LONGEST},  # learned positions
    "gemma2": {"head_dim": 8, "sliding_window": LONGEST},  # soft-capped logits, eager attention
    "cohere": {"logit_scale": 0.3},
    "granite": {"logits_scaling": 7.0},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": LONGEST},  # multi-query
    "qwen2": {},  # names a window that it does not use
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8, "sliding_window": LONGEST},  # sinks
}
DOES_NOT: dict[str, tuple[dict[str, Any], str]] = {
    "mistral": ({"sliding_window": 16}, "sliding_window 16 is shorter than a text"),
    "bloom": ({"n_layer": 2, "n_head": 2, "seq_length": LONGEST}, "no positions of tokens"),
    "falcon": ({"alibi": True}, "no masks of branches"),
    "xlm": ({"emb_dim": 16, "n_layers": 2, "n_heads": 2}, "no masks of branches"),
    "mamba": ({"state_size": 4}, "recurrent layers"),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "other answers in its check"),
}


@pytest.mark.parametrize("kind", SHARES)
def test_architectures_share_contexts(kind: str):
    model, requests = make_model(kind, **SHARES[kind]), some_requests()
    stock = stock_answers(model, requests)
    wrapped = wrap(model)
    with use_row_attention(model):
        passes = wrapped.exact_passes(requests)
        assert wrapped.compute(passes, count=len(requests)) == stock
        wrapped.keep_logits(passes)
        assert wrapped.compute(passes, count=len(requests)) == stock
        assert wrapped.obstacle(requests) == ""
        shared = wrapped.compute(wrapped.shared_passes(requests), count=len(requests))
    assert largest_difference(shared, stock) < BOUND
    assert [is_greedy for _, is_greedy in shared] == [is_greedy for _, is_greedy in stock]


@pytest.mark.parametrize("kind", DOES_NOT)
def test_exact_mode_takes_over_where_contexts_cannot_be_shared(kind: str):
    changes, reason = DOES_NOT[kind]
    model, requests = make_model(kind, **changes), some_requests(longest=30)[:-2]
    wrapped = wrap(model)
    assert wrapped.obstacle(requests) == reason
    answers = wrapped.compute(wrapped.exact_passes(requests), count=len(requests))
    lm = HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=32)
    assert answers == lm._loglikelihood_tokens([("", *request) for request in requests])


def test_a_window_is_no_obstacle_to_texts_within_it():
    model = make_model("mistral", sliding_window=16)
    short = [AnswerTokens([1] * 10, list(range(2, 2 + n))) for n in range(1, 8)]
    wrapped = wrap(model)
    assert wrapped.obstacle(short) == ""
    shared = wrapped.compute(wrapped.shared_passes(short), count=len(short))
    assert largest_difference(shared, stock_answers(model, short)) < BOUND
    longer = [*short, AnswerTokens([1] * 10, [2] * 8)]
    assert wrapped.obstacle(longer) == "sliding_window 16 is shorter than a text"


def test_windows_of_single_layers_count():
    model = make_model("mistral", sliding_window=None)
    model.config.per_layer_config = {1: {"sliding_window": 16}}
    assert "sliding_window 16" in wrap(model).obstacle(some_requests(longest=30)[:-2])


def test_rows_stay_within_a_window_of_columns():
    """GPT-Neo cuts off what is far away in the row, and has no mask of more columns."""
    changes = {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
    model = make_model("gpt_neo", **changes, window_size=24)
    requests = [AnswerTokens([n] * 9, [n, m] * 5) for n in range(1, 4) for m in range(10, 18)]
    wrapped = wrap(model)
    assert wrapped.obstacle(requests) == ""
    passes = wrapped.shared_passes(requests)
    assert max(one.input_ids.shape[1] for one in passes) <= 24
    shared = wrapped.compute(passes, count=len(requests))
    assert largest_difference(shared, stock_answers(model, requests)) < BOUND


def test_masks_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answer_model, "MOST_TOKENS", 20)
    wrapped = wrap(make_model("llama"))
    assert wrapped.obstacle([AnswerTokens([1] * 19, [2, 3])]) == ""
    longer = [AnswerTokens([1] * 20, [2, 3])]
    assert wrapped.obstacle(longer) == "a text of more than 20 tokens"


def test_positions_that_depend_on_the_longest_text_are_an_obstacle():
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = make_model("llama", rope_parameters=rope, max_position_embeddings=20)
    assert wrap(model).obstacle([AnswerTokens([1] * 20, [2])]) == ""
    assert "longest text" in wrap(model).obstacle([AnswerTokens([1] * 20, [2, 3])])


def test_answers_that_end_one_text_are_read_where_lm_eval_reads_them():
    requests = [AnswerTokens([1, 2, 3], [4, 5]), AnswerTokens([1, 2], [3, 4, 6])]
    model = make_model("llama")
    wrapped = wrap(model)
    assert wrapped.compute(wrapped.exact_passes(requests), count=2) == stock_answers(
        model, requests
    )
    assert wrapped.obstacle(requests) == "a text with two divisions into context and answer"
    assert wrapped.obstacle(requests[:1]) == ""


def test_exact_passes_compute_the_logits_that_answers_need():
    many = [AnswerTokens([1] * (20 + n), [2, 3]) for n in range(8)]
    one, *_ = exact_passes(many, max_length=LONGEST, vocab_size=300)
    assert (one.input_ids.shape, one.kept) == ((8, 28), 9)  # from the shortest row's answer on
    few, *_ = exact_passes(many[:1], max_length=LONGEST, vocab_size=300)
    assert (few.input_ids.shape, few.kept) == ((1, 21), 8)
    model = make_model("llama")
    wrapped = wrap(model)
    passes = wrapped.exact_passes(many)
    wrapped.keep_logits(passes)
    assert wrapped.keeps_exactly
    assert wrapped.compute(passes, count=8) == stock_answers(model, many)


def test_all_logits_are_computed_if_that_changes_a_bit(monkeypatch: pytest.MonkeyPatch):
    model, requests = make_model("llama"), [AnswerTokens([1] * 20, [2, 3])]
    wrapped = wrap(model)
    real = model.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        output = real(*inputs, **options)
        output.logits = output.logits * (1 + 1e-6 * ("logits_to_keep" in options))
        return output

    monkeypatch.setattr(model, "forward", forward)
    passes = wrapped.exact_passes(requests)
    wrapped.keep_logits(passes)
    assert not wrapped.keeps_exactly
    assert wrapped.compute(passes, count=1) == stock_answers(model, requests)


def test_a_greedy_answer_is_compared_at_its_own_place():
    """Also where lm-eval reads its log-probability elsewhere."""
    model, context = make_model("llama"), [1, 2]
    with torch.no_grad():
        for _ in range(4):
            context.append(int(model(torch.tensor([context])).logits[0, -1].argmax()))
    requests = [AnswerTokens(context[:3], context[3:]), AnswerTokens(context[:5], context[5:])]
    wrapped = wrap(model)
    answers = wrapped.compute(wrapped.exact_passes(requests), count=2)
    assert [is_greedy for _, is_greedy in answers] == [True, True]
    assert answers == stock_answers(model, requests)


@pytest.mark.parametrize(("factor", "reason"), [(1.001, "other answers in its check"), (1, "")])
def test_other_answers_in_the_check_are_an_obstacle(
    factor: float, reason: str, monkeypatch: pytest.MonkeyPatch
):
    wrapped = wrap(make_model("llama"))
    real = wrapped._logits
    monkeypatch.setattr(wrapped, "_logits", lambda one: real(one) * (factor if one.branches else 1))
    assert wrapped.obstacle(some_requests()) == reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masks_have_the_type_of_the_weights(dtype: torch.dtype):
    last = torch.tensor([[2, 1, 2]])
    branches = Branches(position=torch.tensor([[0, 1, 1]]), last=last)
    model: Any = make_model("llama")
    mask = wrap(model.to(dtype))._mask(branches)
    unseen = torch.finfo(dtype).min
    assert mask.dtype == dtype
    assert mask[0, 0].tolist() == [[0, unseen, unseen], [0, 0, unseen], [0, unseen, 0]]


def test_bf16_bounds_the_difference_by_its_own_rounding():
    model, requests = make_model("llama"), some_requests()
    wrapped = wrap(model, in_bf16=True)
    exact = wrapped.compute(wrapped.exact_passes(requests), count=len(requests))
    shared = wrapped.compute(wrapped.shared_passes(requests), count=len(requests))
    assert largest_difference(shared, exact) > 10 * BOUND
    assert wrapped.obstacle(requests) == ""
    assert wrapped.in_bf16


def test_the_sample_has_the_longest_text_and_the_most_uneven_answers():
    plain = [AnswerTokens([n], [1, n]) for n in range(10, 60)]
    longest = AnswerTokens([4] * 20, [1])
    uneven = [AnswerTokens([5], [1]), AnswerTokens([5], [1] * 9)]
    sample = _sample([*plain, longest, *uneven])
    assert longest in sample
    assert all(request in sample for request in uneven)
    assert 6 <= len(sample) <= 12
    many = [AnswerTokens([1], [n] * n) for n in range(1, 100)]
    assert [len(request.scored) for request in _sample(many)[:8]] == [1, 2, 3, 4, 96, 97, 98, 99]


def test_passes_may_be_computed_again_after_the_weights_have_changed():
    model, requests = make_model("llama"), some_requests()
    wrapped = wrap(model)
    passes = wrapped.shared_passes(requests), wrapped.exact_passes(requests)
    before = [wrapped.compute(one, count=len(requests)) for one in passes]
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    after = [wrapped.compute(one, count=len(requests)) for one in passes]
    assert largest_difference(before[0], after[0]) > 1
    with torch.no_grad():
        model.lm_head.weight.mul_(-1)
    assert [wrapped.compute(one, count=len(requests)) for one in passes] == before


def test_logits_are_read_where_lm_eval_reads_them():
    (one,) = exact_passes(REQUESTS, max_length=LONGEST, vocab_size=300)
    assert one.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 3, 8], [1, 2, 0, 0], [9, 0, 0, 0]]
    read = dict(zip(one.answers, one.columns[one.predictor].split(one.lengths), strict=True))
    assert {index: columns.tolist() for index, columns in read.items()} == {
        0: [1, 2, 3],
        1: [12],
        2: [1, 2, 3],
        3: [5, 6, 7],
        4: [9],
    }
    assert answer_passes.exact_passes([], max_length=8, vocab_size=3) == []
