"""Uncertainty of the front and of the choice, by resampling the items of the suites.

It covers the noise of evaluation only: each trial was trained once, with one seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from pydantic import BaseModel, TypeAdapter

from sweepcp.runs.front import choose_point, is_on_front
from sweepcp.runs.run_folder import Run
from sweepcp.runs.trial import Trial
from sweepcp.scoring.scorecard import ItemScores, Split, Unit

RESAMPLES = 500
"""A probability of one half is then estimated with a standard error of 2.2 points."""


class MeasuredItems(BaseModel):
    """The part of `ItemScores` that resampling needs.

    The other fields, which are most of a file, are not parsed into objects.
    """

    unit: Unit
    amount: list[float]


MEASURED_ITEMS = TypeAdapter(list[MeasuredItems])
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
    """Resample the items of every suite member, the same items for every trial and for the base.

    This is the bootstrap of paired items (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, ch. 6).

    Returns:
        The shares over `RESAMPLES` resamples. None when no trial is done, or when the items of a
        done trial are missing: the front is then not known.
    """
    done = run.done
    amounts = _read_amounts(run, done)
    if not done or amounts is None:
        return None
    base = _continuous_members(run.base.items) if run.base else []
    on_front, chosen = np.zeros(len(done)), np.zeros(len(done))
    no_choice = 0
    for scores in resampled_scores(amounts, base, "select", np.random.default_rng(0)):
        is_best = is_on_front(scores)
        on_front += is_best
        choice = choose_point(scores[is_best], run.rule)
        if choice is None:
            no_choice += 1
        else:
            chosen[np.flatnonzero(is_best)[choice]] += 1
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

    Items are drawn with replacement within each member. In each resample all trials and the base
    have the same items.

    Args:
        amounts: For each member of `base` the bits of its items in n trials, shape (n, items).
        base: The continuous members (bits per byte) of the base.
        split: The items to resample: those of the selection or of the reporting half.
        rng: Draws the items.

    Returns:
        `domain` and `general` in %, shape (RESAMPLES, n, 2).
    """
    scores = np.zeros((RESAMPLES, len(amounts[0]), 2))
    for bits, member in zip(amounts, base, strict=True):
        in_split = np.array(member.select) == (split == "select")
        items = int(in_split.sum())
        # How often each item is drawn: sums over drawn items become matrix products.
        counts = rng.multinomial(items, np.full(items, 1 / items), size=RESAMPLES)
        counts = counts.astype(np.float64)
        base_bits = counts @ np.array(member.amount)[in_split]
        change = 100 * (1 - counts @ bits[:, in_split].T / base_bits[:, None])
        weight = member.weight / sum(m.weight for m in base if m.role == member.role)
        scores[:, :, ("domain", "general").index(member.role)] += weight * change
    return scores


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
    return float(np.mean(scores[:, 0, 1] >= -bound))


def _read_amounts(run: Run, trials: Sequence[Trial]) -> list[np.ndarray] | None:
    """Read the bits of the items of n trials: an array of shape (n, items) per continuous member.

    None if the items of a trial are missing.
    """
    rows = []
    for trial in trials:
        file = run.trial_folder(trial.id) / "items.json"
        if not file.exists():
            return None
        members = _continuous_members(MEASURED_ITEMS.validate_json(file.read_bytes()))
        rows.append([np.array(member.amount) for member in members])
    return [np.stack(member) for member in zip(*rows, strict=True)]


def _continuous_members(members: Sequence[M]) -> list[M]:
    return [member for member in members if member.unit == "bits per byte"]
