"""What a model is scored on: held-out texts and lm-eval tasks, for the domain and for the general side."""

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from sweepcp.data.store import Store
from sweepcp.errors import BadInput
from sweepcp.files import cache_dir, digest, write_text
from sweepcp.recipe import Positive, Role
from sweepcp.schema import Schema

FORMAT = 2
CONTEXT = 64
"""Characters before the gap of a made item."""
MAKERS = ("cloze", "swap")
MIN_HELD_OUT = 8
"""Fewer documents than this leave one half without an error bar too often."""


class MemberSpec(Schema):
    """One member of a suite: exactly one of `held_out`, `cloze`, `swap` and `task`."""

    held_out: str | None = None
    """A source: bits per byte of its held-out text."""
    cloze: str | None = None
    """A source: the next word among four of like frequency, from its held-out text (a local lm-eval task)."""
    swap: str | None = None
    """A source: the text as it stands, or with two adjacent words swapped (a local lm-eval task)."""
    task: str | None = None
    """An lm-eval task, tag or group."""
    path: str | None = None
    """A folder of lm-eval task files for `task`, relative to the experiment file; by default lm-eval's own tasks."""
    allow_code: bool = False
    """Whether the task files in `path` may run Python (`!function`)."""
    items: Annotated[int, Field(ge=4)] | None = None
    """How many items: documents of `held_out` and items of `cloze` and `swap`, drawn by hash; the first ones of each
    `task`. By default all."""
    chars: Annotated[int, Field(ge=1)] | None = None
    """Score the first characters of each `held_out` document only; by default all."""
    few_shot: Annotated[int, Field(ge=0)] = 0
    language: str | None = None
    """By default the language of the source, or `en`."""
    weight: Positive = 1.0
    """In the mean that is the suite's scalar."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(x is not None for x in (self.held_out, self.cloze, self.swap, self.task)) != 1:
            raise ValueError("a member has exactly one of held_out, cloze, swap and task; fix: keep one a list item")
        if (self.cloze or self.swap) and self.items is None:
            raise ValueError("cloze and swap need a number of items; fix: add `items: 400`")
        if self.chars and not self.held_out:
            raise ValueError("chars belongs to held_out; fix: remove chars")
        for name, given in (("path", self.path), ("allow_code", self.allow_code), ("few_shot", self.few_shot)):
            if given and self.task is None:
                raise ValueError(f"{name} belongs to a task; fix: remove {name}")
        return self

    @property
    def source(self) -> str | None:
        """The source whose held-out text the member is made of."""
        return self.held_out or self.cloze or self.swap

    @property
    def name(self) -> str:
        """How tables call it; also the lm-eval name of a made task."""
        kind = next(k for k in ("held_out", *MAKERS, "task") if getattr(self, k))
        return str(self.task) if kind == "task" else f"{kind}_{self.source}"


class Suites(Schema):
    """The two suites. Each needs a continuous member: held-out text, or a task with gold answers to score."""

    domain: Annotated[tuple[MemberSpec, ...], Field(min_length=1)]
    general: Annotated[tuple[MemberSpec, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [m.name for _, m in self.members]
        twice = [n for n, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"{twice[0]} stands twice in the suites; fix: remove one, or use its weight")
        return self

    @property
    def members(self) -> list[tuple[Role, MemberSpec]]:
        roles: tuple[Literal["domain", "general"], ...] = ("domain", "general")
        return [(role, m) for role in roles for m in getattr(self, role)]


def held_out_sample(store: Store, member: MemberSpec) -> list[str]:
    """The held-out documents that a member scores, whole: as many as it asks for, drawn by hash."""
    texts = list(store.held_out_texts())
    if member.items is not None:
        texts = heapq.nsmallest(member.items, texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    return texts


def make_tasks(suites: Suites, stores: dict[str, Store]) -> Path | None:
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
            raise BadInput("suites", f"{member.name}.items", member.items, rule, "lower it, or raise held_out")
        data = folder / f"{member.name}.jsonl"
        write_text(data, "".join(json.dumps(item) + "\n" for item in items))
        write_text(file, yaml.safe_dump(_task(member.name, data)))
    return folder


def _task(name: str, data: Path) -> dict[str, Any]:
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
            context, gold = _context(text, match.start()), match.group(1)
            near = [w for w in ranked[max(0, rank[gold] - 12) : rank[gold] + 13] if w.lower() != gold.lower()]
            if context is None or counts[gold] < 2 or len(near) < 3:
                continue
            others = sorted(near, key=lambda w: hashlib.sha256((context + w).encode()).digest())[:3]
            yield _item(context, [f" {w}" for w in (gold, *others)])


def _swaps(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Every run of five words within a line, against itself with its first two words swapped."""
    for text in texts:
        for match in re.finditer(r"(?<=\S)(?= (\S+) (\S+)( \S+ \S+ \S+))", text):
            first, second, rest = match.groups()
            context = _context(text, match.start())
            if context is not None and first != second:
                yield _item(context, [f" {first} {second}{rest}", f" {second} {first}{rest}"])


def _context(text: str, at: int) -> str | None:
    """The text before a gap, from the start of a word; None near the start of a document."""
    if at < CONTEXT:
        return None
    before = text[at - CONTEXT : at]
    return before[re.search(r"\s|$", before).end() :] if len(before.split()) > 3 else None  # type: ignore[union-attr]


def _item(context: str, choices: list[str]) -> dict[str, Any]:
    """A multiple-choice item whose first choice is right, in an order drawn by its hash."""
    order = sorted(choices, key=lambda c: hashlib.sha256((c + context).encode()).digest())
    return {"context": context, "choices": order, "gold": order.index(choices[0])}
