"""Uncertainty of the front and of the choice, by resampling the documents of the suites.

It covers the noise of evaluation only: each trial was trained once, with one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from pydantic import ConfigDict

from sweepcp.errors import InvalidInput, located
from sweepcp.runs.front import choose_point, front_indices, is_within_bound
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.scoring.scorecard import (
    CONTINUOUS,
    ItemScores,
    Split,
    Unit,
    check_range,
    check_splits,
    in_select_split,
)
from sweepcp.util.records import Record, read_record

RESAMPLES = 500
"""A probability of one half is then estimated with a standard error of 2.2 points."""


class MeasuredItems(Record):
    """The part of `ItemScores` that resampling needs.

    The other fields, which are most of a file, are not parsed into objects.
    """

    model_config = ConfigDict(extra="ignore")
    name: str
    unit: Unit
    amount: list[float]


class MeasuredRecord(Record):
    """The part of `items.json` that resampling needs."""

    format: Literal[2]
    members: list[MeasuredItems]


M = TypeVar("M", ItemScores, MeasuredItems)


@dataclass(frozen=True)
class FrontCertainty:
    """Shares of resamples in which trials are on the front, and chosen."""

    on_front: dict[str, float]
    """Done trial → share of the resamples in which no other trial dominates it."""
    chosen: dict[str, float]
    """Done trial → share of the resamples in which the rule chooses it."""
    no_choice: float
    """Share of the resamples in which no trial meets the rule."""
    within_bound: float | None
    """Share of the resamples of the reporting half in which the chosen trial is within the bound.

    None if the rule has no bound or chooses no trial.
    """


def estimate_certainty(run: Run) -> FrontCertainty | None:
    """Resample the documents of the suites, the same ones for every trial and for the base.

    Returns:
        The shares over `RESAMPLES` resamples. None when no trial is done, or when the items of a
        done trial are missing: the front is then not known.
    """
    done = run.done
    amounts = _read_amounts(run, done) if done else None
    if amounts is None:
        return None
    base = _base_members(run)
    on_front, chosen = np.zeros(len(done)), np.zeros(len(done))
    no_choice = 0
    for scores in resampled_scores(amounts, base, "select", np.random.default_rng(0)):
        best = front_indices(scores)
        on_front[best] += 1
        choice = choose_point(scores[best], run.rule)
        if choice is None:
            no_choice += 1
        else:
            chosen[best[choice]] += 1
    ids = [trial.id for trial in done]
    return FrontCertainty(
        on_front=dict(zip(ids, (on_front / RESAMPLES).tolist(), strict=True)),
        chosen=dict(zip(ids, (chosen / RESAMPLES).tolist(), strict=True)),
        no_choice=no_choice / RESAMPLES,
        within_bound=_share_within_bound(run, amounts, base),
    )


def resampled_scores(
    amounts: Sequence[np.ndarray],
    base: Sequence[ItemScores],
    split: Split,
    rng: np.random.Generator,
) -> np.ndarray:
    """Compute the scalars of n trials in every resample, as `compare_with_base` does.

    This is the bootstrap of clusters (Davison and Hinkley, Bootstrap Methods and their Application,
    1997, section 3.8): documents are drawn with replacement, each with all of its items in all
    members. In each resample all trials and the base have the same documents.

    Args:
        amounts: For each member of `base` the bits of its items in n trials, shape (n, items).
        base: The continuous members (bits per byte) of the base.
        split: The half whose documents are resampled.
        rng: Draws the documents.

    Returns:
        `domain` and `general` in %, shape (RESAMPLES, n, 2).
    """
    ids = {document for member in base for document in member.document}
    documents = np.array(sorted(d for d in ids if in_select_split(d) == (split == "select")))
    base_bits = np.stack([_sum_by_document(np.array(m.amount), m, documents) for m in base])
    counts = _draw_documents(base_bits, rng)
    scores = np.zeros((RESAMPLES, len(amounts[0]), 2))
    for bits, member, member_base_bits in zip(amounts, base, base_bits, strict=True):
        # Sums over drawn documents are matrix products.
        drawn = counts @ _sum_by_document(bits, member, documents).T
        change = 100 * (1 - drawn / (counts @ member_base_bits)[:, None])
        weight = member.weight / sum(m.weight for m in base if m.role == member.role)
        scores[:, :, ("domain", "general").index(member.role)] += weight * change
    return scores


def _sum_by_document(values: np.ndarray, member: ItemScores, documents: np.ndarray) -> np.ndarray:
    """Sum values of a member's items, shape (..., items), over those of each document."""
    kept = np.isin(member.document, documents)
    sums = np.zeros((len(documents), *values.shape[:-1]))
    np.add.at(sums, np.searchsorted(documents, np.array(member.document)[kept]), values.T[kept])
    return sums.T


