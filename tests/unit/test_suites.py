"""Suites, and the lm-eval tasks that are generated from held-out text."""

import json
from pathlib import Path
from typing import Any

import pytest

from sweepcp.config.suites import Suites
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.scoring.generated_tasks import generate_tasks

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


def store(folder: Path) -> TokenStore:
    """Held-out documents of words that all occur about as often."""
    documents = []
    for i in range(12):
        words = [WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(60)]
        documents.append(" ".join(words))
    folder.mkdir(parents=True)
    (folder / "held_out.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
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
        ({"task": "piqa", "chars": 10}, "chars belongs to held_out"),
    ],
)
def test_impossible_members_are_refused(member: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Suites.model_validate_json(json.dumps({"domain": [member], "general": [{"task": "piqa"}]}))
