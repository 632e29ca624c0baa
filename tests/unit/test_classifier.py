"""The classifier of domain text: what it learns from, and what it scores."""

from pathlib import Path

import numpy as np
import pytest

from sweepcp.corpora import classifier
from sweepcp.corpora.classifier import Example, draw_examples, score_documents, train_classifiers
from sweepcp.data import records
from sweepcp.data.documents import Document
from sweepcp.data.shards import RecordLocation
from sweepcp.data.source_files import resolve_source
from tests.make import jsonl, source


def test_examples_are_drawn_from_shards_all_over_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(classifier, "DRAWN_SHARDS", 2)
    monkeypatch.setattr(records, "SHARD_BYTES", 10)
    monkeypatch.setattr(classifier, "parallel_map", lambda work, items, address: map(work, items))
    for number in range(4):
        jsonl(tmp_path / f"{number}.jsonl", [{"text": f"text {number}"}])
    made = source(files=[f"{number}.jsonl" for number in range(4)])
    examples = draw_examples([made], {"s": resolve_source(made, folder=tmp_path)}, address=None)
    assert sorted(example.text for example in examples) == ["text 0", "text 2"]


def test_examples_are_scored_by_the_classifier_that_has_not_seen_them(tmp_path: Path):
    """No two texts share a word: to a classifier that has not seen it, a text says nothing."""
    texts = [f"word{n} other{n} third{n}" for n in range(60)]
    documents = [Document(text, RecordLocation("")) for text in texts]
    examples = [Example(document.sha256, document.text, "s") for document in documents]
    trained = train_classifiers(domain=examples[:20], general=examples[20:])
    scores = np.concatenate([trained.domain_scores, trained.general_scores])
    folds = np.array([example.key[-1] % 5 for example in examples])
    for fold in range(5):
        assert scores[folds == fold] == pytest.approx(trained.weights[-1, fold], abs=1e-6)
    # A document of the corpus that is an example is not scored by a classifier that knows it.
    np.save(tmp_path / "weights.npy", trained.weights)
    np.testing.assert_allclose(
        score_documents(documents, tmp_path / "weights.npy"), scores, atol=1e-6
    )
    # Those that know it agree with its role.
    known = score_documents(
        [Document(f"{text} again", RecordLocation("")) for text in texts], tmp_path / "weights.npy"
    )
    assert known[:20].mean() > scores.mean() > known[20:].mean()
