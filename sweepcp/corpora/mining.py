"""Domain text out of a general corpus: train a classifier, score the corpus, write what it selects.

The output folder is resumable: `scores/` keeps the scores of every shard, so that a run that was
stopped, or that is repeated with labels in `sample.jsonl`, scores only what is missing.
"""

import gzip
import json
import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sweepcp.config.source import Source
from sweepcp.corpora.classifier import TrainedClassifiers, draw_examples, train_classifiers
from sweepcp.corpora.corpus_scores import (
    SCORES,
    ScoredCorpus,
    check_own_folder,
    load_scores,
    prepare_scores,
    score_corpus,
)
from sweepcp.corpora.label_sample import (
    SAMPLE_CHARS,
    STRATA,
    LabelCandidate,
    add_candidate,
    labelled_precision,
    merge_candidates,
    read_labels,
    read_sample,
    stratum_edges,
    stratum_of,
    write_sample,
)
from sweepcp.corpora.prevalence import (
    EDGES,
    LabelledDocument,
    PrevalenceEstimate,
    ScoreCurve,
    brier_score,
    calibration_bins,
    estimate_prevalence,
    share_above,
    threshold_for_precision,
)
from sweepcp.data.documents import RecordCounts, read_documents
from sweepcp.data.records import split_into_shards
from sweepcp.data.shards import SourceShard
from sweepcp.data.source_files import ResolvedSource
from sweepcp.errors import InvalidInput, located
from sweepcp.util.files import write_json, write_text
from sweepcp.util.parallel import parallel_map
from sweepcp.util.progress import Progress

MIN_EXAMPLES = 200
"""Training documents per role below which nothing is mined."""


@dataclass(frozen=True)
class MiningResult:
    """The result of `sweepcp data mine`, also written to `report.json`; shares are of documents."""

    corpus: str
    documents: int
    prevalence: float
    prevalence_interval: tuple[float, float]
    """95 % confidence interval."""
    prevalence_from: str
    """How prevalence was estimated."""
    threshold: float
    """Log odds from which on documents are selected."""
    precision: float
    """Predicted share of domain documents among the selected."""
    recall: float
    """Predicted share of the corpus's domain documents that are selected."""
    selected: int
    training: dict[str, int]
    """Source → documents that the classifier was trained on."""
    by_source: dict[str, float]
    """Source → share of its held-out documents at or above the threshold."""
    calibration: list[tuple[float, float, int]]
    """Of held-out documents: mean predicted probability, observed share of domain documents, number
    of documents; by tenths of probability."""
    brier: float
    labelled_precision: tuple[float, int] | None
    """Share of domain among the labelled documents that are selected, and their number."""


@dataclass(frozen=True)
class _Threshold:
    """The threshold from which on documents are selected, and the estimates that led to it."""

    curve: ScoreCurve
    documents: int
    prevalence: PrevalenceEstimate
    index: int
    """Index into `EDGES`."""

    @property
    def score(self) -> float:
        """The threshold as log odds."""
        return float(EDGES[self.index])


class _ShardSelection(NamedTuple):
    """What was selected from one shard."""

    shard: int
    ids: list[str]
    candidates: list[list[LabelCandidate]]
    """Candidates for the label sample, by stratum."""


