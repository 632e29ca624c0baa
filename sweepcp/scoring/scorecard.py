"""From the scores of single items to the two scalars, `domain` and `general`.

The scalars are relative changes against the base in per cent; higher is better. Only continuous
members (bits per byte) enter them; accuracies are shown beside them. Every item is from a document,
and every document belongs to one of two splits, each about half of the documents, by the hash of
its text: a trial is chosen on `select` (the selection half) and reported on `report` (the reporting
half).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import numpy as np
from pydantic import Field, model_validator

from sweepcp.config.types import PositiveFloat, Role, ScoringMode
from sweepcp.errors import InvalidInput, located
from sweepcp.scoring.jackknife import jackknife_ratio, standard_error
from sweepcp.util.files import write_text
from sweepcp.util.records import Record, read_record

Split = Literal["select", "report"]
Unit = Literal["bits per byte", "accuracy", "normalised accuracy"]
CONTINUOUS: Unit = "bits per byte"
"""The unit of the members that enter the scalars."""
SPLITS: dict[Split, str] = {"select": "selection", "report": "reporting"}
"""Split → how it is called in messages."""
SMALLEST, LARGEST = 1e-12, 1e15
"""Magnitudes of the bits and bytes of an item; others are mistakes, and their ratios overflow."""
DocumentId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


class ItemScores(Record):
    """Scores of one member of a suite, item by item; its value is Σ amount / Σ size.

    For bits per byte an item is a document or a gold answer, `amount` its bits and `size` its UTF-8
    bytes. For an accuracy `amount` is 1 or 0 and `size` is 1. All tuples have one entry per item.
    """

    name: str
    """Name of the suite member."""
    role: Role
    """Its suite: `domain` or `general`."""
    language: str
    """Its language."""
    unit: Unit
    """`bits per byte`, `accuracy` or `normalised accuracy`."""
    weight: PositiveFloat
    """Its weight in the suite's mean."""
    document: tuple[DocumentId, ...]
    """The `document_id` of the document that each item is from. Items of one document are not
    independent, also those of different members."""
    amount: tuple[float, ...]
    """Bits of each item; for an accuracy 1 or 0."""
    size: tuple[float, ...]
    """UTF-8 bytes of each item; for an accuracy 1."""
    scoring: ScoringMode | None = None
    """How its answers were computed; None for held-out text and in records of earlier versions."""

    @property
    def select(self) -> tuple[bool, ...]:
        """Whether each item belongs to the split that trials are chosen on."""
        return tuple(in_select_split(document) for document in self.document)

    @model_validator(mode="after")
    def _one_entry_per_item(self) -> Self:
        if not len(self.document) == len(self.amount) == len(self.size):
            raise ValueError("document, amount and size differ in length")
        return self


class ItemsRecord(Record):
    """`items.json`: the scores of a model, item by item, of every member of the suites."""

    format: Literal[2] = 2
    """Version of the format."""
    members: tuple[ItemScores, ...]
    """The members of both suites, under each of their units."""


def write_items(path: Path, items: Sequence[ItemScores]) -> None:
    """Write item scores as JSON."""
    write_text(path, ItemsRecord(members=tuple(items)).model_dump_json() + "\n")


def read_items(path: Path) -> list[ItemScores]:
    """Read what `write_items` wrote.

    Raises:
        InvalidInput: The file is missing, corrupt or of another version of sweepcp.
    """
    fix = f"restore the file from a backup, or remove {path.parent} to compute it again"
    return list(read_record(ItemsRecord, path, fix=fix).members)


class MemberScore(Record):
    """One member of a suite on one split: its value and the base's, each with a standard error."""

    name: str
    """Name of the suite member."""
    role: Role
    """Its suite: `domain` or `general`."""
    language: str
    """Its language."""
    unit: Unit
    """`bits per byte`, `accuracy` or `normalised accuracy`."""
    weight: float
    """Its weight in the suite's mean."""
    items: int
    """Number of items in this half."""
    documents: int
    """That the items are from: what the standard errors count as independent."""
    base: float
    """The base's value."""
    base_se: float
    """Its standard error."""
    value: float
    """The model's value."""
    value_se: float
    """Its standard error."""
    change: float
    """Bits per byte: 100 · (base − value) / base, in %. Accuracies: value − base, in percentage
    points."""
    change_se: float
    """Of the paired difference: model and base score the same items."""
    scoring: ScoringMode | None = None
    """How the model's answers were computed; None for held-out text and in earlier records."""


