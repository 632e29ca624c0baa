"""Domain text out of a general corpus: train a classifier, score the corpus, write what reaches the threshold."""

import gzip
import hashlib
import heapq
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sweepcp.config.source import Source
from sweepcp.corpora.prevalence import (
    EDGES,
    ScoreCurve,
    brier_score,
    calibration_bins,
    estimate_prevalence,
    share_above,
    threshold_for_precision,
)
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.near_duplicates import WORD
from sweepcp.data.records import SourceShard, split_into_shards
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_json, write_text
from sweepcp.util.json_values import digest
from sweepcp.util.parallel import parallel_map

FEATURES = 1 << 20
CHARS = 3000
"""What the classifier reads of a document."""
MAX_EXAMPLES = 20_000
"""Documents a side that it learns from, drawn by hash."""
DRAWN_SHARDS = 64
"""Parts of a source that they are drawn from, evenly spread."""
MIN_EXAMPLES = 200
FOLDS = 5
STRATUM_SAMPLE = 75
"""Documents of the sample for labels in each of its four strata."""
BATCH_DOCUMENTS = 512


class Example(NamedTuple):
    """A document that the classifier learns from."""

    key: bytes
    text: str
    source: str


class LabelCandidate(NamedTuple):
    """A document of the sample that may be labelled."""

    key: bytes
    id: str
    place: str
    score: float
    text: str


@dataclass(frozen=True)
class MiningResult:
    """The answer of `sweepcp data mine`; shares are of documents."""

    corpus: str
    documents: int
    prevalence: float
    prevalence_interval: tuple[float, float]
    """95 %."""
    prevalence_from: str
    threshold: float
    """Log odds."""
    precision: float
    """Predicted, of the documents that were selected."""
    recall: float
    """Predicted: share of the corpus's domain documents that were selected."""
    selected: int
    training: dict[str, int]
    """Source → documents that the classifier learnt from."""
    by_source: dict[str, float]
    """Source → share of its held-out documents at or above the threshold."""
    calibration: list[tuple[float, float, int]]
    """Of held-out documents: mean predicted probability, share that is domain, documents; by tenths of probability."""
    brier: float
    labelled_precision: tuple[float, int] | None
    """Of the selected documents in the sample that are labelled: share that is domain, documents."""


def mine_corpus(
    sources: tuple[Source, ...],
    found: dict[str, ResolvedSource],
    corpus: str,
    out: Path,
    precision: float,
    address: str | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, of: None,
) -> MiningResult:
    """Write the domain-like documents of the source `corpus` into the folder `out`, with a report and a sample.

    Learns from the sources of role domain against those of role general, without the corpus, or against the corpus
    where there is no other. A run that was stopped goes on; a run after labels were filled in takes them into account.
    Raises `BadInput` when there is too little to learn from, or when the precision cannot be reached.
    """
    if not 0 < precision < 1:
        raise InvalidInput(
            file="--precision",
            key="--precision",
            found=precision,
            rule="a share between 0 and 1",
            fix="write 0.9, say",
        )
    source, domain, general = _split_roles(sources, corpus)
    examples = [_draw_examples(group, found, address) for group in (domain, general)]
    for group, drawn in zip(("domain", "general"), examples, strict=True):
        if len(drawn) < MIN_EXAMPLES:
            rule = f"at least {MIN_EXAMPLES} {group} documents to learn from"
            raise InvalidInput(
                file=corpus,
                key="sources",
                found=f"{len(drawn)} {group} documents",
                rule=rule,
                fix=f"add {group} text",
            )
    held_out, weights = _train_classifiers(*examples)
    stamp = digest(
        [source_fingerprint(source, found[corpus]), hashlib.sha256(weights.tobytes()).hexdigest()]
    )
    work = _prepare_scores_folder(out, stamp, weights)
    cut = split_into_shards(source, found[corpus])
    rates, documents = _score_all(source, found[corpus], work, cut, address, progress)
    curve = ScoreCurve(rates, *(share_above(scores) for scores in held_out))
    own = general == [source]
    labels = _read_labels(out / "sample.jsonl", stamp)
    share, interval, origin = estimate_prevalence(
        curve, own, labels, documents, *map(len, examples)
    )
    if interval[0] <= 0:
        value = f"{share:.4%} of the documents, 95 %: 0 to {interval[1]:.4%}, from {origin}"
        rule = "a corpus holds so much domain text that it can be told from none"
        raise InvalidInput(
            file=corpus,
            key="--corpus",
            found=value,
            rule=rule,
            fix="mine another corpus, or give more text to learn from",
        )
    at = threshold_for_precision(curve, share, precision, documents, corpus)
    select = partial(
        _select_from_shard,
        source,
        found[corpus],
        work,
        out,
        float(EDGES[at]),
        _stratum_edges(curve, at, documents),
    )
    selected, samples = _select_all(select, cut, out, address, progress)
    if not labels:
        _write_sample(out / "sample.jsonl", stamp, samples, curve, at, documents)
    result = MiningResult(
        corpus=corpus,
        documents=documents,
        prevalence=share,
        prevalence_interval=interval,
        prevalence_from=origin,
        threshold=float(EDGES[at]),
        precision=float(min(1.0, share * curve.domain[at] / curve.corpus[at])),
        recall=float(curve.domain[at]),
        selected=selected,
        training=dict(Counter(example.source for group in examples for example in group)),
        by_source=_share_by_source(examples, held_out, float(EDGES[at])),
        calibration=calibration_bins(*held_out),
        brier=brier_score(*held_out),
        labelled_precision=_labelled_precision(labels, float(EDGES[at])),
    )
    write_json(out / "report.json", asdict(result))
    files = [f"{out.absolute()}/documents"]
    entry = {
        "name": f"mined-{corpus}",
        "role": "domain",
        "language": source.language,
        "files": files,
    }
    write_text(out / "source.yaml", f"- {json.dumps(entry)}\n")
    return result


