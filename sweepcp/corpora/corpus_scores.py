"""The scores of a corpus on disk, shard by shard, so that a run that was stopped can resume."""

import hashlib
import shutil
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sweepcp.config.source import Source
from sweepcp.corpora.classifier import TrainedClassifiers, score_documents
from sweepcp.corpora.prevalence import EDGES
from sweepcp.data.documents import RecordCounts, check_bad_records, read_documents
from sweepcp.data.shards import SourceShard
from sweepcp.data.source_files import ResolvedSource, source_fingerprint
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_json
from sweepcp.util.json_values import digest, parse_json
from sweepcp.util.parallel import parallel_map
from sweepcp.util.progress import Progress

SCORES = "scores"
"""The folder of scores, in the folder that mining writes."""
WEIGHTS_FILE = "weights.npy"
BATCH_DOCUMENTS = 512
"""Documents scored at a time."""


@dataclass(frozen=True)
class ScoredCorpus:
    """A source and the folder of its scores; sent to worker processes."""

    source: Source
    files: ResolvedSource
    folder: Path
    stamp: str
    """Identifies the corpus and the classifiers; scores and labels of another stamp are invalid."""

    def scores_file(self, shard: SourceShard) -> Path:
        """Return the file with the scores of a shard's documents, in their order."""
        return self.folder / f"{shard.number:08}.npy"

    def counts_file(self, shard: SourceShard) -> Path:
        """Return the file with the record counts of a shard, which is written last."""
        return self.folder / f"{shard.number:08}.json"

    def has_scores(self, shard: SourceShard) -> bool:
        """Return whether a shard has been scored whole."""
        return self.scores_file(shard).exists() and self.counts_file(shard).exists()


def check_own_folder(out: Path) -> None:
    """Raise `InvalidInput` for a folder with files of something else, which mining would delete."""
    names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    scores = out / SCORES
    is_own = (scores / WEIGHTS_FILE).exists() or (names == [SCORES] and not any(scores.iterdir()))
    if names and not is_own:
        raise InvalidInput(
            file=out,
            key="--out",
            found=f"a folder that holds {names[0]}",
            rule="a new folder, or one that `sweepcp data mine` wrote",
            fix="name another folder",
        )


def prepare_scores(
    source: Source, files: ResolvedSource, folder: Path, classifiers: TrainedClassifiers
) -> ScoredCorpus:
    """Create the folder of scores, and clear it if it belongs to another corpus or classifiers."""
    weights_hash = hashlib.sha256(classifiers.weights.tobytes()).hexdigest()
    stamp = digest([source_fingerprint(source, files), weights_hash])
    state = folder / "state.json"
    if _read_state(state) != {"stamp": stamp}:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        np.save(folder / WEIGHTS_FILE, classifiers.weights)
        write_json(state, {"stamp": stamp})
    return ScoredCorpus(source, files, folder, stamp)


def _read_state(path: Path) -> Any:
    """Return the content of state.json; None if there is none, or if it is corrupt."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def load_scores(path: Path) -> np.ndarray:
    """Return the scores of a shard's documents.

    Raises:
        InvalidInput: The file is corrupt.
    """
    try:
        scores: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        found: object = str(error)
    else:
        if np.issubdtype(scores.dtype, np.floating) and scores.ndim == 1:
            return scores
        found = f"{scores.dtype}, shape {scores.shape}"
    raise InvalidInput(
        file=path,
        key="the scores",
        found=found,
        rule="an array of floating-point numbers",
        fix="remove the file; the shard is scored again",
    )


def score_corpus(
    corpus: ScoredCorpus, shards: list[SourceShard], *, progress: Progress, address: str | None
) -> tuple[np.ndarray, int]:
    """Score the shards that have no scores yet.

    Returns:
        The share of the corpus at or above each of `EDGES`, and its number of documents.

    Raises:
        InvalidInput: The corpus has no documents, or too many unusable records.
    """
    missing = [shard for shard in shards if not corpus.has_scores(shard)]
    scored = len(shards) - len(missing)
    for _ in parallel_map(partial(_score_shard, corpus), missing, address):
        scored += 1
        detail = f"scoring {corpus.source.name}"
        progress.update("mine", done=scored, total=len(shards), detail=detail)
    counts = RecordCounts()
    for shard in shards:
        counts.add(RecordCounts.read(corpus.counts_file(shard)))
    check_bad_records(corpus.source, counts)
    # Scores are counted between the edges shard by shard, because those of a whole corpus may not
    # fit into memory.
    histogram = np.zeros(len(EDGES) + 1, dtype=np.int64)
    for shard in shards:
        bins = np.searchsorted(EDGES, load_scores(corpus.scores_file(shard)), side="right")
        histogram += np.bincount(bins, minlength=len(histogram))
    documents = int(histogram.sum())
    if not documents:
        raise InvalidInput(
            key="--corpus",
            found=corpus.source.name,
            rule="a corpus with documents",
            fix="name another source",
        )
    return (documents - np.cumsum(histogram)[:-1]) / documents, documents


def _score_shard(corpus: ScoredCorpus, shard: SourceShard) -> None:
    """Write the scores of a shard's documents and its record counts."""
    counts = RecordCounts()
    scores = [np.zeros(0, dtype=np.float32)]
    documents = read_documents(corpus.source, corpus.files, shard, counts)
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        scores.append(score_documents(batch, corpus.folder / WEIGHTS_FILE))
    path = corpus.scores_file(shard)
    unfinished = path.with_suffix(".tmp")
    with unfinished.open("wb") as file:
        np.save(file, np.concatenate(scores))
    unfinished.replace(path)
    write_json(corpus.counts_file(shard), vars(counts))
