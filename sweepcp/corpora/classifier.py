"""The classifier of domain text: cross-fitted logistic regressions over hashed word n-grams."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sweepcp.config.source import Source
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.near_duplicates import WORD
from sweepcp.data.records import split_into_shards
from sweepcp.data.shards import SourceShard
from sweepcp.data.source_files import ResolvedSource
from sweepcp.util.parallel import parallel_map

FEATURES = 1 << 20
"""Hash buckets of words and word pairs."""
CHARS = 3000
"""Characters of a document that the classifier reads."""
MAX_EXAMPLES = 20_000
"""Training documents per role, drawn by hash."""
DRAWN_SHARDS = 64
"""Shards of a source that training documents are drawn from, evenly spread."""
FOLDS = 5


class Example(NamedTuple):
    """A training document. Examples are ordered by their key, the hash of the whole text."""

    key: bytes
    text: str
    source: str


@dataclass(frozen=True)
class TrainedClassifiers:
    """One logistic regression per fold, each trained on all examples outside its fold."""

    weights: np.ndarray
    """Shape (FEATURES + 1, FOLDS), float32; the last row holds the intercepts."""
    domain: list[Example]
    general: list[Example]
    domain_scores: np.ndarray
    """Log odds of each domain example by the classifier that has not seen it, float64."""
    general_scores: np.ndarray
    """Log odds of each general example by the classifier that has not seen it, float64."""


def draw_examples(
    sources: list[Source], files: dict[str, ResolvedSource], *, address: str | None
) -> list[Example]:
    """Return the documents of the sources with the smallest hashes, at most `MAX_EXAMPLES`.

    The hashes make the draw independent of the number of shards and of the order in which they are
    read.

    Raises:
        InvalidInput: Too many of the records that were read cannot be used.
    """
    examples: list[Example] = []
    for source in sources:
        counts = RecordCounts()
        shards = split_into_shards(source, files[source.name])
        stride = -(-len(shards) // DRAWN_SHARDS) or 1
        draw = partial(_draw_from_shard, source, files[source.name])
        for drawn, shard_counts in parallel_map(draw, shards[::stride], address):
            counts.add(shard_counts)
            examples = heapq.nsmallest(MAX_EXAMPLES, examples + drawn)
        check_bad_records(source, counts)
    return examples


def train_classifiers(*, domain: list[Example], general: list[Example]) -> TrainedClassifiers:
    """Train one classifier per fold, and score every example by the one that has not seen it."""
    from sklearn.linear_model import LogisticRegression

    examples = domain + general
    features = _vectorizer().transform([example.text for example in examples])
    is_domain = np.arange(len(examples)) < len(domain)
    folds = _folds_of([example.key for example in examples])
    weights = np.empty((FEATURES + 1, FOLDS), dtype=np.float32)
    scores = np.empty(len(examples))
    for fold in range(FOLDS):
        held_out = folds == fold
        model = LogisticRegression(C=5, solver="liblinear", tol=1e-3, max_iter=200)
        model.fit(features[~held_out], is_domain[~held_out])
        scores[held_out] = model.decision_function(features[held_out])
        weights[:-1, fold] = model.coef_[0]
        weights[-1, fold] = model.intercept_[0]
    return TrainedClassifiers(weights, domain, general, scores[is_domain], scores[~is_domain])


def score_documents(documents: Sequence[Document], weights_file: Path) -> np.ndarray:
    """Return the log odds that each document is domain, shape (documents,), float32."""
    weights = _load_weights(weights_file)
    features = _vectorizer().transform([document.text[:CHARS] for document in documents])
    scores = features @ weights[:-1] + weights[-1]
    # A document of the corpus may also be a training document. Both assign folds by the same hash,
    # so its score comes from the classifier that has not seen it, as on the held-out folds.
    folds = _folds_of([document.sha256 for document in documents])
    return np.asarray(scores[np.arange(len(documents)), folds], dtype=np.float32)


def _draw_from_shard(
    source: Source, files: ResolvedSource, shard: SourceShard
) -> tuple[list[Example], RecordCounts]:
    """Return the documents of a shard with the smallest hashes, and its record counts."""
    counts = RecordCounts()
    documents = read_documents(source, files, shard, counts)
    examples = (Example(d.sha256, d.text[:CHARS], source.name) for d in documents)
    return heapq.nsmallest(MAX_EXAMPLES, examples), counts


def _folds_of(keys: list[bytes]) -> np.ndarray:
    """Return the fold of each document, by the hash of its text; shape (documents,)."""
    return np.array([key[-1] % FOLDS for key in keys], dtype=np.int64)


@lru_cache(maxsize=1)
def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        token_pattern=WORD.pattern,
        ngram_range=(1, 2),
        n_features=FEATURES,
        binary=True,
        alternate_sign=False,
        dtype=np.float32,
    )


@lru_cache(maxsize=1)
def _load_weights(path: Path) -> np.ndarray:
    weights: np.ndarray = np.load(path)
    return weights
