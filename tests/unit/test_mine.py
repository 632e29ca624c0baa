import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from sweepcp.config.source import Source
from sweepcp.corpora import corpus_scores, mining
from sweepcp.corpora.classifier import (
    Example,
    TrainedClassifiers,
    draw_examples,
)
from sweepcp.corpora.corpus_scores import ScoredCorpus, prepare_scores, score_corpus
from sweepcp.corpora.label_sample import (
    LabelCandidate,
    labelled_precision,
    read_labels,
    stratum_edges,
    stratum_of,
    write_sample,
)
from sweepcp.corpora.mining import MiningResult, mine_corpus
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
from sweepcp.data.documents import Document
from sweepcp.data.records import split_into_shards
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
    share, (low, high), method = estimate([], corpus_is_general=True)
    assert share == pytest.approx(0.19 / 0.9)
    # 190 of 1,000 documents, and 9 of 10 of the domain's.
    error = share * np.sqrt(0.81 / 190 + 0.1 / 10)
    assert (low, high) == pytest.approx((share - 1.96 * error, share + 1.96 * error))
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


def test_an_interval_ends_at_all_documents():
    share, (low, high), _ = estimate(labelled((0.1, 9, 0), (0.9, 9, 0)), corpus_is_general=True)
    assert (share, high) == (1.0, 1.0)
    assert 0.8 < low < 1


def test_a_threshold_is_one_that_documents_of_the_corpus_reach():
    """Above the best of them, any domain document would promise a precision of 100 %."""
    domain = np.array([3.0] * 9 + [-2.0])
    curve = ScoreCurve(CURVE.corpus, share_above(domain), CURVE.general)
    with pytest.raises(InvalidInput, match=r"at most 90\.0%"):
        threshold_for_precision(curve, prevalence=0.19, precision=0.91, documents=1000)


def test_calibration_is_by_tenths_of_probability():
    odds = np.log([0.05 / 0.95, 0.85 / 0.15, 0.95 / 0.05, 1e9])
    bins = calibration_bins(domain=odds[1:], general=odds[:1])
    assert [(count, observed) for _, observed, count in bins] == [(1, 0), (1, 1), (2, 1)]
    assert [mean for mean, _, _ in bins] == pytest.approx([0.05, 0.85, 0.975])


def test_calibration_and_brier_by_hand():
    high, low = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(2))
    bins: list[object] = list(calibration_bins(domain=DOMAIN, general=GENERAL))
    assert bins == [
        (pytest.approx(low), pytest.approx(1 / 100), 100),
        (pytest.approx(high), pytest.approx(9 / 10), 10),
    ]
    expected = (9 * low**2 + high**2 + 99 * low**2 + high**2) / 110
    assert brier_score(domain=DOMAIN, general=GENERAL) == pytest.approx(expected)


