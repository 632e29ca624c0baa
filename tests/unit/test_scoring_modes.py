"""Tasks in exact and in shared mode: encoding, scores, and what scoring leaves unchanged."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from sweepcp.config.types import ScoringMode
from sweepcp.models.loading import byte_tokenizer
from sweepcp.scoring.answer_model import AnswerModel
from sweepcp.scoring.lm_eval_answers import encode_item
from sweepcp.scoring.lm_eval_encoding import KEPT_TEXTS, RequestEncoder
from sweepcp.scoring.lm_eval_tasks import LmEvalTasks
from sweepcp.scoring.scorecard import ItemScores, compare_with_base
from tests.unit.test_task_items import CONTEXT, item, make_tasks, merging_tokenizer, model

ITEMS = [
    item(0, ["b ab", "b abc", "b", "y"], q="x"),
    item(1, ["c", "d"], q="ab"),
    item(2, ["x y", "x yy", "yx"], q="x y:"),
    item(1, ["ab", "abc"], q="a" * (CONTEXT + 3)),
    *(item(n % 3, ["red", "green", "grey"], q=f"colour {n}") for n in range(20)),
]


def score_in(mode: ScoringMode, folder: Path, **changes: Any) -> tuple[LmEvalTasks, Any]:
    folder.mkdir()
    tasks = make_tasks(folder, ITEMS, scoring=mode, **changes)
    return tasks, {scores.unit: scores for scores in tasks.score()}


@pytest.mark.parametrize("bytewise", [True, False])
def test_shared_contexts_give_the_scores_of_exact_mode(tmp_path: Path, bytewise: bool):
    """The second tokenizer merges across the joint of context and answer."""
    metrics = {"metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}], "bytewise": bytewise}
    exact_tasks, exact = score_in("exact", tmp_path / "exact", **metrics)
    shared_tasks, shared = score_in("shared", tmp_path / "shared", **metrics)
    assert (exact_tasks.scoring, shared_tasks.scoring) == ("exact", "shared")
    assert (
        exact.keys()
        == shared.keys()
        == {
            "bits per byte",
            "accuracy",
            "normalised accuracy",
        }
    )
    for unit, scores in exact.items():
        assert (scores.scoring, shared[unit].scoring) == ("exact", "shared")
        assert shared[unit].size == scores.size
        if unit == "bits per byte":
            assert shared[unit].amount == pytest.approx(scores.amount, abs=1e-4)
            assert shared[unit].amount != scores.amount
        else:
            assert shared[unit].amount == scores.amount
    assert bytewise or any(answer.gold for answer in shared_tasks.members[0].answers[0])


def test_a_member_whose_contexts_cannot_be_shared_is_scored_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(AnswerModel, "obstacle", lambda *_: "a reason")
    tasks, scores = score_in("shared", tmp_path / "shared")
    assert tasks.scoring == "shared; exact: quiz (a reason)"
    _, exact = score_in("exact", tmp_path / "exact")
    assert scores == exact
    assert scores["accuracy"].scoring == "exact"


def test_the_scorecard_records_the_mode_of_the_trial():
    def members(mode: ScoringMode | None) -> list[ItemScores]:
        common: Any = {"language": "en", "weight": 1, "unit": "bits per byte"}
        documents = tuple(f"{n:016x}" for n in range(8))
        values: Any = {"document": documents, "amount": (1.0,) * 8, "size": (1.0,) * 8}
        return [
            ItemScores(name=role, role=role, scoring=mode, **common, **values)
            for role in ("domain", "general")
        ]

    card = compare_with_base(trial=members("shared"), base=members("exact"))
    assert [member.scoring for member in card.report.members] == ["shared", "shared"]
    earlier = members("shared")[0].model_dump(exclude={"scoring"})
    assert ItemScores.model_validate(earlier).scoring is None


@pytest.mark.parametrize("mode", ["exact", "shared"])
def test_scoring_within_training_changes_no_later_loss(tmp_path: Path, mode: ScoringMode):
    tasks = make_tasks(tmp_path, ITEMS, scoring=mode)
    trained = tasks.model
    # Dropout draws random numbers, and only in training mode.
    trained.config.attention_dropout = 0.4
    for layer in trained.model.layers:
        layer.self_attn.attention_dropout = 0.4
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    batch = torch.arange(160).reshape(4, 40) * 7 % 256

    def losses(*, score: bool) -> list[float]:
        trained.load_state_dict(weights)
        trained.train()
        optimizer = torch.optim.AdamW(trained.parameters(), lr=0.01)
        torch.manual_seed(3)
        random.seed(3)
        measured = []
        for _ in range(4):
            loss = trained(batch, labels=batch).loss
            loss.backward()
            if score:
                tasks.score()
            optimizer.step()
            optimizer.zero_grad()
            measured.append(loss.item())
        return [*measured, random.random()]

    config = trained.config.to_dict()
    expected = losses(score=False)
    assert losses(score=True) == expected
    assert trained.config.to_dict() == config
    assert all(module.training for module in trained.modules())


def tokenizer_with_bos(folder: Path) -> PreTrainedTokenizerBase:
    """One that begins every text with BOS."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)

    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    file.write_text(json.dumps(content))
    made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    assert made.encode("a")[0] == 256
    return made


@pytest.mark.parametrize("kind", ["bytes", "merging", "bos"])
def test_requests_are_encoded_as_by_the_model_class_of_lm_eval(tmp_path: Path, kind: str):
    makers: dict[str, Any] = {
        "bytes": byte_tokenizer,
        "merging": merging_tokenizer,
        "bos": lambda: tokenizer_with_bos(tmp_path),
    }
    tokenizer = makers[kind]()
    causal: LlamaForCausalLM = model()
    stock = HFLM(pretrained=causal, tokenizer=makers[kind](), batch_size=32)
    ours = RequestEncoder(causal, tokenizer)
    for name in ("max_length", "max_gen_toks", "prefix_token_id", "backend"):
        assert getattr(ours, name) == getattr(stock, name), name
    assert ours.tokenizer.get_vocab() == stock.tokenizer.get_vocab()
    drawn = random.Random(0)
    texts = ["", "<s>", "<s> ab", " ", "x y", "é<|pad|>"]
    texts += ["".join(drawn.choices("abc xy:\n", k=drawn.randint(1, 9))) for _ in range(40)]
    for text in texts:
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == stock.tok_encode(text, special)
        for answer in drawn.choices(texts, k=6):
            if text:
                assert ours._encode_pair(text, answer) == stock._encode_pair(text, answer)


def test_a_context_is_encoded_once_for_its_answers(monkeypatch: pytest.MonkeyPatch):
    encoder = RequestEncoder(model(), byte_tokenizer())
    encoded: list[str] = []
    encode = encoder.tokenizer.encode

    def record(text: str, **options: Any) -> Any:
        encoded.append(text)
        return encode(text, **options)

    monkeypatch.setattr(encoder.tokenizer, "encode", record)
    item = encode_item(encoder, [("context", answer) for answer in (" a", " b", " c", " d")], 2)
    assert sorted(encoded) == ["context", *(f"context {letter}" for letter in "abcd")]
    assert item.requests[1].scored == byte_tokenizer().encode(" b")
    for number in range(2 * KEPT_TEXTS):
        assert encoder.tok_encode(f"{number}") == byte_tokenizer().encode(f"{number}")
    assert len(encoder._kept) <= KEPT_TEXTS
