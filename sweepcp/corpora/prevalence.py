"""How common domain text is in a corpus, and how precise what scores highly is: shares and thresholds.

Let π be the share of domain documents in the corpus, R(t) the share of the corpus that scores at least t, and T(t) the
share of domain documents that do, which held-out folds of the training documents tell. Then π · T(t) / R(t) is the
precision of what scores at least t. Neither needs the classifier's probabilities to be right for the corpus, whose
prevalence is far from that of its training documents.

π is estimated, in the order of what is known:
- from labels of a sample that is drawn at random within strata of the score;
- by adjusted count, (R − F) / (T − F), where general documents from elsewhere tell F, their share above a threshold
  (Forman 2008, Quantifying counts and costs via classification, Data Mining and Knowledge Discovery 17);
- where the corpus itself stands for general text, as the smallest R(t) / T(t), which takes it that the highest scores
  are all domain (Blanchard, Lee and Scott 2010, Semi-supervised novelty detection, JMLR 11).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from sweepcp.errors import InvalidInput

EDGES = np.linspace(-12, 12, 4801)
"""Scores (log odds) at which shares are counted."""
MIN_DOMAIN_SHARE = 0.3
"""Thresholds that fewer of the domain documents reach say too little of prevalence."""


@dataclass(frozen=True)
class ScoreCurve:
    """Shares of documents at or above each of `EDGES`."""

    corpus: np.ndarray
    domain: np.ndarray
    general: np.ndarray


def share_above(scores: np.ndarray) -> np.ndarray:
    """Share of scores at or above each of `EDGES`."""
    return 1 - np.searchsorted(np.sort(scores), EDGES, side="left") / len(scores)


def estimate_prevalence(
    curve: ScoreCurve,
    own: bool,
    labels: list[dict[str, Any]],
    documents: int,
    positives: int,
    negatives: int,
) -> tuple[float, tuple[float, float], str]:
    """Share of domain documents in the corpus, its 95 % interval, and how it was found."""
    if labels:
        share, error = labelled_share(labels)
        origin = f"{len(labels)} labelled documents of a stratified random sample"
    elif own:
        usable = curve.domain >= MIN_DOMAIN_SHARE
        at = int(np.flatnonzero(usable)[np.argmin(curve.corpus[usable] / curve.domain[usable])])
        share = float(curve.corpus[at] / curve.domain[at])
        error = share * np.sqrt(
            (1 - curve.corpus[at]) / max(1.0, curve.corpus[at] * documents)
            + (1 - curve.domain[at]) / positives
        )
        origin = "the scores, taking it that the highest are all domain: label sample.jsonl to check that"
    else:
        gap = np.maximum(curve.domain - curve.general, 1e-9)
        rates = np.clip((curve.corpus - curve.general) / gap, 0, 1)
        false = (curve.general * negatives + 1) / (negatives + 2)  # of none seen, not none
        variance = (
            curve.corpus / documents
            + false / negatives
            + rates**2 * curve.domain * (1 - curve.domain) / positives
        )
        errors = np.where(curve.domain >= MIN_DOMAIN_SHARE, np.sqrt(variance) / gap, np.inf)
        at = int(np.argmin(errors))
        share, error = float(rates[at]), float(errors[at])
        origin = "the scores, by adjusted count"
    return (
        share,
        (max(0.0, share - 1.96 * float(error)), min(1.0, share + 1.96 * float(error))),
        origin,
    )


def labelled_share(labels: list[dict[str, Any]]) -> tuple[float, float]:
    """Share of domain documents and its standard error, from a sample that is random within strata.

    Cochran 1977, Sampling Techniques, chapter 5; a stratum without a domain document counts as if it had half a one.
    """
    share = variance = 0.0
    for size in sorted({(row["stratum"], row["stands_for"]) for row in labels}):
        own = [bool(row["label"]) for row in labels if row["stratum"] == size[0]]
        mean, smoothed = sum(own) / len(own), (sum(own) + 0.5) / (len(own) + 1)
        share += size[1] * mean
        variance += size[1] ** 2 * smoothed * (1 - smoothed) / len(own)
    return share, float(np.sqrt(variance))


def threshold_for_precision(
    curve: ScoreCurve, share: float, precision: float, documents: int, corpus: str
) -> int:
    """The lowest of `EDGES` from which on upwards the predicted precision is reached, by its place."""
    enough = curve.corpus * documents >= 1
    predicted = np.where(enough, share * curve.domain / np.maximum(curve.corpus, 1 / documents), 0)
    reached = np.flatnonzero((predicted >= precision) & (curve.domain > 0))
    if not len(reached):
        value = f"at most {predicted.max():.1%}, at a prevalence of {share:.3%}"
        rule = f"a threshold with a predicted precision of {precision:.0%}"
        fix = "lower --precision, label sample.jsonl if there is one, or give more domain text to learn from"
        raise InvalidInput(file=corpus, key="--precision", found=value, rule=rule, fix=fix)
    return int(reached[0])


def _probabilities(domain: np.ndarray, general: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = np.concatenate([domain, general])
    return 1 / (1 + np.exp(-scores)), np.arange(len(scores)) < len(domain)


def calibration_bins(domain: np.ndarray, general: np.ndarray) -> list[tuple[float, float, int]]:
    predicted, is_domain = _probabilities(domain, general)
    tenth = np.minimum((predicted * 10).astype(int), 9)
    bins = [tenth == n for n in range(10)]
    return [
        (float(predicted[b].mean()), float(is_domain[b].mean()), int(b.sum()))
        for b in bins
        if b.any()
    ]


def brier_score(domain: np.ndarray, general: np.ndarray) -> float:
    """Mean squared error of the probabilities (Brier 1950)."""
    predicted, is_domain = _probabilities(domain, general)
    return float(((predicted - is_domain) ** 2).mean())