def _draw_documents(base_bits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw how often each document is in each resample.

    A member of which no document was drawn would have no change, so its documents are then drawn
    once more, among themselves.

    Args:
        base_bits: Of the base by member and document, shape (members, documents).
        rng: Draws the documents.

    Returns:
        Shape (RESAMPLES, documents).
    """
    documents = base_bits.shape[1]
    shares = np.full(documents, 1 / documents)
    counts = rng.multinomial(documents, shares, size=RESAMPLES).astype(np.float64)
    # Members share documents, so drawing those of one again may leave another one without any.
    while (missing := np.argwhere(counts @ base_bits.T == 0)).size:
        for resample, member in missing:
            own = np.flatnonzero(base_bits[member])
            counts[resample, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)))
    return counts


def _share_within_bound(
    run: Run, amounts: Sequence[np.ndarray], base: Sequence[ItemScores]
) -> float | None:
    """Return how often the chosen trial keeps the bound in resamples of the reporting half."""
    bound, chosen = run.rule.max_regression, run.chosen
    if bound is None or chosen is None:
        return None
    index = [trial.id for trial in run.done].index(chosen.id)
    chosen_amounts = [member[[index]] for member in amounts]
    scores = resampled_scores(chosen_amounts, base, "report", np.random.default_rng(1))
    return float(np.mean(is_within_bound(scores[:, 0, 1], bound)))


def _read_amounts(run: Run, trials: Sequence[Trial]) -> list[np.ndarray] | None:
    """Read the bits of the items of n trials: an array of shape (n, items) per continuous member.

    None if the items of a trial are missing.

    Raises:
        InvalidInput: They are corrupt, or are not the items of the base.
    """
    files = [run.trial_folder(trial.id) / "items.json" for trial in trials]
    if not all(file.exists() for file in files):
        return None
    expected = [(member.name, len(member.amount)) for member in _base_members(run)]
    rows = []
    for file in files:
        fix = f"restore the file from a backup, or remove {file.parent} to run the trial again"
        members = _continuous_members(read_record(MeasuredRecord, file, fix=fix).members)
        found = [(member.name, len(member.amount)) for member in members]
        if found != expected:
            raise InvalidInput(
                file=file,
                key="members",
                found=found,
                rule=f"the continuous members of base.json and their numbers of items: {expected}",
                fix=fix,
            )
        for member in members:
            with located(file):
                check_range(member.name, member.amount)
        rows.append([np.array(member.amount) for member in members])
    return [np.stack(member) for member in zip(*rows, strict=True)]


def _base_members(run: Run) -> list[ItemScores]:
    """Return the continuous members of the base, with which the trials were compared."""
    if run.base is None:
        raise InvalidInput(
            file=run.path / "base.json",
            key="the file",
            found="missing",
            rule="the scores of the base, which the trials were compared with",
            fix="restore the file from a backup, or resume the search: it scores the base again",
        )
    with located(run.path / "base.json"):
        check_splits(run.base.items)
    return _continuous_members(run.base.items)


def _continuous_members(members: Sequence[M]) -> list[M]:
    return [member for member in members if member.unit == CONTINUOUS]
