"""lm-eval tasks that are generated from held-out text: cloze and word-swap items."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sweepcp.config.suites import MemberSpec, Suites
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.util.files import cache_dir, write_text
from sweepcp.util.json_values import digest

FORMAT = 2
"""Version of the generated items; part of their cache key."""
CONTEXT = 64
"""Characters of text before the gap of an item."""
RANK_WINDOW = 12
"""Wrong words of a cloze item are at most so many places from the right one by frequency."""


def generate_tasks(suites: Suites, stores: Mapping[str, TokenStore]) -> Path | None:
    """Write the suites' generated tasks as lm-eval YAML and JSONL, unless the cache has them.

    Args:
        suites: Its `cloze` and `swap` members are generated.
        stores: Source → its token store.

    Returns:
        The folder of the tasks in the cache, or None if the suites have no such member.

    Raises:
        InvalidInput: The held-out text of a source yields fewer items than a member asks for.
    """
    members = [member for _, member in suites.members if member.cloze or member.swap]
    if not members:
        return None
    key = [[m.name, m.items, stores[str(m.source)].path.name] for m in members]
    folder = cache_dir() / "tasks" / digest([FORMAT, key])
    for member in members:
        if not (folder / f"{member.name}.yaml").exists():
            _write_task(folder, member, stores[str(member.source)])
    return folder


def _write_task(folder: Path, member: MemberSpec, store: TokenStore) -> None:
    documents = list(store.held_out_documents())
    candidates = _cloze_items(documents) if member.cloze else _swap_items(documents)
    items = sorted(candidates, key=lambda item: digest(item, 64))[: member.items]
    if len(items) < (member.items or 0):
        raise InvalidInput(
            file="suites",
            key=f"{member.name}.items",
            found=member.items,
            rule=f"at most {len(items)}, the items that the held-out text of {member.source} has",
            fix=f"lower it, or raise held_out of {member.source}",
        )
    data = folder / f"{member.name}.jsonl"
    write_text(data, "".join(json.dumps(item) + "\n" for item in items))
    # The YAML file is what marks the task as complete, so it is written after its data.
    write_text(folder / f"{member.name}.yaml", yaml.safe_dump(_task_config(member.name, data)))


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


def _cloze_items(documents: list[str]) -> Iterator[dict[str, Any]]:
    """Generate an item for each word of four or more letters: it and three of like frequency."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(re.findall(r"[^\W\d_]{4,}", document))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    rank = {word: i for i, word in enumerate(ranked)}
    for document in documents:
        for match in re.finditer(r"(?<=\S) ([^\W\d_]{4,})\b", document):
            context, gold = _context_before(document, match.start()), match.group(1)
            if context is None or counts[gold] < 2:
                continue
            first, last = max(0, rank[gold] - RANK_WINDOW), rank[gold] + RANK_WINDOW + 1
            near = [word for word in ranked[first:last] if word.lower() != gold.lower()]
            if len(near) >= 3:
                wrong = _in_hash_order(near, prefix=context)[:3]
                yield _choice_item(context, [f" {word}" for word in (gold, *wrong)])


def _swap_items(documents: list[str]) -> Iterator[dict[str, Any]]:
    """Generate an item for each run of five words in a line: it, and with its first two swapped."""
    for document in documents:
        for match in re.finditer(r"(?<=\S)(?= (\S+) (\S+)( \S+ \S+ \S+))", document):
            first, second, rest = match.groups()
            context = _context_before(document, match.start())
            if context is not None and first != second:
                choices = [f" {first} {second}{rest}", f" {second} {first}{rest}"]
                yield _choice_item(context, choices)


def _context_before(document: str, position: int) -> str | None:
    """Return the text before a gap from the start of a word, or None if there is too little."""
    if position < CONTEXT:
        return None
    before = document[position - CONTEXT : position]
    if len(before.split()) <= 3:
        return None
    # The first word may be cut in half. More than three words are left, so there is a space.
    return before[re.search(r"\s|$", before).end() :]  # type: ignore[union-attr]


def _choice_item(context: str, choices: list[str]) -> dict[str, Any]:
    """Return a multiple-choice item, given the right choice first, in an order set by hashes."""
    order = sorted(choices, key=lambda choice: _sha256(choice + context))
    return {"context": context, "choices": order, "gold": order.index(choices[0])}


def _in_hash_order(words: list[str], *, prefix: str) -> list[str]:
    return sorted(words, key=lambda word: _sha256(prefix + word))


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