def sample_row(**changes: object) -> str:
    values = {"label": True, "id": "0", "text": "a", "place": "f:1", "score": 1.0}
    return json.dumps(values | {"stratum": 0, "stands_for": 1.0, "of": "x"} | changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a JSON object"),
        ('{"text": "a"}', "add `label: ...`"),
        (sample_row(label="yes"), "true (domain), false or null"),
        (sample_row(label=1), "true (domain), false or null"),
        (sample_row(label=True, of="other"), "pass another --out"),
        (sample_row(label=True, stratum=1), "none in stratum 0"),
        (sample_row(label=True, stratum=4), "an integer below 4"),
        (sample_row(label=True, score="high"), "a number"),
        (sample_row(label=True, stands_for=[]), "a number"),
        ('{"label": ' + "[" * 5000, "a JSON object"),
        (sample_row(label=True).replace("1.0", "1" * 5000), "a JSON object"),
        ('{"label": "\\ud800"}', "a JSON object"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path: Path, line: str, message: str):
    path = tmp_path / "sample.jsonl"
    path.write_text(sample_row(label=None) + "\n" + line + "\n")
    with pytest.raises(InvalidInput) as error:
        read_labels(path, "x")
    assert message in str(error.value)
    assert str(path) in error.value.file


def test_labels_of_texts_with_any_separator_of_unicode(tmp_path: Path):
    path = tmp_path / "sample.jsonl"
    row = json.loads(sample_row(text="a\u2028b\x85c"))
    line = json.dumps(row, ensure_ascii=False) + "\r\n\n"
    path.write_bytes(b"\xef\xbb\xbf" + line.encode())
    assert read_labels(path, "x") == [LabelledDocument(True, 1.0, 0, 1.0)]


def test_bad_records_are_refused_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def score_as_zero(documents: list[Document], weights_file: Path) -> np.ndarray:
        return np.zeros(len(documents), dtype=np.float32)

    monkeypatch.setattr(corpus_scores, "score_documents", score_as_zero)
    texts: list[object] = [{"text": f"about {n}"} for n in range(250)]
    jsonl(tmp_path / "web.jsonl", [*texts, *[{"txt": "x"}] * 5])
    strict = source(name="web", bad_records=0.01)
    files = resolve_source(strict, folder=tmp_path)
    shards = split_into_shards(strict, files)

    def score(s: Source) -> int:
        corpus = ScoredCorpus(s, files, tmp_path, "stamp")
        return score_corpus(corpus, shards, progress=NoProgress(), address=None)[1]

    for _ in range(2):
        with pytest.raises(InvalidInput, match="5 of 255 records cannot be used"):
            score(strict)
    # The limit is no part of the scores: they are kept, and the records are checked again.
    assert score(source(name="web", bad_records=0.05)) == 250
    with pytest.raises(InvalidInput, match="5 of 255 records cannot be used"):
        score(strict)
    with pytest.raises(InvalidInput, match="5 of 255 records cannot be used"):
        draw_examples([strict], {"web": files}, address=None)


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


def test_strata_are_the_selected_as_many_below_them_and_ten_times_as_many(tmp_path: Path):
    """Of 1,000 documents 20 are selected, so the strata are of 20, 20, 200 and 760."""
    scores = np.repeat([4.0, 3.0, 1.0, -1.0], [20, 20, 200, 760])
    curve = ScoreCurve(share_above(scores), share_above(DOMAIN), share_above(GENERAL))
    edges = stratum_edges(curve, index_of(3.5))
    strata = [stratum_of(score, edges) for score in (4.0, 3.5, 3.0, 1.0, -1.0)]
    assert strata == [0, 0, 1, 2, 3]
    candidates = [
        [LabelCandidate(bytes([9 - stratum]), f"{stratum}", "x", score, "text")]
        for stratum, score in enumerate((4.0, 3.0, 1.0, -1.0))
    ]
    path = tmp_path / "sample.jsonl"
    write_sample(path, candidates, curve=curve, threshold_index=index_of(3.5), stamp="x")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # In the order of the hashes.
    assert [row["id"] for row in rows] == ["3", "2", "1", "0"]
    assert [row["stands_for"] for row in rows] == pytest.approx([0.76, 0.2, 0.02, 0.02])
    for row, label in zip(rows, (False, False, True, True), strict=True):
        row["label"] = label
    jsonl(path, rows)
    labels = read_labels(path, "x")
    assert labelled_share(labels)[0] == pytest.approx(0.04)
    assert labelled_precision(labels, 3.0) == (1.0, 2)
    assert labelled_precision(labels, -1.0) == (0.5, 4)
    assert labelled_precision(labels, 4.1) is None


def test_shares_of_a_corpus_are_those_of_all_its_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scores = np.array([-13.0, -2.0, -2.0, 0.0, 0.005, 1.99, 2.0, 13.0])

    def score_by_number(documents: list[Document], weights_file: Path) -> np.ndarray:
        return np.array([scores[int(document.text[-1])] for document in documents])

    monkeypatch.setattr(corpus_scores, "score_documents", score_by_number)
    monkeypatch.setattr(corpus_scores, "BATCH_DOCUMENTS", 3)
    jsonl(tmp_path / "a.jsonl", [{"text": f"text {n}"} for n in range(5)])
    jsonl(tmp_path / "b.jsonl", [{"text": f"text {n}"} for n in range(5, 8)])
    made = source(name="web", files=["a.jsonl", "b.jsonl"])
    files = resolve_source(made, folder=tmp_path)
    shards = split_into_shards(made, files)
    corpus = ScoredCorpus(made, files, tmp_path, "stamp")
    shares, documents = score_corpus(corpus, shards, progress=NoProgress(), address=None)
    assert documents == 8
    np.testing.assert_allclose(shares, share_above(scores))


def test_scores_of_another_corpus_or_of_other_classifiers_are_not_reused(tmp_path: Path):
    path = jsonl(tmp_path / "web.jsonl", [{"text": "one"}])
    made = source(name="web", files=["web.jsonl"])
    folder = tmp_path / "scores"

    def prepare(weight: float) -> tuple[str, bool]:
        """The stamp, and whether what had been scored is kept."""
        weights = np.full((2, 1), weight, dtype=np.float32)
        nothing = np.zeros(0)
        classifiers = TrainedClassifiers(weights, [], [], nothing, nothing)
        files = resolve_source(made, folder=tmp_path)
        stamp = prepare_scores(made, files, folder, classifiers).stamp
        kept = (folder / "00000000.npy").exists()
        np.save(folder / "00000000.npy", nothing)
        return stamp, kept

    first, _ = prepare(1.0)
    assert prepare(1.0) == (first, True)
    second, kept = prepare(2.0)
    assert (second != first, kept) == (True, False)
    assert np.load(folder / "weights.npy").max() == 2.0
    jsonl(path, [{"text": "two"}])
    third, kept = prepare(2.0)
    assert (third not in (first, second), kept) == (True, False)


def score_by_first_word(texts: list[str]) -> np.ndarray:
    return np.array([2.0 if text.startswith("domain") else -2.0 for text in texts])


@pytest.mark.parametrize("general", [True, False])
@pytest.mark.parametrize("hidden", [40, 0])
def test_the_hidden_documents_are_selected_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: int, general: bool
):
    """A tenth of the corpus scores 2, and nine tenths of the domain documents do."""

    def train(*, domain: list[Example], general: list[Example]) -> TrainedClassifiers:
        scores = [score_by_first_word([each.text for each in role]) for role in (domain, general)]
        return TrainedClassifiers(np.zeros((2, 1)), domain, general, *scores)

    def score(documents: list[Document], weights_file: Path) -> np.ndarray:
        return score_by_first_word([document.text for document in documents])

    monkeypatch.setattr(mining, "train_classifiers", train)
    monkeypatch.setattr(corpus_scores, "score_documents", score)
    for module in ("classifier", "corpus_scores", "mining"):
        monkeypatch.setattr(
            f"sweepcp.corpora.{module}.parallel_map", lambda work, items, address: map(work, items)
        )
    texts = {
        "domain": [f"{'odd' if n < 21 else 'domain'} text {n}" for n in range(210)],
        "web": [f"{'domain' if 100 <= n < 100 + hidden else 'other'} {n}" for n in range(400)],
        "general": [f"general text {n}" for n in range(210 * general)],
    }
    sources = []
    for name, documents in texts.items():
        if documents:
            jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in documents])
            role = "domain" if name == "domain" else "general"
            sources.append(source(name=name, role=role, files=[f"{name}.jsonl"], language="de"))

    def mine() -> MiningResult:
        return mine_corpus(
            tuple(sources),
            {each.name: resolve_source(each, folder=tmp_path) for each in sources},
            corpus="web",
            out=tmp_path / "out",
            precision=0.9,
            progress=NoProgress(),
        )

    if not hidden:
        with pytest.raises(InvalidInput, match="told from none"):
            mine()
        return
    result = mine()
    assert (result.documents, result.selected) == (400, 40)
    expected = {"domain": 210, "general": 210} if general else {"domain": 210, "web": 400}
    assert result.training == expected
    assert (result.prevalence, result.recall) == pytest.approx((0.1 / 0.9, 0.9))
    assert result.precision == pytest.approx(1.0)
    assert result.by_source["domain"] == pytest.approx(0.9)
    assert result.by_source["general" if general else "web"] == (0.0 if general else 0.1)
    (file,) = (tmp_path / "out" / "documents").iterdir()
    rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert [row["text"] for row in rows] == texts["web"][100:140]
    ids = (tmp_path / "out" / "exclude.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in ids] == [row["id"] for row in rows]
    labelled = [json.loads(line) for line in (tmp_path / "out/sample.jsonl").open()]
    # All of those that are selected, and 75 of the others.
    assert sorted(row["score"] for row in labelled) == [-2.0] * 75 + [2.0] * 40
