"""The Pareto front of a run and the choice of one trial: pure functions of the trials' scores."""

from collections.abc import Sequence

import moocore
import numpy as np

from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.runs.trial import Trial
from sweepcp.util.records import Record

DECIMALS = 9
"""Scores in % are compared after rounding: a smaller difference is one of floating-point sums."""


class Choice(Record):
    """The trial that a rule chooses, with its scores in %; all None if no trial meets the rule."""

    rule: str
    """The rule, in words."""
    id: str | None
    """The chosen trial; None if no trial meets the rule."""
    nearest: str | None
    """The trial of least regression; only if no trial meets the rule."""
    domain: float | None
    """On the selection half of the items, on which the choice was made."""
    general: float | None
    """On the selection half."""
    reported_domain: float | None
    """On the reporting half: not biased by the choice."""
    reported_general: float | None
    """On the reporting half."""


class Front(Record):
    """The non-dominated trials, the choice among them, and their hypervolume."""

    ids: tuple[str, ...]
    """Trials in ascending order of domain gain."""
    choice: Choice
    """The choice among them."""
    hypervolume: float
    """In %², above `reference`."""
    reference: dict[str, float]
    """The hypervolume's reference point in %."""


def pareto_front(trials: Sequence[Trial], rule: ChoiceRule, reference: ReferencePoint) -> Front:
    """Return the front of the done trials, the choice by `rule`, and the hypervolume."""
    done = sorted((t for t in trials if t.status == "done"), key=lambda trial: trial.number)
    best = [done[index] for index in front_indices(score_matrix(done))]
    return Front(
        ids=tuple(trial.id for trial in best),
        choice=_choose_trial(best, rule),
        hypervolume=hypervolume(score_matrix(best), reference),
        reference=reference.model_dump(),
    )


def score_matrix(trials: Sequence[Trial]) -> np.ndarray:
    """Return `domain` and `general` of done trials in %, shape (n, 2)."""
    scores = [[trial.domain, trial.general] for trial in trials]
    return np.array(scores, dtype=np.float64).reshape(-1, 2)


def front_indices(points: np.ndarray) -> np.ndarray:
    """Return the indices of the points of the front, in the order in which `choose_point` has them.

    Args:
        points: Shape (n, 2), in the order of the trials' numbers.

    Returns:
        Indices in ascending order of the first score, equal points in the order given.
    """
    indices = np.flatnonzero(is_on_front(points))
    return indices[np.argsort(np.round(points[indices, 0], DECIMALS), kind="stable")]


def is_on_front(points: np.ndarray) -> np.ndarray:
    """Mark the points that no other point dominates.

    Point a dominates point b if a is at least as good in both scores and better in one. Of equal
    points all are marked or none.

    Args:
        points: Shape (n, 2); larger is better.

    Returns:
        Booleans of shape (n,).
    """
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    rounded = np.round(points, DECIMALS)
    return np.asarray(moocore.is_nondominated(rounded, maximise=True, keep_weakly=True))


def hypervolume(points: np.ndarray, reference: ReferencePoint) -> float:
    """Return the area in %² that `points`, shape (n, 2), dominate above the reference point."""
    if len(points) == 0:
        return 0.0
    ref = [reference.domain, reference.general]
    return float(moocore.hypervolume(points, ref=ref, maximise=True))


def choose_point(points: np.ndarray, rule: ChoiceRule) -> int | None:
    """Return the index of the point that the rule chooses, the first of equal ones.

    Args:
        points: `domain` and `general` of the points of a front in %, shape (n, 2), in the order of
            `front_indices`.
        rule: One of a bound on regression, weights, and the knee.

    Returns:
        None if there is no point, or none that meets the rule.
    """
    if len(points) == 0:
        return None
    if rule.max_regression is not None:
        allowed = is_within_bound(points[:, 1], rule.max_regression)
        if not allowed.any():
            return None
        return _first_largest(np.where(allowed, points[:, 0], -np.inf))
    if rule.weights is not None:
        return _first_largest(points @ np.array([rule.weights.domain, rule.weights.general]))
    return knee_point(points)


def is_within_bound(general: np.ndarray, max_regression: float) -> np.ndarray:
    """Mark the general scores in % that regress by no more than a bound."""
    return general >= -max_regression - 10.0**-DECIMALS


def knee_point(points: np.ndarray) -> int:
    """Return the index of the point farthest above the line between the ends of the front.

    Both axes are scaled to 0..1. After Das (1999), On characterizing the "knee" of the Pareto
    curve based on normal-boundary intersection.

    Args:
        points: The points of a front, shape (n, 2).

    Returns:
        The first of equal points. With one or two points, the one of least regression.
    """
    if len(points) < 3:
        return _first_largest(points[:, 1])
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1)
    # The scaled ends are (0, 1) and (1, 0): the distance from the line between them grows with the
    # sum of a point's coordinates.
    return _first_largest(scaled.sum(axis=1))


def _first_largest(values: np.ndarray) -> int:
    return int(np.argmax(np.round(values, DECIMALS)))


def _choose_trial(best: Sequence[Trial], rule: ChoiceRule) -> Choice:
    """Choose one of the trials of a front."""
    points = score_matrix(best)
    index = choose_point(points, rule)
    if index is None:
        nearest = best[_first_largest(points[:, 1])].id if best else None
        return Choice(
            rule=str(rule),
            id=None,
            nearest=nearest,
            domain=None,
            general=None,
            reported_domain=None,
            reported_general=None,
        )
    trial = best[index]
    card = trial.scorecard
    return Choice(
        rule=str(rule),
        id=trial.id,
        nearest=None,
        domain=trial.domain,
        general=trial.general,
        reported_domain=card.report.domain if card else None,
        reported_general=card.report.general if card else None,
    )