class LanguageScore(Record):
    """The members of a suite in one language and unit: the weighted mean of their changes."""

    role: Role
    """The suite: `domain` or `general`."""
    language: str
    """The language."""
    unit: Unit
    """The unit of the members."""
    members: int
    """How many there are."""
    change: float
    """Weighted mean of their changes, in % or percentage points."""
    change_se: float
    """Its standard error."""


class SplitScore(Record):
    """The scalars of one split in %, and the members that they are the weighted means of."""

    domain: float
    """Relative change on the domain suite."""
    domain_se: float
    """Its standard error."""
    general: float
    """Relative change on the general suite."""
    general_se: float
    """Its standard error."""
    members: tuple[MemberScore, ...]
    """The members of both suites."""
    languages: tuple[LanguageScore, ...]
    """The means by language."""


class Scorecard(Record):
    """A model against the base, on both splits."""

    select: SplitScore
    """The half that trials are chosen on."""
    report: SplitScore
    """The half that scores are reported on."""


def document_id(content: str) -> str:
    """Return the id of a document: the last 16 hexadecimal digits of the SHA-256 of its text."""
    return hashlib.sha256(content.encode()).hexdigest()[-16:]


def in_select_split(document: str) -> bool:
    """Return whether a document belongs to `select`: the last bit of its `document_id`."""
    return bool(int(document, 16) & 1)


def check_splits(items: Sequence[ItemScores]) -> None:
    """Check that the base's scores give both scalars and all standard errors, on both splits.

    Raises:
        InvalidInput: A suite has no continuous member (bits per byte), or a member has fewer than
            two documents in a split. Documents without bytes, or that cost the base no bits, do not
            count: the others need a value and a relative change without any one of them.
    """
    for role in ("domain", "general"):
        if not any(member.role == role and member.unit == CONTINUOUS for member in items):
            raise InvalidInput(
                key=role,
                found="no member that is measured in bits per byte",
                rule="a continuous member in each suite, which its scalar is computed from",
                fix="add held-out text, or a task whose answers have a likelihood",
            )
    for member in items:
        check_range(member.name, (member.weight, *member.amount, *member.size))
        for split in SPLITS:
            documents = len(_usable_documents(member) & _documents_in([member], split))
            if documents < 2:
                raise InvalidInput(
                    key=f"{member.role}.{member.name}",
                    found=f"documents in the {SPLITS[split]} half: {documents}",
                    rule="at least 2 documents in each half, for a standard error",
                    fix="score more items, or hold out more text of the source",
                )


def check_range(name: str, values: Sequence[float]) -> None:
    """Check that scores of items are numbers whose sums and ratios are finite.

    Raises:
        InvalidInput: One is not.
    """
    numbers = np.array(values)
    sizes = np.abs(numbers[numbers != 0])
    wrong = (sizes < SMALLEST) | (sizes > LARGEST)
    if wrong.any():
        raise InvalidInput(
            key=name,
            found=float(sizes[wrong][0]),
            rule=f"0, or from {SMALLEST:g} to {LARGEST:g} in magnitude",
            fix="restore the file from a backup",
        )


def compare_with_recorded(
    *, trial: list[ItemScores], base: list[ItemScores], file: Path
) -> Scorecard:
    """Compare a model's scores with those of a base that were read from a file.

    Raises:
        InvalidInput: The file has other items, or a value is not finite.
    """
    with located(file, "items"):
        try:
            return compare_with_base(trial=trial, base=base)
        except ValueError as error:
            raise InvalidInput(
                found=str(error),
                rule="the items that the model is scored on",
                fix="restore the file from a backup",
            ) from None


def compare_with_base(*, trial: list[ItemScores], base: list[ItemScores]) -> Scorecard:
    """Compare a model's scores with the base's on the same items, see `BaseComparison`."""
    return BaseComparison(base).compare(trial)


class BaseComparison:
    """Compares one model after the other with a base, which must pass `check_splits`."""

    def __init__(self, base: Sequence[ItemScores]) -> None:
        check_splits(base)
        self.base = base
        self.members = {split: _split_members(base, split) for split in SPLITS}

    def compare(self, trial: Sequence[ItemScores]) -> Scorecard:
        """Compare a model's scores; `ValueError` if they are of other items or not finite."""
        for t, b in zip(trial, self.base, strict=True):
            if (t.name, t.unit, t.document, t.size) != (b.name, b.unit, b.document, b.size):
                raise ValueError(f"{t.name} ({t.unit}) was measured on other items than the base")
        return Scorecard(
            select=self._split_score(trial, "select"), report=self._split_score(trial, "report")
        )

    def _split_score(self, trial: Sequence[ItemScores], split: Split) -> SplitScore:
        pairs = zip(trial, self.members[split], strict=True)
        compared = [_compare_member(model, base) for model, base in pairs]
        scalars: dict[str, float] = {}
        for role in ("domain", "general"):
            group = [c for c in compared if (c[0].role, c[0].unit) == (role, CONTINUOUS)]
            scalars[role], scalars[f"{role}_se"] = _weighted_change(group)
        return SplitScore(
            members=tuple(member for member, _ in compared),
            languages=_language_scores(compared),
            **scalars,
        )


