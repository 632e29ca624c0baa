from pathlib import Path

import numpy as np
import pytest

from sweepcp.corpora.mining import _read_labels, mine_corpus
from sweepcp.corpora.prevalence import (
    EDGES,
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
from tests.make import jsonl, source

# Nine general documents of ten score -2, one domain document scores 2; so do the documents of training, but for one
# general document of a hundred and one domain document of ten.
DOMAIN = np.array([2.0] * 9 + [-2.0])
GENERAL = np.array([-2.0] * 99 + [2.0])
CORPUS = np.array([2.0] * 190 + [-2.0] * 810)
CURVE = ScoreCurve(share_above(CORPUS), share_above(DOMAIN), share_above(GENERAL))


def at(score: float) -> int:
    return int(np.argmin(np.abs(EDGES - score)))


def test_shares_above_a_score():
    assert [share_above(DOMAIN)[at(x)] for x in (-3, -2, -1.9, 2, 2.1)] == pytest.approx(
        [1, 1, 0.9, 0.9, 0]
    )


def test_prevalence_by_adjusted_count():
    share, (low, high), origin = estimate_prevalence(CURVE, False, [], 1000, 10, 100)
    assert share == pytest.approx((0.19 - 0.01) / (0.9 - 0.01))
    error = np.sqrt(0.19 / 1000 + (2 / 102) / 100 + share**2 * 0.9 * 0.1 / 10) / 0.89
    assert (low, high) == pytest.approx((share - 1.96 * error, share + 1.96 * error))
    assert "adjusted count" in origin


def test_prevalence_where_the_corpus_stands_for_general_text():
    share, _, origin = estimate_prevalence(CURVE, True, [], 1000, 10, 100)
    assert share == pytest.approx(0.19 / 0.9)
    assert "label" in origin


def rows(*strata: tuple[float, int, int]) -> list[dict[str, object]]:
    """Labelled rows: of each stratum, its size, and how many are domain and are not."""
    return [
        {"stratum": n, "stands_for": size, "label": i < yes, "score": 0.0}
        for n, (size, yes, no) in enumerate(strata)
        for i in range(yes + no)
    ]


def test_prevalence_from_labels_weighs_the_strata():
    labels = rows((0.1, 3, 1), (0.9, 0, 9))
    share, error = labelled_share(labels)
    assert share == pytest.approx(0.075)
    variance = 0.1**2 * 0.7 * 0.3 / 4 + 0.9**2 * 0.05 * 0.95 / 9
    assert error == pytest.approx(np.sqrt(variance))
    assert estimate_prevalence(CURVE, True, labels, 1000, 10, 100)[0] == pytest.approx(0.075)


def test_the_threshold_is_the_lowest_that_is_precise_enough():
    # above -2: precision π · 0.9 / 0.19
    assert EDGES[threshold_for_precision(CURVE, 0.19, 0.89, 1000, "web")] == pytest.approx(
        -2 + 0.005
    )
    with pytest.raises(InvalidInput, match=r"at most 90\.0%"):
        threshold_for_precision(CURVE, 0.19, 0.91, 1000, "web")


def test_calibration_and_brier_by_hand():
    high, low = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))
    assert calibration_bins(DOMAIN, GENERAL) == [
        (pytest.approx(low), pytest.approx(1 / 100), 100),
        (pytest.approx(high), pytest.approx(9 / 10), 10),
    ]
    expected = (9 * low**2 + high**2 + 99 * low**2 + high**2) / 110
    assert brier_score(DOMAIN, GENERAL) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "each line is a JSON object"),
        ('{"text": "a"}', "each line is a JSON object"),
        ('{"label": "yes", "of": "x"}', "true (domain), false or null"),
        ('{"label": 1, "of": "x"}', "true (domain), false or null"),
        ('{"label": true, "of": "other"}', "name another --out"),
        ('{"label": true, "of": "x", "stratum": 1}', "none in stratum 0"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "sample.jsonl"
    path.write_text('{"label": null, "of": "x", "stratum": 0}\n' + line + "\n")
    with pytest.raises(InvalidInput) as error:
        _read_labels(path, "x")
    assert message in str(error.value)
    assert str(path) in error.value.where


@pytest.mark.parametrize(
    ("corpus", "precision", "message"),
    [
        ("nope", 0.9, "a source with text: domain, web"),
        ("domain", 0.9, "a source of role domain besides the corpus"),
        ("web", 1.0, "a share between 0 and 1"),
        ("web", 0.9, "at least 200 domain documents"),
    ],
)
def test_what_cannot_be_mined_is_refused(
    tmp_path: Path, corpus: str, precision: float, message: str
):
    sources = tuple(
        source(name=n, role=r, files=[f"{n}.jsonl"])
        for n, r in (("domain", "domain"), ("web", "general"))
    )
    for s in sources:
        jsonl(tmp_path / f"{s.name}.jsonl", [{"text": f"{s.name} text {n}"} for n in range(150)])
    with pytest.raises(InvalidInput) as error:
        mine_corpus(
            sources,
            {s.name: resolve_source(s, tmp_path, "") for s in sources},
            corpus,
            tmp_path / "out",
            precision,
        )
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()
