"""Suites, and the lm-eval tasks that are generated from held-out text."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.scoring.generated_tasks import draw_items, generate_tasks
from sweepcp.scoring.lm_eval_items import gold_index
from sweepcp.scoring.lm_eval_loading import MemberLoader
from sweepcp.scoring.scorecard import document_id
from tests.make import jsonl, update_store, write_store

WORDS = [
    "harbour",
    "lantern",
    "copper",
    "meadow",
    "thunder",
    "velvet",
    "orchard",
    "pepper",
    "window",
    "garden",
    "silver",
    "marble",
]


ABCDE = "".join(letter * 8 for letter in "abcde")


def store(folder: Path, documents: list[str] | None = None) -> TokenStore:
    """Held-out documents of words that all occur about as often."""
    if documents is None:
        documents = []
        for i in range(12):
            words = [WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(60)]
            documents.append(" ".join(words))
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_store(folder.parent, folder.name, [])
    jsonl(folder / "held_out.jsonl", documents)
    update_store(folder, {})
    return TokenStore(folder, "docs")


def suites(items: int = 20) -> Suites:
    content = {
        "domain": [{"cloze": "docs", "items": items}],
        "general": [{"swap": "docs", "items": items}],
    }
    return Suites.model_validate_json(json.dumps(content))


def read_items(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_generated_items_continue_the_document_they_come_from(tmp_path: Path):
    source = store(tmp_path / "store")
    folder = generate_tasks(suites(), {"docs": source})
    assert folder is not None
    held_out = "\n".join(source.held_out_documents())
    for name, choices in (("cloze_docs", 4), ("swap_docs", 2)):
        items = read_items(folder, name)
        assert len(items) == 20
        for item in items:
            answers = item["choices"]
            assert len(set(answers)) == choices
            assert all(answer.startswith(" ") for answer in answers)
            assert item["context"] + answers[item["gold"]] in held_out
    assert len({item["gold"] for item in read_items(folder, "cloze_docs")}) > 1


def test_wrong_words_of_a_cloze_item_are_of_like_frequency(tmp_path: Path):
    """Of 40 words the first occurs 40 times, the last once; one is in capitals, too."""
    letters = zip("bcdf" * 10, "aeiou" * 8, "lmnprstv" * 5, ABCDE, strict=True)
    words = ["".join(word) for word in letters]
    assert len(set(words)) == 40
    bag = [word for n, word in enumerate(words) for _ in range(40 - n)]
    bag += [words[5].upper()] * 30 + ["the"] * 25
    order = np.random.default_rng(1).permutation(len(bag))
    texts = [" ".join(bag[i] for i in order[part::8]) for part in range(8)]
    content = {"domain": [{"cloze": "docs", "items": 300}], "general": [{"task": "piqa"}]}
    suite = Suites.model_validate_json(json.dumps(content))
    folder = generate_tasks(suite, {"docs": store(tmp_path / "store", texts)})
    assert folder is not None
    counts = Counter(word for word in bag if word != "the")
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    distances = []
    for item in read_items(folder, "cloze_docs"):
        gold, *wrong = (word.strip() for word in sorted_choices(item))
        assert counts[gold] > 1
        assert gold.lower() not in [word.lower() for word in wrong]
        distances += [ranked.index(word) - ranked.index(gold) for word in wrong]
    assert (min(distances), max(distances)) == (-12, 12)
    # Not the nearest ones only, and as many more frequent as rarer ones.
    assert np.mean(np.abs(distances) > 3) > 0.5
    assert abs(np.mean(distances)) < 2


def test_requests_of_generated_items_are_text_of_their_documents(tmp_path: Path):
    source = store(tmp_path / "store")
    folder = generate_tasks(suites(), {"docs": source})
    texts = {document_id(text): text for text in source.held_out_documents()}
    for _, member in suites().members:
        (task,) = MemberLoader(torch.device("cpu")).load(member, str(folder)).tasks
        assert len(task.instances) == 20
        for document, requests in zip(task.documents, task.instances, strict=True):
            right = requests[gold_index(task.task, requests[0].doc)]
            assert "".join(right.args) in texts[document]


def sorted_choices(item: dict[str, Any]) -> list[str]:
    """The right choice, then the others."""
    choices = list(item["choices"])
    return [choices.pop(item["gold"]), *choices]


def test_the_gap_of_an_item_is_behind_64_characters_of_whole_words(tmp_path: Path):
    source = store(tmp_path / "store")
    folder = generate_tasks(suites(), {"docs": source})
    assert folder is not None
    for name in ("cloze_docs", "swap_docs"):
        for item in read_items(folder, name):
            assert 48 < len(item["context"]) < 64
            assert set(item["context"].split()) <= set(WORDS)
    for item in read_items(folder, "swap_docs"):
        right, swapped = (choice.split() for choice in sorted_choices(item))
        assert len(right) == 5
        assert swapped == [right[1], right[0], *right[2:]]


def test_items_are_drawn_from_the_documents_in_turn(tmp_path: Path):
    source = store(tmp_path / "store")
    folder = generate_tasks(suites(30), {"docs": source})
    assert folder is not None
    texts = {document_id(text): text for text in source.held_out_documents()}
    for name in ("cloze_docs", "swap_docs"):
        items = read_items(folder, name)
        for item in items:
            assert item["context"] in texts[item["document"]]
        counts = Counter(item["document"] for item in items)
        assert sorted(counts.values()) == [2] * 6 + [3] * 6


def test_no_document_gives_more_than_its_share_of_the_items():
    documents = {f"{i:016x}": [{"context": f"{i} {j}"} for j in range(3)] for i in range(20)}
    documents["f" * 16] = [{"context": f"long {j}"} for j in range(1000)]
    items = draw_items(documents, count=64)
    counts = Counter(item["document"] for item in items)
    assert len(items) == 64
    assert counts["f" * 16] == 4
    # Of all places of the document, not its first ones.
    drawn = [int(item["context"].split()[1]) for item in items if item["document"] == "f" * 16]
    assert max(drawn) > 100
    assert draw_items(documents, count=80) == draw_items(documents, count=80)
    assert Counter(item["document"] for item in draw_items(documents, count=80))["f" * 16] == 10


def test_the_number_of_items_that_the_error_names_is_possible(tmp_path: Path):
    texts = list(store(tmp_path / "even").held_out_documents())
    source = store(tmp_path / "uneven", [" ".join(texts), *(text[:100] for text in texts)])

    def cloze(items: int) -> Path | None:
        content = {"domain": [{"cloze": "docs", "items": items}], "general": [{"task": "piqa"}]}
        return generate_tasks(Suites.model_validate_json(json.dumps(content)), {"docs": source})

    with pytest.raises(InvalidInput) as refused:
        cloze(5000)
    possible = int(refused.value.rule.split(",")[0].removeprefix("at most "))
    assert 4 <= possible < 100
    assert cloze(possible) is not None
    with pytest.raises(InvalidInput):
        cloze(possible + 1)


def test_generated_tasks_depend_on_the_held_out_text_alone(tmp_path: Path):
    first = generate_tasks(suites(), {"docs": store(tmp_path / "one")})
    assert generate_tasks(suites(), {"docs": store(tmp_path / "two")}) == first
    other = store(tmp_path / "three", list(store(tmp_path / "four").held_out_documents())[1:])
    assert generate_tasks(suites(), {"docs": other}) != first
    assert generate_tasks(suites(21), {"docs": store(tmp_path / "five")}) != first


def test_text_without_spaces_has_no_cloze_items(tmp_path: Path):
    chinese = store(tmp_path / "store", ["价格合理，质量很好。" * 40 for _ in range(12)])
    with pytest.raises(InvalidInput, match="cloze needs words separated by spaces"):
        generate_tasks(suites(), {"docs": chinese})


def test_tasks_are_generated_once(tmp_path: Path):
    source = store(tmp_path / "store")
    first = generate_tasks(suites(), {"docs": source})
    assert first is not None
    before = (first / "cloze_docs.jsonl").stat().st_mtime_ns
    assert generate_tasks(suites(), {"docs": source}) == first
    assert (first / "cloze_docs.jsonl").stat().st_mtime_ns == before


def test_more_items_than_the_held_out_text_has_are_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="lower it, or raise held_out"):
        generate_tasks(suites(5000), {"docs": store(tmp_path / "store")})


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({}, "exactly one of"),
        ({"cloze": "docs"}, "need a number of items"),
        ({"held_out": "docs", "few_shot": 5}, "few_shot belongs to a task"),
        ({"held_out": "docs", "few_shot": 0}, "few_shot belongs to a task"),
        ({"task": "piqa", "chars": 10}, "chars belongs to held_out"),
    ],
)
def test_impossible_members_are_refused(member: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Suites.model_validate_json(json.dumps({"domain": [member], "general": [{"task": "piqa"}]}))


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({}, "exactly one of held_out, cloze, swap and task"),
        ({"held_out": "docs", "task": "arc_easy"}, "exactly one of held_out, cloze, swap and task"),
        ({"cloze": "docs"}, "cloze and swap need a number of items"),
        ({"swap": "docs"}, "cloze and swap need a number of items"),
        ({"task": "arc_easy", "chars": 10}, "chars belongs to held_out"),
        ({"held_out": "docs", "path": "tasks"}, "path belongs to a task"),
        ({"held_out": "docs", "few_shot": 0}, "few_shot belongs to a task"),
        ({"held_out": "docs", "items": 3}, "greater than or equal to 4"),
        ({"held_out": "docs", "weight": 0.0}, "greater than 0"),
    ],
)
def test_members_that_contradict_themselves_are_refused(member: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        MemberSpec.model_validate(member)


def test_a_member_is_in_the_suites_once_and_weighs_1_by_default():
    once, again = MemberSpec(held_out="docs"), MemberSpec(held_out="docs", weight=3.0)
    assert (once.weight, again.weight) == (1.0, 3.0)
    with pytest.raises(ValidationError, match="held_out_docs is in the suites twice"):
        Suites(domain=(once,), general=(again,))