def mine_corpus(
    sources: tuple[Source, ...],
    files: dict[str, ResolvedSource],
    *,
    corpus: str,
    out: Path,
    precision: float,
    progress: Progress,
    address: str | None = None,
) -> MiningResult:
    """Write the domain-like documents of a source into a folder, with a report and a label sample.

    The classifiers learn the sources of role domain against those of role general, without the
    corpus; or against the corpus if there is no other general source. A repeated run resumes, and
    uses the labels in `sample.jsonl`.

    Args:
        sources: The sources of an experiment.
        files: The resolved files of each source, by source name.
        corpus: Name of the source to mine.
        out: Folder to write, or to resume in.
        precision: Wanted share of domain documents among the selected, between 0 and 1.
        progress: Receives the shards that were scored and written, as the task `mine`.
        address: Ray cluster to run on; by default the cores of this machine.

    Raises:
        InvalidInput: There are too few documents to learn from, labels are invalid, or the
            precision cannot be reached.
    """
    if not 0 < precision < 1:
        raise InvalidInput(
            file="--precision",
            key="--precision",
            found=precision,
            rule="a share between 0 and 1",
            fix="pass a value such as 0.9",
        )
    source, domain, general = _split_roles(sources, corpus)
    check_own_folder(out)
    read_sample(out / "sample.jsonl")
    domain_examples = draw_examples(domain, files, address=address)
    general_examples = draw_examples(general, files, address=address)
    with located(corpus):
        _check_example_count("domain", len(domain_examples))
        _check_example_count("general", len(general_examples))
        classifiers = train_classifiers(domain=domain_examples, general=general_examples)
        mined = prepare_scores(source, files[corpus], out / SCORES, classifiers)
        shards = split_into_shards(source, files[corpus])
        corpus_shares, documents = score_corpus(mined, shards, progress=progress, address=address)
        labels = read_labels(out / "sample.jsonl", mined.stamp)
        threshold = _choose_threshold(
            classifiers,
            corpus_shares,
            labels,
            corpus_is_general=general == [source],
            documents=documents,
            precision=precision,
        )
    selected, strata = _select_all(
        mined, shards, threshold, out, progress=progress, address=address
    )
    if not labels:
        sample = out / "sample.jsonl"
        write_sample(
            sample,
            strata,
            curve=threshold.curve,
            threshold_index=threshold.index,
            stamp=mined.stamp,
        )
    result = _summarize(corpus, classifiers, threshold, labels, selected=selected)
    write_json(out / "report.json", asdict(result))
    _write_source_entry(source, out)
    progress.finish("mine")
    return result


def _split_roles(
    sources: tuple[Source, ...], corpus: str
) -> tuple[Source, list[Source], list[Source]]:
    """Return the source to mine, the domain sources and the general sources to learn from."""
    by_name = {source.name: source for source in sources if source.planned_tokens is None}
    if corpus not in by_name:
        raise InvalidInput(
            file="--corpus",
            key="--corpus",
            found=corpus,
            rule=f"a source with text: {', '.join(by_name)}",
            fix="name one of them",
        )
    others = [source for source in by_name.values() if source.name != corpus]
    domain = [source for source in others if source.role == "domain"]
    general = [source for source in others if source.role == "general"]
    if not domain:
        raise InvalidInput(
            file="--corpus",
            key="sources",
            found=list(by_name),
            rule="a source of role domain besides the corpus",
            fix="add one",
        )
    return by_name[corpus], domain, general or [by_name[corpus]]


def _check_example_count(role: str, count: int) -> None:
    if count < MIN_EXAMPLES:
        raise InvalidInput(
            key="sources",
            found=f"{count} {role} documents",
            rule=f"at least {MIN_EXAMPLES} {role} documents to learn from",
            fix=f"add {role} documents",
        )


def _choose_threshold(
    classifiers: TrainedClassifiers,
    corpus_shares: np.ndarray,
    labels: list[LabelledDocument],
    *,
    corpus_is_general: bool,
    documents: int,
    precision: float,
) -> _Threshold:
    """Estimate prevalence, and choose the lowest threshold with the wanted precision."""
    curve = ScoreCurve(
        corpus=corpus_shares,
        domain=share_above(classifiers.domain_scores),
        general=share_above(classifiers.general_scores),
    )
    prevalence = estimate_prevalence(
        curve,
        labels,
        corpus_is_general=corpus_is_general,
        documents=documents,
        domain_examples=len(classifiers.domain),
        general_examples=len(classifiers.general),
    )
    low, high = prevalence.interval
    if low <= 0:
        raise InvalidInput(
            key="--corpus",
            found=f"{prevalence.share:.4%} of the documents, 95 % interval: 0 to {high:.4%}, "
            f"from {prevalence.method}",
            rule="a share of domain documents that can be told from none",
            fix="mine another corpus, or add documents to learn from",
        )
    index = threshold_for_precision(
        curve, prevalence=prevalence.share, precision=precision, documents=documents
    )
    return _Threshold(curve, documents, prevalence, index)


