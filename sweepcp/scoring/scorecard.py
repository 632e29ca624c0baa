"""From the results of single items to the two scalars, `domain` and `general`.

The scalars are relative changes against the base in per cent, higher is better. Only continuous members (bits
per byte) enter them; accuracies stand beside them. Every item belongs to one of two halves, by the hash of its
content: the choice is made on one half (`select`) and reported on the other (`report`).
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
    """What one member of a suite measured, item by item: the member's value is Σ amount / Σ size.

    For bits per byte an item is a document or a gold answer, `amount` its bits and `size` its UTF-8 bytes; for an
    accuracy `amount` is 1 or 0 and `size` is 1.
    """

    name: str
    role: Role
    language: str
    unit: Unit
    weight: float
    select: tuple[bool, ...]
    """Whether the item belongs to the half that is chosen on; all tuples have one entry an item."""
    amount: tuple[float, ...]
    size: tuple[float, ...]


def write_items(path: Path, items: Sequence[ItemScores]) -> None:
    """Write items as JSON."""
    write_text(path, json.dumps([i.model_dump(mode="json") for i in items]) + "\n")


def read_items(path: Path) -> list[ItemScores]:
    """What `write_items` wrote."""
    return [
        ItemScores.model_validate(item) for item in json.loads(path.read_text(encoding="utf-8"))
    ]


class MemberScore(Record):
    """One member of a suite on one half: its value and the base's, each ± its standard error."""

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
    """Bits per byte: 100 · (base − value) / base, in %. Accuracy: value − base, in points of 100."""
    change_se: float
    """Of the paired difference: trial and base see the same items."""


class SplitScore(Record):
    """The scalars of one half of the items, in %, and the members that they are the weighted means of."""

    domain: float
    domain_se: float
    general: float
    general_se: float
    members: tuple[MemberScore, ...]


class Scorecard(Record):
    """A model against the base, on both halves."""

    select: SplitScore
    report: SplitScore


def in_select_split(content: str) -> bool:
    """Whether an item belongs to the half that is chosen on: one bit of the SHA-256 of its content."""
    return bool(hashlib.sha256(content.encode()).digest()[-1] & 1)


def ratio_estimate(amount: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """Σ amount / Σ size of n items (two arrays of shape (n,)) and its standard error.

    The error is the linearised one of a ratio estimator over items drawn independently (Cochran, Sampling
    Techniques, 1977, eq. 6.9); with all sizes 1 it is the standard error of the mean. Needs two items.
    """
    n, total = len(size), float(size.sum())
    value = float(amount.sum()) / total
    residual = amount - value * size
    return value, float(np.sqrt(n / (n - 1) * np.square(residual).sum()) / total)


def compare_with_base(trial: list[ItemScores], base: list[ItemScores]) -> Scorecard:
    """Compare a model's items with the base's on the same items.

    Raises `ValueError` when the two were not measured on the same items, or a value is not finite.
    """
    halves = {
        half: _split_score([_member_score(t, b, half) for t, b in zip(trial, base, strict=True)])
        for half in ("select", "report")
    }
    return Scorecard.model_validate(halves)


def _member_score(trial: ItemScores, base: ItemScores, half: Split) -> MemberScore:
    if (trial.name, trial.unit, trial.select, trial.size) != (
        base.name,
        base.unit,
        base.select,
        base.size,
    ):
        raise ValueError(f"{trial.name} ({trial.unit}) was measured on other items than the base")
    mask = np.array(trial.select) == (half == "select")
    if mask.sum() < 2:
        raise ValueError(
            f"{trial.name} ({trial.unit}) has {mask.sum()} items in the {half} half, too few for an error"
        )
    amount, before, size = (
        np.array(x, dtype=np.float64)[mask] for x in (trial.amount, base.amount, base.size)
    )
    value, value_se = ratio_estimate(amount, size)
    base_value, base_se = ratio_estimate(before, size)
    if trial.unit == "accuracy":
        difference, error = ratio_estimate(amount - before, size)
        change, change_se = 100 * difference, 100 * error
    else:
        relative, error = ratio_estimate(amount, before)
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


def _split_score(members: list[MemberScore]) -> SplitScore:
    scalars: dict[str, float] = {}
    for role in ("domain", "general"):
        own = [m for m in members if m.role == role and m.unit == "bits per byte"]
        if not own:
            raise ValueError(
                f"the {role} suite has no continuous member (bits per byte), so it has no scalar"
            )
        scalars[role], scalars[f"{role}_se"] = weighted_change(own)
    return SplitScore(members=tuple(members), **scalars)


def weighted_change(members: Sequence[MemberScore]) -> tuple[float, float]:
    """The weighted mean of the members' changes, and its standard error when their items are independent."""
    weights = np.array([m.weight for m in members])
    weights = weights / weights.sum()
    mean = float(weights @ np.array([m.change for m in members]))
    return mean, float(np.sqrt(np.square(weights) @ np.square([m.change_se for m in members])))
