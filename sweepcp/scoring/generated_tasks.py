"""What a model is scored on: held-out texts and lm-eval tasks, for the domain and for the general side."""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.util.files import cache_dir, write_text
from sweepcp.util.json_values import digest

FORMAT = 2
CONTEXT = 64
"""Characters before the gap of a made item."""


def held_out_sample(store: TokenStore, member: MemberSpec) -> list[str]:
    """The held-out documents that a member scores, whole: as many as it asks for, drawn by hash."""
    texts = list(store.held_out_texts())
    if member.items is not None:
        texts = heapq.nsmallest(
            member.items, texts, key=lambda text: hashlib.sha256(text.encode()).digest()
        )
    return texts


def generate_tasks(suites: Suites, stores: dict[str, TokenStore]) -> Path | None:
    """Write the suites' made tasks as lm-eval YAML and JSONL into the cache; their folder, None if there are none.

    Raises `BadInput` when a source's held-out text does not hold enough items.
    """
    made = [m for _, m in suites.members if m.cloze or m.swap]
    if not made:
        return None
    key = [[m.name, m.items, stores[str(m.source)].path.name] for m in made]
    folder = cache_dir() / "tasks" / digest([FORMAT, key])
    for member in made:
        file = folder / f"{member.name}.yaml"
        if file.exists():
            continue
        texts = list(stores[str(member.source)].held_out_texts())
        candidates = _clozes(texts) if member.cloze else _swaps(texts)
        items = sorted(candidates, key=lambda item: digest(item, 64))[: member.items]
        if len(items) < (member.items or 0):
            rule = f"at most the {len(items)} items that the held-out text of {member.source} has"
            raise InvalidInput(
                file="suites",
                key=f"{member.name}.items",
                found=member.items,
                rule=rule,
                fix="lower it, or raise held_out",
            )
        data = folder / f"{member.name}.jsonl"
        write_text(data, "".join(json.dumps(item) + "\n" for item in items))
        write_text(file, yaml.safe_dump(_task_config(member.name, data)))
    return folder


def _task_config(name: str, data: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _clozes(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Every word of four or more letters after a space, with three others that are about as frequent."""
    counts = Counter(word for text in texts for word in re.findall(r"[^\W\d_]{4,}", text))
    ranked = sorted(counts, key=lambda w: (-counts[w], w))
    rank = {word: i for i, word in enumerate(ranked)}
    for text in texts:
        for match in re.finditer(r"(?<=\S) ([^\W\d_]{4,})\b", text):
            context, gold = _context_before(text, match.start()), match.group(1)
            near = [
                w
                for w in ranked[max(0, rank[gold] - 12) : rank[gold] + 13]
                if w.lower() != gold.lower()
            ]
            if context is None or counts[gold] < 2 or len(near) < 3:
                continue
            others = sorted(near, key=lambda w: hashlib.sha256((context + w).encode()).digest())[:3]
            yield _item(context, [f" {w}" for w in (gold, *others)])


def _swaps(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Every run of five words within a line, against itself with its first two words swapped."""
    for text in texts:
        for match in re.finditer(r"(?<=\S)(?= (\S+) (\S+)( \S+ \S+ \S+))", text):
            first, second, rest = match.groups()
            context = _context_before(text, match.start())
            if context is not None and first != second:
                yield _item(context, [f" {first} {second}{rest}", f" {second} {first}{rest}"])


def _context_before(text: str, at: int) -> str | None:
    """The text before a gap, from the start of a word; None near the start of a document."""
    if at < CONTEXT:
        return None
    before = text[at - CONTEXT : at]
    return before[re.search(r"\s|$", before).end() :] if len(before.split()) > 3 else None  # type: ignore[union-attr]


def _item(context: str, choices: list[str]) -> dict[str, Any]:
    """A multiple-choice item whose first choice is right, in an order drawn by its hash."""
    order = sorted(choices, key=lambda c: hashlib.sha256((c + context).encode()).digest())
    return {"context": context, "choices": order, "gold": order.index(choices[0])}