def _select_all(
    corpus: ScoredCorpus,
    shards: list[SourceShard],
    threshold: _Threshold,
    out: Path,
    *,
    progress: Progress,
    address: str | None,
) -> tuple[int, list[list[LabelCandidate]]]:
    """Write the selected documents of all shards, and the list of their ids.

    Returns:
        The number of selected documents, and the candidates for the label sample by stratum.
    """
    documents = out / "documents"
    shutil.rmtree(documents, ignore_errors=True)
    documents.mkdir(parents=True)
    edges = stratum_edges(threshold.curve, threshold.index)
    select = partial(_select_from_shard, corpus, documents, edges)
    ids: dict[int, list[str]] = {}
    strata: list[list[LabelCandidate]] = [[] for _ in range(STRATA)]
    for selection in parallel_map(select, shards, address):
        ids[selection.shard] = selection.ids
        for stratum, candidates in enumerate(selection.candidates):
            strata[stratum] = merge_candidates(strata[stratum], candidates)
        detail = f"writing {corpus.source.name}"
        progress.update("mine", done=len(ids), total=len(shards), detail=detail)
    # Shards complete in any order; the list of ids is in the order of the corpus.
    lines: list[str] = []
    for shard in sorted(ids):
        lines += [json.dumps({"id": document_id}) + "\n" for document_id in ids[shard]]
    write_text(out / "exclude.jsonl", "".join(lines))
    return len(lines), strata


def _select_from_shard(
    corpus: ScoredCorpus, folder: Path, edges: list[float], shard: SourceShard
) -> _ShardSelection:
    """Write the documents of a shard that belong to the first stratum, which are the selected."""
    scores = load_scores(corpus.scores_file(shard)).tolist()
    documents = read_documents(corpus.source, corpus.files, shard, RecordCounts())
    ids: list[str] = []
    lines: list[bytes] = []
    strata: list[list[LabelCandidate]] = [[] for _ in range(STRATA)]
    for document, score in zip(documents, scores, strict=True):
        document_id, location = document.id, str(document.location)
        stratum = stratum_of(score, edges)
        candidate = LabelCandidate(
            document.sha256, document_id, location, score, document.text[:SAMPLE_CHARS]
        )
        strata[stratum] = add_candidate(strata[stratum], candidate)
        if stratum == 0:
            ids.append(document_id)
            row = {
                "id": document_id,
                "score": round(score, 3),
                "place": location,
                "text": document.text,
            }
            lines.append(json.dumps(row).encode() + b"\n")
    if lines:
        _write_gzip(folder / f"{shard.number:08}.jsonl.gz", lines)
    return _ShardSelection(shard.number, ids, strata)


def _write_gzip(path: Path, lines: list[bytes]) -> None:
    """Write compressed lines, without name and time: equal lines give equal bytes."""
    unfinished = path.with_suffix(".tmp")
    with (
        unfinished.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as compressed,
    ):
        compressed.writelines(lines)
    unfinished.replace(path)


def _summarize(
    corpus: str,
    classifiers: TrainedClassifiers,
    threshold: _Threshold,
    labels: list[LabelledDocument],
    *,
    selected: int,
) -> MiningResult:
    """Return the result of mining: estimates, predictions and what was observed."""
    domain_share = threshold.curve.domain[threshold.index]
    precision = threshold.prevalence.share * domain_share / threshold.curve.corpus[threshold.index]
    examples = classifiers.domain + classifiers.general
    return MiningResult(
        corpus=corpus,
        documents=threshold.documents,
        prevalence=threshold.prevalence.share,
        prevalence_interval=threshold.prevalence.interval,
        prevalence_from=threshold.prevalence.method,
        threshold=threshold.score,
        precision=float(min(1.0, precision)),
        recall=float(domain_share),
        selected=selected,
        training=dict(Counter(example.source for example in examples)),
        by_source=_share_selected_by_source(classifiers, threshold.score),
        calibration=calibration_bins(
            domain=classifiers.domain_scores, general=classifiers.general_scores
        ),
        brier=brier_score(domain=classifiers.domain_scores, general=classifiers.general_scores),
        labelled_precision=labelled_precision(labels, threshold.score),
    )


def _share_selected_by_source(
    classifiers: TrainedClassifiers, threshold: float
) -> dict[str, float]:
    """Return the share of each source's examples whose held-out score reaches the threshold."""
    examples = classifiers.domain + classifiers.general
    scores = np.concatenate([classifiers.domain_scores, classifiers.general_scores])
    reached: dict[str, list[bool]] = {}
    for example, score in zip(examples, scores, strict=True):
        reached.setdefault(example.source, []).append(bool(score >= threshold))
    return {source: sum(flags) / len(flags) for source, flags in reached.items()}


def _write_source_entry(source: Source, out: Path) -> None:
    """Write an entry for the `sources` of an experiment that reads the selected documents."""
    entry = {
        "name": f"mined-{source.name}",
        "role": "domain",
        "language": source.language,
        "files": [f"{out.absolute()}/documents"],
    }
    write_text(out / "source.yaml", f"- {json.dumps(entry)}\n")
