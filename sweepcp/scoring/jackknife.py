"""Standard errors by a jackknife over documents."""

import math

import numpy as np


def jackknife_ratio(amount: np.ndarray, size: np.ndarray) -> tuple[float, np.ndarray]:
    """Compute Σ amount / Σ size, and how much it changes without each document.

    Args:
        amount: Sum over each document, shape (documents,); 0 for a document without items.
        size: The same of the sizes; positive for at least two documents.

    Returns:
        The ratio, and the influences √((n − 1) / n) · (ratio without the document − ratio), where n
        is the number of documents with items. The influence of a document without items is 0.
        Influences on a weighted sum of ratios are the weighted sums of the influences, also where
        the ratios share documents.
    """
    total, total_size = float(amount.sum()), float(size.sum())
    ratio = total / total_size
    documents = np.count_nonzero(size)
    without = (total - amount) / (total_size - size)
    return ratio, math.sqrt((documents - 1) / documents) * (without - ratio)


def standard_error(influence: np.ndarray) -> float:
    """Compute the standard error of an estimate from the influences of the documents on it.

    The variance is the delete-one jackknife's, Σ influence², with whole documents deleted (Wolter,
    Introduction to Variance Estimation, 2007, section 4.6). Its root underestimates the standard
    deviation where few documents decide, for instance by a fifth where one holds a third of the
    items. It is therefore divided by c(f) = √(2 / f) · Γ((f + 1) / 2) / Γ(f / 2), the mean of the
    root of a variance estimate with f degrees of freedom over the true deviation (Holtzman, The
    unbiased estimate of the population variance and standard deviation, 1950). Satterthwaite's f
    (Biometrics Bulletin 2, 1946) is (Σ λ)² / Σ λ², with λ the expected squares of the influences.
    For normal influences Σ λ² has the unbiased estimate Σ influence⁴ / 3, and (Σ λ)² has
    (Σ influence²)² less two of those, so f is 3 · (Σ influence²)² / Σ influence⁴ − 2, and at most
    the number of documents less one.

    Args:
        influence: Of each document, see `jackknife_ratio`.
    """
    squares = np.square(influence)
    variance = float(squares.sum())
    fourth_powers = float(np.square(squares).sum())
    if fourth_powers == 0:
        return 0.0
    freedom = 3 * variance**2 / fourth_powers - 2
    freedom = max(1.0, min(freedom, np.count_nonzero(influence) - 1.0))
    log_gammas = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    return math.sqrt(variance) / (math.sqrt(2 / freedom) * math.exp(log_gammas))
