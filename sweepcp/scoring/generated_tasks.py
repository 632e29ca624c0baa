"""lm-eval tasks that are generated from held-out text: cloze and word-swap items.

Items are drawn from the documents in turn, because items of one document are not independent.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sweepcp.config.suites import MIN_HELD_OUT, MemberSpec, Suites
from sweepcp.data.token_store import TokenStore
from sweepcp.errors import InvalidInput
from sweepcp.scoring.scorecard import document_id
from sweepcp.util.files import cache_dir, write_text
from sweepcp.util.json_values import digest

FORMAT = 3
"""Version of the generated items; part of their cache key."""
CONTEXT = 64
"""Characters of text before the gap of an item."""
MAX_SHARE = 1 / MIN_HELD_OUT
"""Most items of a task that are from one document."""
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
    key = [[m.name, m.items, _content_of(stores[str(m.source)])] for m in members]
    folder = cache_dir() / "tasks" / digest([FORMAT, key])
    for member in members:
        if not (folder / f"{member.name}.yaml").exists():
            _write_task(folder, member, stores[str(member.source)])
    return folder


def _content_of(store: TokenStore) -> str:
    """Return the SHA-256 of the held-out text of a store, which decides the items."""
    return str(store.meta["sha256"]["held_out.jsonl"])


def _write_task(folder: Path, member: MemberSpec, store: TokenStore) -> None:
    texts = list(store.held_out_documents())
    generate = _cloze_generator(texts) if member.cloze else _swap_items
    # Equal documents have one id: their items are drawn as those of one document.
    candidates = {document_id(text): list(generate(text)) for text in texts}
    items = draw_items(candidates, count=member.items or 0)
    if len(items) < (member.items or 0):
        raise _too_few_items(member, [len(of_document) for of_document in candidates.values()])
    data = folder / f"{member.name}.jsonl"
    write_text(data, "".join(json.dumps(item) + "\n" for item in items))
    # The YAML file is what marks the task as complete, so it is written after its data.
    write_text(folder / f"{member.name}.yaml", yaml.safe_dump(choice_task(member.name, data)))


def draw_items(
    candidates: Mapping[str, Iterable[dict[str, Any]]], *, count: int
) -> list[dict[str, Any]]:
    """Draw items from documents in turn, in the order of hashes.

    Args:
        candidates: The id of each document → the items that can be made of it.
        count: Number of items to draw.

    Returns:
        Each item with the id of its `document`; at most `MAX_SHARE` of `count` are from one
        document, so there may be fewer than `count`.
    """
    drawn = []
    for document in sorted(candidates):
        in_order = sorted(candidates[document], key=lambda item: digest(item, 64))
        for turn, item in enumerate(in_order[: math.ceil(MAX_SHARE * count)]):
            drawn.append((turn, item | {"document": document}))
    drawn.sort(key=lambda entry: entry[0])
    return [item for _, item in drawn[:count]]


def _too_few_items(member: MemberSpec, candidates: list[int]) -> InvalidInput:
    """Return the error of a member that asks for more items than its documents give.

    Args:
        member: A `cloze` or `swap` member.
        candidates: Number of items that can be made of each document.
    """
    fix = f"lower it, or raise held_out of {member.source}"
    possible = sum(candidates)
    # The most items of one document depend on the number of items that is asked for.
    while possible > (capped := sum(min(n, math.ceil(MAX_SHARE * possible)) for n in candidates)):
        possible = capped
    rule = f"at most {possible}, the items that the held-out text of {member.source} gives with at "
    rule += f"most 1 in {MIN_HELD_OUT} of one document"
    if not possible:
        kind = "cloze" if member.cloze else "swap"
        rule = f"{kind} needs words separated by spaces; the held-out text of {member.source} has "
        rule += "too few"
        fix = f"remove {kind}, and score the text with `held_out: {member.source}`"
    return InvalidInput(
        file="suites", key=f"{member.name}.items", found=member.items, rule=rule, fix=fix
    )


def choice_task(name: str, data: Path) -> dict[str, Any]:
    """Return the task file of items with `context`, `choices` and the index of the right one."""
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


def _cloze_generator(texts: list[str]) -> Callable[[str], Iterator[dict[str, Any]]]:
    """Return a function that generates the cloze items of one of the texts."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(r"[^\W\d_]{4,}", text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    rank = {word: i for i, word in enumerate(ranked)}

    def cloze_items(text: str) -> Iterator[dict[str, Any]]:
        """Generate an item for each word of four letters: it and three of like frequency."""
        for match in re.finditer(r"(?<=\S) ([^\W\d_]{4,})\b", text):
            context, gold = _context_before(text, match.start()), match.group(1)
            if context is None or counts[gold] < 2:
                continue
            first, last = max(0, rank[gold] - RANK_WINDOW), rank[gold] + RANK_WINDOW + 1
            near = [word for word in ranked[first:last] if word.lower() != gold.lower()]
            if len(near) >= 3:
                wrong = _in_hash_order(near, prefix=context)[:3]
                yield _choice_item(context, [f" {word}" for word in (gold, *wrong)])

    return cloze_items


def _swap_items(text: str) -> Iterator[dict[str, Any]]:
    """Generate an item for each run of five words in a line: it, and with its first two swapped."""
    for match in re.finditer(r"(?<=\S)(?= (\S+) (\S+)( \S+ \S+ \S+))", text):
        first, second, rest = match.groups()
        context = _context_before(text, match.start())
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
