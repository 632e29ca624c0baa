from pathlib import Path

import numpy as np
import pytest

from sweepcp.corpora.label_sample import read_labels
from sweepcp.corpora.mining import mine_corpus
from sweepcp.corpora.prevalence import (
    EDGES,
    LabelledDocument,
    PrevalenceEstimate,
    ScoreCurve,
    brier_score,
    calibration_bins,
    estimate_prevalence,
    labelled_share,
    share_above,
    threshold_for_precision,
)
from sweepcp.data.source_files import resolve_source
from sweepcp.errors import InvalidInput
from sweepcp.util.progress import NoProgress
from tests.make import jsonl, source

# In the corpus 19 % of the documents score 2, the others -2. So do the training documents: nine of
# ten domain documents score 2, and one of a hundred general documents.
DOMAIN = np.array([2.0] * 9 + [-2.0])
GENERAL = np.array([-2.0] * 99 + [2.0])
CORPUS = np.array([2.0] * 190 + [-2.0] * 810)
CURVE = ScoreCurve(share_above(CORPUS), share_above(DOMAIN), share_above(GENERAL))


def index_of(score: float) -> int:
    return int(np.argmin(np.abs(EDGES - score)))


def estimate(labels: list[LabelledDocument], *, corpus_is_general: bool) -> PrevalenceEstimate:
    return estimate_prevalence(
        CURVE,
        labels,
        corpus_is_general=corpus_is_general,
        documents=1000,
        domain_examples=10,
        general_examples=100,
    )


def labelled(*strata: tuple[float, int, int]) -> list[LabelledDocument]:
    """Labels of strata, each given as (share of the corpus, domain labels, general labels)."""
    labels = []
    for stratum, (share, positives, negatives) in enumerate(strata):
        labels += [LabelledDocument(True, 0.0, stratum, share)] * positives
        labels += [LabelledDocument(False, 0.0, stratum, share)] * negatives
    return labels


def test_shares_above_a_score():
    shares = share_above(DOMAIN)
    found = [shares[index_of(score)] for score in (-3, -2, -1.9, 2, 2.1)]
    assert found == pytest.approx([1, 1, 0.9, 0.9, 0])


def test_prevalence_by_adjusted_count():
    share, (low, high), method = estimate([], corpus_is_general=False)
    assert share == pytest.approx((0.19 - 0.01) / (0.9 - 0.01))
    error = np.sqrt(0.19 / 1000 + (2 / 102) / 100 + share**2 * 0.9 * 0.1 / 10) / 0.89
    assert (low, high) == pytest.approx((share - 1.96 * error, share + 1.96 * error))
    assert "adjusted count" in method


def test_prevalence_where_the_corpus_stands_for_general_text():
    share, _, method = estimate([], corpus_is_general=True)
    assert share == pytest.approx(0.19 / 0.9)
    assert "label" in method


def test_prevalence_from_labels_weighs_the_strata():
    labels = labelled((0.1, 3, 1), (0.9, 0, 9))
    share, error = labelled_share(labels)
    assert share == pytest.approx(0.075)
    variance = 0.1**2 * 0.7 * 0.3 / 4 + 0.9**2 * 0.05 * 0.95 / 9
    assert error == pytest.approx(np.sqrt(variance))
    assert estimate(labels, corpus_is_general=True).share == pytest.approx(0.075)


def test_the_threshold_is_the_lowest_that_is_precise_enough():
    # Above -2 the precision is π · 0.9 / 0.19.
    index = threshold_for_precision(CURVE, prevalence=0.19, precision=0.89, documents=1000)
    assert EDGES[index] == pytest.approx(-2 + 0.005)
    with pytest.raises(InvalidInput, match=r"at most 90\.0%"):
        threshold_for_precision(CURVE, prevalence=0.19, precision=0.91, documents=1000)


def test_calibration_and_brier_by_hand():
    high, low = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))
    bins: list[object] = list(calibration_bins(domain=DOMAIN, general=GENERAL))
    assert bins == [
        (pytest.approx(low), pytest.approx(1 / 100), 100),
        (pytest.approx(high), pytest.approx(9 / 10), 10),
    ]
    expected = (9 * low**2 + high**2 + 99 * low**2 + high**2) / 110
    assert brier_score(domain=DOMAIN, general=GENERAL) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "each line is a JSON object"),
        ('{"text": "a"}', "each line is a JSON object"),
        ('{"label": "yes", "of": "x"}', "true (domain), false or null"),
        ('{"label": 1, "of": "x"}', "true (domain), false or null"),
        ('{"label": true, "of": "other"}', "pass another --out"),
        ('{"label": true, "of": "x", "stratum": 1}', "none in stratum 0"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "sample.jsonl"
    path.write_text('{"label": null, "of": "x", "stratum": 0}\n' + line + "\n")
    with pytest.raises(InvalidInput) as error:
        read_labels(path, "x")
    assert message in str(error.value)
    assert str(path) in error.value.file


@pytest.mark.parametrize(
    ("corpus", "precision", "file", "message"),
    [
        ("nope", 0.9, "--corpus", "a source with text: domain, web"),
        ("domain", 0.9, "--corpus", "a source of role domain besides the corpus"),
        ("web", 1.0, "--precision", "a share between 0 and 1"),
        ("web", 0.9, "web", "at least 200 domain documents"),
    ],
)
def test_what_cannot_be_mined_is_refused(
    tmp_path: Path, corpus: str, precision: float, file: str, message: str
):
    sources = (
        source(name="domain", role="domain", files=["domain.jsonl"]),
        source(name="web", role="general", files=["web.jsonl"]),
    )
    for s in sources:
        jsonl(tmp_path / f"{s.name}.jsonl", [{"text": f"{s.name} text {n}"} for n in range(150)])
    with pytest.raises(InvalidInput) as error:
        mine_corpus(
            sources,
            {s.name: resolve_source(s, folder=tmp_path) for s in sources},
            corpus=corpus,
            out=tmp_path / "out",
            precision=precision,
            progress=NoProgress(),
        )
    assert message in str(error.value)
    assert error.value.file == file
    assert not (tmp_path / "out").exists()