def _split_roles(
    sources: tuple[Source, ...], corpus: str
) -> tuple[Source, list[Source], list[Source]]:
    """The corpus, what is domain, and what is general: other sources, or the corpus where there is none."""
    by_name = {s.name: s for s in sources if s.planned_tokens is None}
    if corpus not in by_name:
        raise InvalidInput(
            file="--corpus",
            key="--corpus",
            found=corpus,
            rule=f"a source with text: {', '.join(by_name)}",
            fix="name one of them",
        )
    others = [s for s in by_name.values() if s.name != corpus]
    domain = [s for s in others if s.role == "domain"]
    if not domain:
        raise InvalidInput(
            file="--corpus",
            key="sources",
            found=list(by_name),
            rule="a source of role domain besides the corpus",
            fix="add one",
        )
    return by_name[corpus], domain, [s for s in others if s.role == "general"] or [by_name[corpus]]


def _draw_examples(
    sources: list[Source], found: dict[str, ResolvedSource], address: str | None
) -> list[Example]:
    """Documents of the sources with the smallest hashes: the same ones every time."""
    drawn: list[Example] = []
    for source in sources:
        cut = split_into_shards(source, found[source.name])
        few = cut[:: -(-len(cut) // DRAWN_SHARDS) or 1]
        for more in parallel_map(
            partial(_draw_from_shard, source, found[source.name]), few, address
        ):
            drawn = heapq.nsmallest(MAX_EXAMPLES, drawn + more)
    return drawn


def _draw_from_shard(source: Source, found: ResolvedSource, part: SourceShard) -> list[Example]:
    documents = read_documents(source, found, part, RecordCounts())
    return heapq.nsmallest(
        MAX_EXAMPLES, (Example(d.key, d.text[:CHARS], source.name) for d in documents)
    )


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


def _train_classifiers(
    domain: list[Example], general: list[Example]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of the documents of both sides, each by a classifier that has not seen it, and the classifiers.

    They are logistic regressions, one a fold of the documents by hash; weights have shape (FEATURES + 1, FOLDS), the
    last row is the intercepts.
    """
    from sklearn.linear_model import LogisticRegression

    examples = domain + general
    features = _vectorizer().transform([e.text for e in examples])
    is_domain = np.arange(len(examples)) < len(domain)
    folds = np.array([_fold_of(e.key) for e in examples])
    weights = np.empty((FEATURES + 1, FOLDS), dtype=np.float32)
    scores = np.empty(len(examples))
    for fold in range(FOLDS):
        model = LogisticRegression(C=5, solver="liblinear", tol=1e-3, max_iter=200)
        model.fit(features[folds != fold], is_domain[folds != fold])
        scores[folds == fold] = model.decision_function(features[folds == fold])
        weights[:, fold] = [*model.coef_[0], *model.intercept_]
    return [scores[is_domain], scores[~is_domain]], weights


def _fold_of(key: bytes) -> int:
    return key[-1] % FOLDS


def _prepare_scores_folder(out: Path, stamp: str, weights: np.ndarray) -> Path:
    """The folder of the scores; empty if they are of another classifier or corpus."""
    work = out / "scores"
    state = work / "state.json"
    if not state.exists() or json.loads(state.read_text()) != {"stamp": stamp}:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        np.save(work / "weights.npy", weights)
        write_json(state, {"stamp": stamp})
    return work


def _score_all(
    source: Source,
    found: ResolvedSource,
    work: Path,
    cut: list[SourceShard],
    address: str | None,
    progress: Callable[[str, int, int], None],
) -> tuple[np.ndarray, int]:
    """Share of the corpus at or above each of `EDGES`, and its documents; scores of parts that are there stay."""
    left = [p for p in cut if not _scores_file(work, p).exists()]
    tally = RecordCounts()
    for done, more in enumerate(
        parallel_map(partial(_score_shard, source, found, work), left, address), 1
    ):
        tally.add(more)
        progress("scoring", len(cut) - len(left) + done, len(cut))
    check_bad_records(source, tally)
    counts = np.zeros(len(EDGES) + 1, dtype=np.int64)
    for part in cut:
        places = np.searchsorted(EDGES, np.load(_scores_file(work, part)), side="right")
        counts += np.bincount(places, minlength=len(counts))
    documents = int(counts.sum())
    if not documents:
        raise InvalidInput(
            file=source.name,
            key="--corpus",
            found=source.name,
            rule="a corpus with documents",
            fix="name another",
        )
    return (documents - np.cumsum(counts)[:-1]) / documents, documents


def _scores_file(work: Path, part: SourceShard) -> Path:
    return work / f"{part.number:08}.npy"


def _score_shard(
    source: Source, found: ResolvedSource, work: Path, part: SourceShard
) -> RecordCounts:
    tally = RecordCounts()
    scores: list[np.ndarray] = []
    documents = read_documents(source, found, part, tally)
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        scores.append(_score_documents(work, batch))
    path = _scores_file(work, part)
    with path.with_suffix(".tmp").open("wb") as file:
        np.save(file, np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32))
    os.replace(path.with_suffix(".tmp"), path)
    return tally


@lru_cache(maxsize=1)
def _load_weights(path: Path) -> np.ndarray:
    weights: np.ndarray = np.load(path)
    return weights


def _score_documents(work: Path, documents: list[Document]) -> np.ndarray:
    """Log odds of each document, float32, by the classifier of its fold: it may have been among the examples."""
    weights = _load_weights(work / "weights.npy")
    scores = (
        _vectorizer().transform([d.text[:CHARS] for d in documents]) @ weights[:-1] + weights[-1]
    )
    return np.asarray(
        scores[np.arange(len(documents)), [_fold_of(d.key) for d in documents]], dtype=np.float32
    )


def _stratum_edges(curve: ScoreCurve, at: int, documents: int) -> list[float]:
    """Scores that part the corpus: selected, as many below it, ten times as many below that, the rest."""
    selected = curve.corpus[at]
    lower = [EDGES[int(np.argmax(curve.corpus <= min(1.0, times * selected)))] for times in (2, 12)]
    return [float(EDGES[at]), *map(float, lower)]


def _select_from_shard(
    source: Source,
    found: ResolvedSource,
    work: Path,
    out: Path,
    threshold: float,
    strata: list[float],
    part: SourceShard,
) -> tuple[int, list[str], list[list[LabelCandidate]]]:
    """Write the documents of a part at or above the threshold.

    Returns the part's number, the ids of what was written, and candidates for the sample by stratum.
    """
    ids: list[str] = []
    rows: list[list[LabelCandidate]] = [[] for _ in range(len(strata) + 1)]
    scores = np.load(_scores_file(work, part)).tolist()
    path = out / "documents" / f"{part.number:08}.jsonl.gz"
    lines = []
    for document, score in zip(
        read_documents(source, found, part, RecordCounts()), scores, strict=True
    ):
        id_, place = document.key.hex()[:16], str(document.place)
        stratum = sum(score < edge for edge in strata)
        rows[stratum] = _keep_smallest(
            rows[stratum], LabelCandidate(document.key, id_, place, score, document.text[:1000])
        )
        if score >= threshold:
            ids.append(id_)
            lines.append(
                json.dumps(
                    {"id": id_, "score": round(score, 3), "place": place, "text": document.text}
                )
            )
    if lines:
        with (
            path.with_suffix(".tmp").open("wb") as file,
            gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        ):
            packed.writelines(f"{line}\n".encode() for line in lines)
        os.replace(path.with_suffix(".tmp"), path)
    return part.number, ids, rows


def _keep_smallest(rows: list[LabelCandidate], row: LabelCandidate) -> list[LabelCandidate]:
    """The rows with the smallest hashes."""
    return (
        heapq.nsmallest(STRATUM_SAMPLE, [*rows, row])
        if len(rows) < STRATUM_SAMPLE or row < max(rows)
        else rows
    )


def _select_all(
    select: Callable[[SourceShard], tuple[int, list[str], list[list[LabelCandidate]]]],
    cut: list[SourceShard],
    out: Path,
    address: str | None,
    progress: Callable[[str, int, int], None],
) -> tuple[int, list[list[LabelCandidate]]]:
    shutil.rmtree(out / "documents", ignore_errors=True)
    (out / "documents").mkdir(parents=True)
    ids: dict[int, list[str]] = {}
    samples: list[list[LabelCandidate]] = [[], [], [], []]
    for done, (number, own, rows) in enumerate(parallel_map(select, cut, address), 1):
        ids[number] = own
        samples = [
            heapq.nsmallest(STRATUM_SAMPLE, a + b) for a, b in zip(samples, rows, strict=True)
        ]
        progress("writing", done, len(cut))
    selected = [id_ for number in sorted(ids) for id_ in ids[number]]
    write_text(out / "exclude.jsonl", "".join(json.dumps({"id": id_}) + "\n" for id_ in selected))
    return len(selected), samples


def _write_sample(
    path: Path,
    stamp: str,
    samples: list[list[LabelCandidate]],
    curve: ScoreCurve,
    at: int,
    documents: int,
) -> None:
    """The sample for labels, in the order of the hashes, so that scores do not sway whoever labels it."""
    shares = [
        0.0,
        *(
            float(curve.corpus[np.searchsorted(EDGES, e)])
            for e in _stratum_edges(curve, at, documents)
        ),
        1.0,
    ]
    rows = [
        (row.key, {"label": None, "id": row.id, "text": row.text, "place": row.place, "score": row.score,
                   "stratum": n, "stands_for": shares[n + 1] - shares[n], "of": stamp})
        for n, stratum in enumerate(samples)
        for row in stratum
    ]  # fmt: skip
    write_text(
        path,
        "".join(
            json.dumps(row, ensure_ascii=False) + "\n"
            for _, row in sorted(rows, key=lambda r: r[0])
        ),
    )


def _read_labels(path: Path, stamp: str) -> list[dict[str, Any]]:
    """The labelled rows of a sample; `BadInput` names the line of a label that is none, or of another corpus."""
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else [], 1):
        try:
            row = json.loads(line)
            label = row["label"]
        except (ValueError, KeyError, TypeError):
            rule = "each line is a JSON object with a label"
            raise InvalidInput(
                file=f"{path}:{number}",
                key="label",
                found=line,
                rule=rule,
                fix=f"mend it, or remove {path}",
            ) from None
        if label not in (True, False, None) or isinstance(label, float | int) != isinstance(
            label, bool
        ):
            raise InvalidInput(
                file=f"{path}:{number}",
                key="label",
                found=label,
                rule="true (domain), false or null",
                fix="correct the label",
            )
        if label is not None and row.get("of") != stamp:
            rule = "labels belong to the corpus and the domain text that the sample was drawn with"
            raise InvalidInput(
                file=f"{path}:{number}",
                key="of",
                found=row.get("of"),
                rule=rule,
                fix="name another --out",
            )
        rows.append(row)
    labelled = [row for row in rows if row["label"] is not None]
    if labelled and {row["stratum"] for row in labelled} != {row["stratum"] for row in rows}:
        missing = {row["stratum"] for row in rows} - {row["stratum"] for row in labelled}
        rule = "some documents of every stratum are labelled, or none at all"
        raise InvalidInput(
            file=path,
            key="label",
            found=f"none in stratum {min(missing)}",
            rule=rule,
            fix="label some of them: they are shuffled",
        )
    return labelled


def _labelled_precision(labels: list[dict[str, Any]], score: float) -> tuple[float, int] | None:
    chosen = [bool(row["label"]) for row in labels if row["score"] >= score]
    return (sum(chosen) / len(chosen), len(chosen)) if chosen else None


def _share_by_source(
    examples: list[list[Example]], held_out: list[np.ndarray], threshold: float
) -> dict[str, float]:
    reached: dict[str, list[bool]] = {}
    for group, scores in zip(examples, held_out, strict=True):
        for example, score in zip(group, scores, strict=True):
            reached.setdefault(example.source, []).append(bool(score >= threshold))
    return {name: sum(each) / len(each) for name, each in reached.items()}
