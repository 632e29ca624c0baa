"""The sample of a mined corpus that people label: drawn at random within strata of the score.

Stratum 0 holds the selected documents, stratum 1 as many documents with the next lower scores,
stratum 2 ten times as many below those, and stratum 3 the rest of the corpus.
"""

import heapq
import json
import os
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from sweepcp.config.json_lines import read_valid_lines
from sweepcp.config.types import FiniteFloat, Fraction
from sweepcp.config.validation import ConfigModel
from sweepcp.corpora.prevalence import EDGES, LabelledDocument, ScoreCurve
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_text

STRATA = 4
STRATUM_SAMPLE = 75
"""Documents drawn from each stratum."""
SAMPLE_CHARS = 1000
"""Characters of a document in the sample."""


class LabelRow(ConfigModel):
    """A line of the sample, of which people write the label."""

    label: bool | None
    """Whether the document is domain text; null: not yet labelled."""
    id: str
    """Of the document."""
    text: str
    """The first characters of the document."""
    place: str
    """File and line of the document."""
    score: FiniteFloat
    """Log odds of domain against general text."""
    stratum: Annotated[int, Field(ge=0, lt=STRATA)]
    """Of the score; 0 is selected."""
    stands_for: Fraction
    """Share of the corpus that the stratum stands for."""
    of: str
    """Identifies the corpus and the classifiers."""

    @field_validator("label", mode="before")
    @classmethod
    def _check_label(cls, label: object) -> object:
        if label is not None and not isinstance(label, bool):
            raise ValueError("true (domain), false or null; fix: correct the label")
        return label


class LabelCandidate(NamedTuple):
    """A document that may be drawn for labelling. Candidates are ordered by their key, a hash."""

    key: bytes
    id: str
    location: str
    score: float
    text: str


def stratum_edges(curve: ScoreCurve, threshold_index: int) -> list[float]:
    """Return the lowest scores of all strata but the last, in decreasing order.

    Args:
        curve: Shares of the corpus above thresholds.
        threshold_index: Index into `EDGES` of the selection threshold.
    """
    selected = curve.corpus[threshold_index]
    edges = [float(EDGES[threshold_index])]
    # The second stratum ends at twice the selected share, the third at 2 + 10 times of it.
    for multiple in (2, 12):
        at = int(np.argmax(curve.corpus <= min(1.0, multiple * selected)))
        edges.append(float(EDGES[at]))
    return edges


def stratum_of(score: float, edges: list[float]) -> int:
    """Return the stratum (0 to 3) of a document with this score."""
    return sum(score < edge for edge in edges)


def add_candidate(
    candidates: list[LabelCandidate], candidate: LabelCandidate
) -> list[LabelCandidate]:
    """Return the candidates of a stratum with one more, limited to the smallest hashes."""
    if len(candidates) >= STRATUM_SAMPLE and candidate >= max(candidates):
        return candidates
    return merge_candidates(candidates, [candidate])


def merge_candidates(
    first: list[LabelCandidate], second: list[LabelCandidate]
) -> list[LabelCandidate]:
    """Return the candidates of two parts of a stratum, limited to the smallest hashes."""
    return heapq.nsmallest(STRATUM_SAMPLE, first + second)


def write_sample(
    path: Path,
    strata: list[list[LabelCandidate]],
    *,
    curve: ScoreCurve,
    threshold_index: int,
    stamp: str,
) -> None:
    """Write the sample as JSONL, one document per line, with `label` still null.

    The lines are ordered by hash and not by score, so that the order does not influence labels.
    `stamp` identifies the corpus and the classifier; `read_labels` compares it.
    """
    bounds = np.searchsorted(EDGES, stratum_edges(curve, threshold_index))
    shares_above = [0.0, *curve.corpus[bounds].tolist(), 1.0]
    rows: list[tuple[bytes, LabelRow]] = []
    for stratum, candidates in enumerate(strata):
        for candidate in candidates:
            row = LabelRow(
                label=None,
                id=candidate.id,
                text=candidate.text,
                place=candidate.location,
                score=candidate.score,
                stratum=stratum,
                stands_for=shares_above[stratum + 1] - shares_above[stratum],
                of=stamp,
            )
            rows.append((candidate.key, row))
    rows.sort(key=lambda keyed: keyed[0])
    lines = [json.dumps(row.model_dump(), ensure_ascii=False) + "\n" for _, row in rows]
    write_text(path, "".join(lines))


def read_sample(path: Path) -> list[LabelRow]:
    """Return the rows of a sample; none if there is no sample.

    Raises:
        InvalidInput: A line is malformed, or a label is neither boolean nor null.
    """
    if not os.path.lexists(path):
        return []
    fix = "correct the line, or remove the file to draw the sample again"
    return [row for _, row in read_valid_lines(path, LabelRow, fix=fix)]


def read_labels(path: Path, stamp: str) -> list[LabelledDocument]:
    """Return the labelled documents of a sample; none if there is no sample or no label in it.

    Raises:
        InvalidInput: As of `read_sample`, or labels belong to another corpus or classifier, or only
            some strata are labelled.
    """
    rows = read_sample(path)
    labelled = [row for row in rows if row.label is not None]
    others = [row.of for row in labelled if row.of != stamp]
    if others:
        raise InvalidInput(
            file=path,
            key="of",
            found=others[0],
            rule="labels of the corpus and the domain text that the sample was drawn with",
            fix="pass another --out to draw a new sample",
        )
    unlabelled_strata = {row.stratum for row in rows} - {row.stratum for row in labelled}
    if labelled and unlabelled_strata:
        raise InvalidInput(
            file=path,
            key="label",
            found=f"none in stratum {min(unlabelled_strata)}",
            rule="labels in every stratum, or no labels at all",
            fix="label some of its documents; they are shuffled among the others",
        )
    return [
        LabelledDocument(bool(row.label), row.score, row.stratum, row.stands_for)
        for row in labelled
    ]


def labelled_precision(
    labels: list[LabelledDocument], threshold: float
) -> tuple[float, int] | None:
    """Return the share of domain among labelled documents at or above a score, and their number."""
    selected = [label.is_domain for label in labels if label.score >= threshold]
    return (sum(selected) / len(selected), len(selected)) if selected else None
