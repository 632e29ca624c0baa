"""The Pareto front of a run and the choice by a stated rule. Pure functions over the scores of trials."""

import moocore
import numpy as np

from sweepcp.config.choice import ChoiceRule, ReferencePoint
from sweepcp.runs.trial import Trial
from sweepcp.util.records import Record


class Choice(Record):
    """The chosen trial, or None with the trial that came nearest."""

    rule: str
    id: str | None
    nearest: str | None
    """The trial of least regression, when none is within the rule."""
    domain: float | None
    general: float | None
    """Of the chosen trial, on the half that is chosen on."""
    reported_domain: float | None
    reported_general: float | None
    """Of the chosen trial, on the other half: the unbiased numbers."""


class Front(Record):
    """The non-dominated done trials from least to most domain gain, the choice, and the hypervolume in %²."""

    ids: tuple[str, ...]
    choice: Choice
    hypervolume: float
    reference: dict[str, float]


def score_matrix(trials: list[Trial]) -> np.ndarray:
    """`domain` and `general` of done trials, shape (n, 2), in %."""
    return np.array([[t.domain, t.general] for t in trials], dtype=np.float64).reshape(-1, 2)


def is_on_front(points: np.ndarray) -> np.ndarray:
    """Which of `points`, shape (n, 2), larger is better, no other point dominates; equal points stand together.

    a dominates b if a is at least as good in both and better in one.
    """
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(points, maximise=True, keep_weakly=True))


def hypervolume(points: np.ndarray, reference: ReferencePoint) -> float:
    """The area in %² that `points`, shape (n, 2), dominate above the reference; 0 for none."""
    point = [reference.domain, reference.general]
    return float(moocore.hypervolume(points, ref=point, maximise=True)) if len(points) else 0.0


def pareto_front(trials: list[Trial], rule: ChoiceRule, reference: ReferencePoint) -> Front:
    """Keep the non-dominated done trials, choose one of them, and measure the front."""
    done = sorted((t for t in trials if t.status == "done"), key=lambda t: t.number)
    best = [t for t, keep in zip(done, is_on_front(score_matrix(done)), strict=True) if keep]
    best.sort(key=lambda t: (t.domain, t.number))
    return Front(
        ids=tuple(t.id for t in best),
        choice=_choose_trial(best, rule),
        hypervolume=hypervolume(score_matrix(best), reference),
        reference=reference.model_dump(),
    )


def choose_point(points: np.ndarray, rule: ChoiceRule) -> int | None:
    """Index of the point of a front that the rule chooses, the first of equals; shape (n, 2). None if none meets it."""
    if len(points) == 0:
        return None
    if rule.max_regression is not None:
        allowed = points[:, 1] >= -rule.max_regression
        return int(np.argmax(np.where(allowed, points[:, 0], -np.inf))) if allowed.any() else None
    if rule.weights is not None:
        return int(np.argmax(points @ np.array([rule.weights.domain, rule.weights.general])))
    return knee_point(points)


def _choose_trial(best: list[Trial], rule: ChoiceRule) -> Choice:
    points = score_matrix(best)
    index = choose_point(points, rule)
    chosen = best[index] if index is not None else None
    nearest = best[int(np.argmax(points[:, 1]))].id if best and chosen is None else None
    card = chosen.scorecard if chosen else None
    return Choice(
        rule=str(rule),
        id=chosen.id if chosen else None,
        nearest=nearest,
        domain=chosen.domain if chosen else None,
        general=chosen.general if chosen else None,
        reported_domain=card.report.domain if card else None,
        reported_general=card.report.general if card else None,
    )


def knee_point(points: np.ndarray) -> int:
    """Index of the front's point farthest above the line between its ends, axes scaled to 0..1; shape (n, 2).

    The first of equals; with one or two points, the one of least regression. After Das (1999), On
    characterizing the "knee" of the Pareto curve based on normal-boundary intersection.
    """
    if len(points) < 3:
        return int(np.argmax(points[:, 1]))
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1)
    return int(np.argmax(scaled.sum(axis=1)))
