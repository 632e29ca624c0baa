"""How common domain text is in a corpus, and how precise a selection by score is.

Let π be the share of domain documents in the corpus, R(t) the share of the corpus that scores at
least t, and T(t) the share of domain documents that scores at least t, measured on held-out folds
of the training documents. The precision of selecting at t is then π · T(t) / R(t). This does not
need calibrated probabilities: those of the classifier hold at the prevalence of the training
documents, which is far from that of the corpus.

π is estimated by the first of these methods whose data is available:

- labels of a random sample, stratified by score;
- adjusted count, (R − F) / (T − F), where F(t) is the share of general documents from other sources
  that scores at least t (Forman 2008, Quantifying counts and costs via classification, Data Mining
  and Knowledge Discovery 17);
- if the corpus itself stands for general text, the smallest R(t) / T(t), which assumes that the
  highest scores are all domain (Blanchard, Lee and Scott 2010, Semi-supervised novelty detection,
  JMLR 11).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sweepcp.errors import InvalidInput

EDGES = np.linspace(-12, 12, 4801)
"""Scores (log odds) at which shares are counted."""
MIN_DOMAIN_SHARE = 0.3
"""Prevalence is not estimated at thresholds that fewer of the domain documents reach."""


@dataclass(frozen=True)
class ScoreCurve:
    """Shares of documents that score at least each of `EDGES`; arrays of shape (len(EDGES),)."""

    corpus: np.ndarray
    domain: np.ndarray
    general: np.ndarray


@dataclass(frozen=True)
class LabelledDocument:
    """A document of the label sample, as labelled by a person."""

    is_domain: bool
    score: float
    """Log odds."""
    stratum: int
    stratum_share: float
    """Share of the corpus that its stratum stands for."""


class PrevalenceEstimate(NamedTuple):
    """The share of domain documents in a corpus."""

    share: float
    interval: tuple[float, float]
    """95 % confidence interval."""
    method: str
    """How the share was estimated, as text for the user."""


def share_above(scores: np.ndarray) -> np.ndarray:
    """Return the share of scores that are at least each of `EDGES`, shape (len(EDGES),)."""
    return 1 - np.searchsorted(np.sort(scores), EDGES, side="left") / len(scores)


def estimate_prevalence(
    curve: ScoreCurve,
    labels: list[LabelledDocument],
    *,
    corpus_is_general: bool,
    documents: int,
    domain_examples: int,
    general_examples: int,
) -> PrevalenceEstimate:
    """Estimate the share of domain documents in a corpus; see the module for the methods.

    Args:
        curve: Shares above thresholds, of the corpus and of held-out training documents.
        labels: The labelled documents of the sample; may be empty.
        corpus_is_general: Whether the corpus served as general text in training.
        documents: Number of documents in the corpus.
        domain_examples: Number of domain documents behind `curve.domain`.
        general_examples: Number of general documents behind `curve.general`.
    """
    if labels:
        share, error = labelled_share(labels)
        method = f"{len(labels)} labelled documents of a stratified random sample"
    elif corpus_is_general:
        share, error = _lowest_ratio(curve, documents=documents, domain_examples=domain_examples)
        method = (
            "the scores, assuming that the highest are all domain: label sample.jsonl to verify it"
        )
    else:
        share, error = _adjusted_count(
            curve,
            documents=documents,
            domain_examples=domain_examples,
            general_examples=general_examples,
        )
        method = "the scores, by adjusted count"
    low = max(0.0, share - 1.96 * error)
    high = min(1.0, share + 1.96 * error)
    return PrevalenceEstimate(share, (low, high), method)


def labelled_share(labels: list[LabelledDocument]) -> tuple[float, float]:
    """Estimate the share of domain documents and its standard error from a stratified sample.

    The estimator of Cochran 1977, Sampling Techniques, chapter 5.
    """
    share = variance = 0.0
    for stratum, size in sorted({(label.stratum, label.stratum_share) for label in labels}):
        answers = [label.is_domain for label in labels if label.stratum == stratum]
        positives, count = sum(answers), len(answers)
        share += size * (positives / count)
        # Half a positive and half a negative are added for the variance, so that a stratum without
        # a single domain document does not count as known without error.
        smoothed = (positives + 0.5) / (count + 1)
        variance += size**2 * smoothed * (1 - smoothed) / count
    return share, float(np.sqrt(variance))


def threshold_for_precision(
    curve: ScoreCurve, *, prevalence: float, precision: float, documents: int
) -> int:
    """Return the index into `EDGES` of the lowest threshold with the predicted precision.

    Raises:
        InvalidInput: No threshold reaches the precision.
    """
    # Beyond the highest score of the corpus R(t) is 0 and the ratio is undefined: only thresholds
    # that at least one document reaches count, and the divisor is bounded by one document.
    occupied = curve.corpus * documents >= 1
    ratio = prevalence * curve.domain / np.maximum(curve.corpus, 1 / documents)
    predicted = np.where(occupied, ratio, 0)
    reached = np.flatnonzero((predicted >= precision) & (curve.domain > 0))
    if not len(reached):
        raise InvalidInput(
            key="--precision",
            found=f"at most {predicted.max():.1%}, at a prevalence of {prevalence:.3%}",
            rule=f"a threshold with a predicted precision of {precision:.0%}",
            fix="lower --precision, label sample.jsonl if it exists, or add domain text",
        )
    return int(reached[0])


def calibration_bins(*, domain: np.ndarray, general: np.ndarray) -> list[tuple[float, float, int]]:
    """Return the calibration of held-out scores by tenths of predicted probability.

    Args:
        domain: Scores (log odds) of domain documents.
        general: Scores (log odds) of general documents.

    Returns:
        For each tenth that is not empty: mean predicted probability, observed share of domain
        documents, number of documents.
    """
    predicted, is_domain = _probabilities(domain=domain, general=general)
    tenths = np.minimum((predicted * 10).astype(int), 9)
    bins: list[tuple[float, float, int]] = []
    for tenth in range(10):
        members = tenths == tenth
        if members.any():
            mean, observed = predicted[members].mean(), is_domain[members].mean()
            bins.append((float(mean), float(observed), int(members.sum())))
    return bins


def brier_score(*, domain: np.ndarray, general: np.ndarray) -> float:
    """Return the mean squared error of the predicted probabilities (Brier 1950)."""
    predicted, is_domain = _probabilities(domain=domain, general=general)
    return float(((predicted - is_domain) ** 2).mean())


def _lowest_ratio(
    curve: ScoreCurve, *, documents: int, domain_examples: int
) -> tuple[float, float]:
    """Return the smallest R(t) / T(t) and its standard error."""
    usable = curve.domain >= MIN_DOMAIN_SHARE
    at = int(np.flatnonzero(usable)[np.argmin(curve.corpus[usable] / curve.domain[usable])])
    corpus, domain = curve.corpus[at], curve.domain[at]
    share = float(corpus / domain)
    # The relative variance of a ratio is the sum of the relative variances of two binomial shares.
    relative_variance = (1 - corpus) / max(1.0, corpus * documents) + (1 - domain) / domain_examples
    return share, float(share * np.sqrt(relative_variance))


def _adjusted_count(
    curve: ScoreCurve, *, documents: int, domain_examples: int, general_examples: int
) -> tuple[float, float]:
    """Return (R − F) / (T − F) at the threshold where its standard error is smallest."""
    gap = np.maximum(curve.domain - curve.general, 1e-9)
    shares = np.clip((curve.corpus - curve.general) / gap, 0, 1)
    # Where no general document was observed, their share is small but not 0. Without this
    # correction (Laplace) such thresholds would seem exact, and one of them would be chosen.
    false_positives = (curve.general * general_examples + 1) / (general_examples + 2)
    variance = (
        curve.corpus / documents
        + false_positives / general_examples
        + shares**2 * curve.domain * (1 - curve.domain) / domain_examples
    )
    errors = np.where(curve.domain >= MIN_DOMAIN_SHARE, np.sqrt(variance) / gap, np.inf)
    at = int(np.argmin(errors))
    return float(shares[at]), float(errors[at])


def _probabilities(*, domain: np.ndarray, general: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted probabilities of all documents, and whether each of them is domain."""
    scores = np.concatenate([domain, general])
    return 1 / (1 + np.exp(-scores)), np.arange(len(scores)) < len(domain)