@dataclass(frozen=True)
class _SplitMember:
    """A member's base scores on one split, summed by document."""

    items: ItemScores
    in_split: np.ndarray  # for each item
    index: np.ndarray  # the document of each item that is
    amount: np.ndarray
    size: np.ndarray
    value: float
    influence: np.ndarray  # of each document
    documents: int


def _split_members(base: Sequence[ItemScores], split: Split) -> list[_SplitMember]:
    documents, members = np.array(sorted(_documents_in(base, split))), []
    for items in base:
        in_split = np.isin(items.document, documents)
        index = np.searchsorted(documents, np.array(items.document)[in_split])
        amount, size = (
            np.bincount(index, np.array(values)[in_split], minlength=len(documents))
            for values in (items.amount, items.size)
        )
        ratio, count = jackknife_ratio(amount, size), len(np.unique(index))
        members.append(_SplitMember(items, in_split, index, amount, size, *ratio, count))
    return members


def _language_scores(
    compared: Sequence[tuple[MemberScore, np.ndarray]],
) -> tuple[LanguageScore, ...]:
    """Return the changes by unit, suite and language, each in the order of the members."""
    groups: dict[tuple[Unit, Role, str], list[tuple[MemberScore, np.ndarray]]] = {}
    for member, influence in compared:
        key = (member.unit, member.role, member.language)
        groups.setdefault(key, []).append((member, influence))
    scores = []
    for unit, role, language in sorted(groups, key=lambda key: get_args(Unit).index(key[0])):
        group = groups[unit, role, language]
        change, change_se = _weighted_change(group)
        scores.append(
            LanguageScore(
                role=role,
                language=language,
                unit=unit,
                members=len(group),
                change=change,
                change_se=change_se,
            )
        )
    return tuple(scores)


def _weighted_change(group: Sequence[tuple[MemberScore, np.ndarray]]) -> tuple[float, float]:
    """Return the weighted mean of the members' changes and its standard error.

    Args:
        group: Members with the influences of the documents on their changes.
    """
    weights = np.array([member.weight for member, _ in group])
    weights = weights / weights.sum()
    mean = float(weights @ np.array([member.change for member, _ in group]))
    return mean, standard_error(weights @ np.array([influence for _, influence in group]))


def _compare_member(trial: ItemScores, base: _SplitMember) -> tuple[MemberScore, np.ndarray]:
    """Compare one member on the documents of a split.

    Returns:
        The score, and the influences of the documents on its change: see `jackknife_ratio`.
    """
    items, base_influence = base.items, base.influence
    amounts = np.array(trial.amount)[base.in_split]
    amount = np.bincount(base.index, amounts, minlength=len(base.size))
    value, value_influence = jackknife_ratio(amount, base.size)
    if items.unit == CONTINUOUS:
        # Both values have the same Σ size, so (base − value) / base is 1 − Σ amount / Σ base
        # amount: a ratio over paired items.
        ratio, influence = jackknife_ratio(amount, base.amount)
        change, influence = 100 * (1 - ratio), -100 * influence
    else:
        difference, influence = jackknife_ratio(amount - base.amount, base.size)
        change, influence = 100 * difference, 100 * influence
    score = MemberScore(
        name=items.name,
        role=items.role,
        language=items.language,
        unit=items.unit,
        weight=items.weight,
        items=len(base.index),
        documents=base.documents,
        base=base.value,
        base_se=standard_error(base_influence),
        value=value,
        value_se=standard_error(value_influence),
        change=change,
        change_se=standard_error(influence),
        scoring=trial.scoring,
    )
    return score, influence


def _usable_documents(member: ItemScores) -> set[str]:
    """Return the documents with bytes and, for bits per byte, with bits under the model."""
    needs_bits = member.unit == CONTINUOUS
    columns = zip(member.document, member.amount, member.size, strict=True)
    return {d for d, amount, size in columns if size > 0 and (amount > 0 or not needs_bits)}


def _documents_in(items: Sequence[ItemScores], split: Split) -> set[str]:
    documents = {document for member in items for document in member.document}
    return {d for d in documents if in_select_split(d) == (split == "select")}
