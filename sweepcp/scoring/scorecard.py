"""From the scores of single items to the two scalars, `domain` and `general`.

The scalars are relative changes against the base in per cent; higher is better. Only continuous
members (bits per byte) enter them; accuracies are shown beside them. Every item belongs to one of
two splits, each about half of the items, by the hash of its content: a trial is chosen on `select`
(the selection half) and reported on `report` (the reporting half).
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from sweepcp.config.types import Role
from sweepcp.util.files import write_text
from sweepcp.util.records import Record

Split = Literal["select", "report"]
Unit = Literal["bits per byte", "accuracy"]


class ItemScores(Record):
    """Scores of one member of a suite, item by item; its value is Σ amount / Σ size.

    For bits per byte an item is a document or a gold answer, `amount` its bits and `size` its UTF-8
    bytes. For an accuracy `amount` is 1 or 0 and `size` is 1.
    """

    name: str
    role: Role
    language: str
    unit: Unit
    weight: float
    select: tuple[bool, ...]
    """Whether the item belongs to the split that trials are chosen on. All tuples have one entry
    per item."""
    amount: tuple[float, ...]
    size: tuple[float, ...]


def write_items(path: Path, items: Sequence[ItemScores]) -> None:
    """Write item scores as JSON."""
    write_text(path, json.dumps([i.model_dump(mode="json") for i in items]) + "\n")


def read_items(path: Path) -> list[ItemScores]:
    """Read what `write_items` wrote."""
    return [
        ItemScores.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8"))
    ]


class MemberScore(Record):
    """One member of a suite on one split: its value and the base's, each with a standard error."""

    name: str
    role: Role
    language: str
    unit: Unit
    weight: float
    items: int
    base: float
    base_se: float
    value: float
    value_se: float
    change: float
    """Bits per byte: 100 · (base − value) / base, in %. Accuracy: value − base, in percentage
    points."""
    change_se: float
    """Of the paired difference: model and base score the same items."""


class SplitScore(Record):
    """The scalars of one split in %, and the members that they are the weighted means of."""

    domain: float
    domain_se: float
    general: float
    general_se: float
    members: tuple[MemberScore, ...]


class Scorecard(Record):
    """A model against the base, on both splits."""

    select: SplitScore
    report: SplitScore


def in_select_split(content: str) -> bool:
    """Return whether an item belongs to `select`: one bit of the SHA-256 of its content."""
    return bool(hashlib.sha256(content.encode()).digest()[-1] & 1)


def ratio_estimate(*, amount: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """Estimate Σ amount / Σ size and its standard error.

    The error is the linearised one of a ratio estimator over items drawn independently (Cochran,
    Sampling Techniques, 1977, eq. 6.9). With all sizes 1 it is the standard error of the mean.

    Args:
        amount: Shape (n,), n at least 2.
        size: Shape (n,).
    """
    n, total = len(size), float(size.sum())
    value = float(amount.sum()) / total
    residual = amount - value * size
    return value, float(np.sqrt(n / (n - 1) * np.square(residual).sum()) / total)


def weighted_change(members: Sequence[MemberScore]) -> tuple[float, float]:
    """Return the weighted mean of the members' changes and its standard error.

    The error assumes that the items of different members are independent.
    """
    weights = np.array([m.weight for m in members])
    weights = weights / weights.sum()
    mean = float(weights @ np.array([m.change for m in members]))
    return mean, float(np.sqrt(np.square(weights) @ np.square([m.change_se for m in members])))


def compare_with_base(*, trial: list[ItemScores], base: list[ItemScores]) -> Scorecard:
    """Compare a model's scores with the base's on the same items.

    Raises:
        ValueError: The two were not measured on the same items, a split has too few of them, a
            suite has no continuous member, or a value is not finite.
    """
    return Scorecard(
        select=_split_score(trial=trial, base=base, split="select"),
        report=_split_score(trial=trial, base=base, split="report"),
    )


def _split_score(*, trial: list[ItemScores], base: list[ItemScores], split: Split) -> SplitScore:
    members = [
        _member_score(trial=t, base=b, split=split) for t, b in zip(trial, base, strict=True)
    ]
    scalars: dict[str, float] = {}
    for role in ("domain", "general"):
        continuous = [m for m in members if m.role == role and m.unit == "bits per byte"]
        if not continuous:
            raise ValueError(
                f"the {role} suite has no continuous member (bits per byte), so it has no scalar"
            )
        scalars[role], scalars[f"{role}_se"] = weighted_change(continuous)
    return SplitScore(members=tuple(members), **scalars)


def _member_score(*, trial: ItemScores, base: ItemScores, split: Split) -> MemberScore:
    if (trial.name, trial.unit, trial.select, trial.size) != (
        base.name,
        base.unit,
        base.select,
        base.size,
    ):
        raise ValueError(f"{trial.name} ({trial.unit}) was measured on other items than the base")
    mask = np.array(trial.select) == (split == "select")
    if mask.sum() < 2:
        raise ValueError(
            f"{trial.name} ({trial.unit}) has {mask.sum()} items in the split `{split}`; "
            "a standard error needs 2"
        )
    amount = np.array(trial.amount, dtype=np.float64)[mask]
    base_amount = np.array(base.amount, dtype=np.float64)[mask]
    size = np.array(trial.size, dtype=np.float64)[mask]
    value, value_se = ratio_estimate(amount=amount, size=size)
    base_value, base_se = ratio_estimate(amount=base_amount, size=size)
    if trial.unit == "accuracy":
        difference, error = ratio_estimate(amount=amount - base_amount, size=size)
        change, change_se = 100 * difference, 100 * error
    else:
        # Both values have the same Σ size, so (base − value) / base is 1 − Σ amount / Σ base
        # amount: a ratio over paired items, whose error the estimator gives directly.
        relative, error = ratio_estimate(amount=amount, size=base_amount)
        change, change_se = 100 * (1 - relative), 100 * error
    return MemberScore(
        name=trial.name,
        role=trial.role,
        language=trial.language,
        unit=trial.unit,
        weight=trial.weight,
        items=int(mask.sum()),
        base=base_value,
        base_se=base_se,
        value=value,
        value_se=value_se,
        change=change,
        change_se=change_se,
    )
