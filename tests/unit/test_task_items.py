"""Items of lm-eval tasks that cannot be scored, and the tokens of those that can."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sweepcp.config.suites import MemberSpec
from sweepcp.config.types import ScoringMode
from sweepcp.errors import InvalidInput
from sweepcp.models.loading import byte_tokenizer
from sweepcp.scoring.lm_eval_loading import _weighting
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks, _merge, _rolling_bits, _Scores
from sweepcp.scoring.scorecard import ItemScores

CHOICES = ["red", "green", "blue", "white"]
CONTEXT = 64


def model() -> LlamaForCausalLM:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and the tokens `ab`, `abc`, `x y` and `: b`, of which two span spaces."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("ab", "c"), ("x", "Ġ"), ("xĠ", "y"), (":", "Ġ"), (":Ġ", "b")]
    symbols = [*alphabet, *("".join(merge) for merge in merges)]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def make_tasks(
    folder: Path,
    items: list[dict[str, Any]],
    *,
    bytewise: bool = True,
    precision: str = "fp32",
    scoring: ScoringMode = "exact",
    **config: Any,
) -> LmEvalTasks:
    (folder / "quiz.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    content = {
        "task": "quiz",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "quiz.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "q",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "quiz.yaml").write_text(json.dumps(content | config))
    member = MemberSpec(task="quiz", path=str(folder))
    tokenizer = byte_tokenizer() if bytewise else merging_tokenizer()
    members = [("general", "en", member)]
    return LmEvalTasks(
        members,  # type: ignore[arg-type]
        model(),
        tokenizer,
        generated_tasks=None,
        precision=precision,
        scoring=scoring,
    )


def by_unit(tasks: LmEvalTasks) -> dict[str, ItemScores]:
    return {scores.unit: scores for scores in tasks.score()}


def item(label: Any = 1, choices: Any = None, q: str = "Which?", **more: Any) -> dict[str, Any]:
    return {"q": q, "choices": CHOICES if choices is None else choices, "label": label} | more


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize(
    ("bad", "good", "key", "rule"),
    [
        (item(-1), item(), "doc_to_target", "an index from 0 to 3"),
        (item(4), item(), "doc_to_target", "an index from 0 to 3"),
        (item(1.5), item(1.0), "doc_to_target", "an index from 0 to 3"),
        (item(None), item(), "doc_to_target", "an index from 0 to 3"),
        (item("purple"), item("red"), "doc_to_target", "one of the choices"),
        (item("1"), item("red"), "doc_to_target", "one of the choices"),
        (item([0, 4]), item([0]), "doc_to_target", "an index from 0 to 3"),
        (item([-1]), item([0]), "doc_to_target", "an index from 0 to 3"),
        (item([]), item([0]), "doc_to_target", ""),
        (item(0, ["a", ""]), item(), "doc_to_choice.1", "at least one character"),
        (item(0, []), item(), "doc_to_choice", "at least one answer"),
        (item(0, ["a", "b" * CONTEXT]), item(), "an answer", f"at most {CONTEXT} tokens"),
    ],
)
def test_an_item_without_a_right_answer_is_refused(
    tmp_path: Path, bad: Any, good: Any, key: str, rule: str, place: int
):
    items = [good, good, good]
    items[place] = bad
    with pytest.raises(InvalidInput) as refused:
        make_tasks(tmp_path, items)
    error = refused.value
    assert error.file == "task quiz"
    assert error.key in (f"item {place}.{key}", "item 0.doc_to_target", "item 0.doc_to_choice")
    assert rule in error.rule
    assert error.fix


def test_labels_of_every_kind_find_the_right_answer(tmp_path: Path):
    for label, index in ((2, 2), ("blue", 2), (True, 1), ([3, 0], 3)):
        tasks = make_tasks(tmp_path, [item(label)] * 2)
        bits = by_unit(tasks)["bits per byte"]
        requests = tasks.members[0].loaded.tasks[0].instances[0]
        assert bits.amount[0] == -requests[index].resps[0][0] / math.log(2)
        assert bits.size[0] == len(f" {CHOICES[index]}")


def test_the_label_of_a_few_shot_example_is_checked(tmp_path: Path):
    shots: dict[str, Any] = {
        "num_fewshot": 1,
        "doc_to_choice": "{{choices}}",
        "fewshot_config": {"samples": [item(0), item(-1)]},
    }
    with pytest.raises(InvalidInput, match="few-shot example 1"):
        make_tasks(tmp_path, [item()] * 3, **shots)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"output_type": "loglikelihood", "doc_to_target": "q", "doc_to_choice": None}, "item 1"),
        ({"output_type": "generate_until", "metric_list": [{"metric": "exact_match"}]}, "item 0"),
        ({"doc_to_text": "{{q.missing.deeper}}"}, "item 0"),
    ],
)
def test_what_lm_eval_fails_on_is_invalid_input(tmp_path: Path, config: Any, key: str):
    with pytest.raises(InvalidInput) as refused:
        make_tasks(tmp_path, [item(), item(q=""), item()], **config)
    assert refused.value.file == "task quiz"
    assert refused.value.key.startswith(key)


def test_contexts_that_are_cut_are_counted(tmp_path: Path):
    items = [item(q="w" * length) for length in (40, 70, CONTEXT - 5, CONTEXT - 4)]
    tasks = make_tasks(tmp_path, items)
    assert tasks.notes == [
        "2 of 4 items of quiz lose the start of their context (the model takes 64 tokens)"
    ]
    generate: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "q",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 14},
        "metric_list": [{"metric": "exact_match"}],
    }
    tasks = make_tasks(tmp_path, [item(q="w" * length) for length in (49, 50, 51)], **generate)
    assert tasks.notes == [
        "1 of 3 items of quiz lose the start of their context (the model takes 64 tokens)"
    ]
    for length in ({}, {"max_gen_toks": CONTEXT}):
        generate["generation_kwargs"] = {"until": ["\n"]} | length
        with pytest.raises(InvalidInput, match="max_gen_toks"):
            make_tasks(tmp_path, [item()] * 2, **generate)
    generate["generation_kwargs"] = {"until": ["\n"], "max_gen_toks": CONTEXT - 1}
    assert make_tasks(tmp_path, [item(q="w")] * 2, **generate).notes == []


@torch.no_grad()
def bits_of(tokens: list[int], scored: int) -> float:
    """Return the bits of the last tokens of a sequence."""
    log_probabilities = model()(torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(-1)
    total = sum(float(log_probabilities[i, tokens[i]]) for i in range(-scored, 0))
    return -total / math.log(2)


def test_a_token_across_the_joint_covers_the_bytes_that_it_is_divided_by(tmp_path: Path):
    """lm-eval scores `c` of `abc` after `ab`, and nothing of `x y` after `x`."""
    tokenizer = merging_tokenizer()
    items = [
        item(0, [" bc", " d"], q="a:"),  # lm-eval scores `c` after `a:`; the token is `: b`
        item(0, ["c", "d"], q="zab"),  # nothing is left of `abc` after `z`, `ab`
        item(1, [" z", " yes"], q="x"),  # no token spans the joint of `x` and ` z`
        item(0, [" one", " two"], q="clean"),
    ]
    scores = by_unit(make_tasks(tmp_path, items, bytewise=False, target_delimiter=""))
    bits = scores["bits per byte"]
    expected = [("a", ": bc"), ("z", "abc"), ("", "x yes"), ("clean", " one")]
    for index, (given, scored) in enumerate(expected):
        context = tokenizer(given)["input_ids"] if given else [tokenizer.bos_token_id]
        answer = tokenizer(scored)["input_ids"]
        assert bits.size[index] == len(scored)
        assert bits.amount[index] == pytest.approx(bits_of(context + answer, len(answer)), rel=1e-5)


def test_answers_of_an_item_are_compared_from_the_same_place(tmp_path: Path):
    """Where lm-eval fails because an answer has no token, all are scored with the same start."""
    tokenizer = merging_tokenizer()
    tasks = make_tasks(
        tmp_path, [item(0, ["c", "d"], q="zab")] * 2, bytewise=False, target_delimiter=""
    )
    tasks.score()
    requests = tasks.members[0].loaded.tasks[0].instances[0]
    for request, answer in zip(requests, ("abc", "abd"), strict=True):
        ids = tokenizer(answer)["input_ids"]
        bits = bits_of(tokenizer("z")["input_ids"] + ids, len(ids))
        assert -request.resps[0][0] / math.log(2) == pytest.approx(bits, rel=1e-5)


@torch.no_grad()
def test_log_probabilities_under_bf16_are_computed_in_fp32(tmp_path: Path):
    tasks = make_tasks(tmp_path, [item(1, ["a", "b"])] * 2, precision="bf16", target_delimiter="")
    bits = by_unit(tasks)["bits per byte"]
    tokens = byte_tokenizer()("Which?b")["input_ids"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model()(torch.tensor([tokens[:-1]])).logits[0, -1]
    assert logits.dtype == torch.bfloat16
    nats = float(logits.float().log_softmax(-1)[tokens[-1]])
    assert bits.amount[0] == pytest.approx(-nats / math.log(2), rel=1e-6)
    assert nats != pytest.approx(float(logits.log_softmax(-1)[tokens[-1]]), rel=1e-6)


def test_a_task_that_measures_nothing_known_is_refused(tmp_path: Path):
    generate: dict[str, Any] = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "q",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 2},
        "metric_list": [{"metric": "ter", "aggregation": "ter"}],
    }
    with pytest.raises(InvalidInput, match="acc, exact_match"):
        make_tasks(tmp_path, [item()] * 2, **generate)


@pytest.mark.parametrize(("by_size", "value"), [(None, 1.0), (True, 5 / 3), (False, 4 / 3)])
def test_a_group_is_weighted_as_it_states(by_size: bool | None, value: float):
    """Tasks of 3 and 1 items, of 3 and 9 bytes, at 2 and 2 / 3 bits per byte."""
    three = _Scores(document=["a", "b", "c"], amount=[2.0, 2.0, 2.0], size=[1.0, 1.0, 1.0])
    one = _Scores(document=["d"], amount=[6.0], size=[9.0])
    merged = _merge([three, one], by_size)
    assert sum(merged.amount) / sum(merged.size) == pytest.approx(value)
    assert merged.document == ["a", "b", "c", "d"]


def test_the_weighting_of_a_group_is_that_of_the_metric_that_is_recorded():
    def config(metric: str, by_size: bool) -> SimpleNamespace:
        return SimpleNamespace(metric=metric, weight_by_size=by_size)

    group = SimpleNamespace(aggregate_metric_list=[config("acc_norm", True), config("acc", False)])
    assert _weighting(group) == {
        "bits per byte": True,
        "accuracy": False,
        "normalised accuracy": True,
    }
    assert _weighting(SimpleNamespace(aggregate_metric_list=None)) == {}
    assert _weighting(None) == {}


def test_scores_of_a_task_are_those_of_its_member(tmp_path: Path):
    items = [item(0, ["größe", "x"]), item(1), item(1, q="Who?")]
    tasks = make_tasks(tmp_path, items)
    member = tasks.members[0]
    member.role, member.language = "domain", "fr"
    member.spec = member.spec.model_copy(update={"weight": 2.5})
    for scores in tasks.score():
        assert (scores.name, scores.role, scores.language) == ("quiz", "domain", "fr")
        assert scores.weight == 2.5
        assert scores.document == member.loaded.tasks[0].documents
        assert len(set(scores.document)) == 3
    assert by_unit(tasks)["bits per byte"].size == (8.0, 6.0, 6.0)


def test_a_model_that_has_changed_is_scored_anew(tmp_path: Path):
    tasks = make_tasks(tmp_path, [item(1), item(2)])
    before = by_unit(tasks)["bits per byte"].amount
    with torch.no_grad():
        tasks.model.lm_head.weight.mul_(-1)
    changed = by_unit(tasks)["bits per byte"].amount
    assert max(abs(a - b) for a, b in zip(before, changed, strict=True)) > 1
    with torch.no_grad():
        tasks.model.lm_head.weight.mul_(-1)
    assert by_unit(tasks)["bits per byte"].amount == before


def test_other_right_answers_to_the_same_prompts_are_other_items(tmp_path: Path):
    first, second = (make_tasks(tmp_path, [item(label)] * 8) for label in (1, 2))
    assert first.prompts == second.prompts
    assert first.items != second.items
    assert first.items == make_tasks(tmp_path, [item(1)] * 8).items


def test_rolling_bits_are_divided_by_the_bytes_that_the_task_counts():
    task = SimpleNamespace(doc_to_target=lambda doc: doc, count_bytes=lambda text: len(text) + 7)
    instance = SimpleNamespace(doc="abc", resps=[-4 * math.log(2)])
    assert _rolling_bits(task, instance, {}) == pytest.approx((4, 10))
    counted = {"bits_per_byte": (-3 * math.log(2), 5)}
    assert _rolling_bits(task, instance, counted) == pytest.approx((3, 5))
