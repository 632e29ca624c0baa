import json
from pathlib import Path

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
    texts = [" ".join(WORDS[(i * 7 + j * (1 + i % 5)) % 12] for j in range(60)) for i in range(12)]
    folder.mkdir(parents=True)
    (folder / "held_out.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    return TokenStore(folder, "docs")


def suites(n: int = 20) -> Suites:
    content = {"domain": [{"cloze": "docs", "items": n}], "general": [{"swap": "docs", "items": n}]}
    return Suites.model_validate_json(json.dumps(content))


def load(folder: Path, name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_made_items_continue_the_text_they_come_from(tmp_path: Path):
    source = store(tmp_path / "store")
    folder = generate_tasks(suites(), {"docs": source})
    assert folder is not None
    texts = list(source.held_out_documents())
    for name, choices in (("cloze_docs", 4), ("swap_docs", 2)):
        items = load(folder, name)
        assert len(items) == 20
        for item in items:
            answers: list[str] = item["choices"]  # type: ignore[assignment]
            assert len(set(answers)) == choices
            right = [a for a in answers if any(f"{item['context']}{a}" in t for t in texts)]
            assert answers[item["gold"]] in right  # type: ignore[index]
            assert all(a.startswith(" ") for a in answers)
    gold = [i["gold"] for i in load(folder, "cloze_docs")]
    assert len(set(gold)) > 1


def test_tasks_are_made_once_and_the_same(tmp_path: Path):
    source = store(tmp_path / "store")
    first = generate_tasks(suites(), {"docs": source})
    assert first is not None
    before = (first / "cloze_docs.jsonl").stat().st_mtime_ns
    assert generate_tasks(suites(), {"docs": source}) == first
    assert (first / "cloze_docs.jsonl").stat().st_mtime_ns == before


def test_more_items_than_the_text_holds_are_refused(tmp_path: Path):
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
