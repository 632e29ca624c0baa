"""Mining of real English text: sympy's docstrings and comments, hidden among those of others."""

import gzip
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweepcp.config.source import Source
from sweepcp.corpora.mining import MiningResult, mine_corpus
from sweepcp.data.documents import Document
from sweepcp.data.shards import RecordLocation
from sweepcp.data.source_files import ResolvedSource, resolve_source
from sweepcp.errors import InvalidInput
from sweepcp.util.progress import NoProgress
from tests.make import jsonl

pytestmark = pytest.mark.slow

OTHERS = (
    "numpy",
    "ray",
    "scipy",
    "pandas",
    "sklearn",
    "networkx",
    "transformers",
    "torch",
    "sqlalchemy",
    "nltk",
    "mpmath",
)
DOCSTRING = re.compile(r':[ \t]*\n[ \t]+[rRuU]?"""(.*?)"""', re.DOTALL)
COMMENT = re.compile(r"(?:^[ \t]*#[^\n]*\n){2,}", re.MULTILINE)
GENERAL, CORPUS = 15_000, 50_000
Sources = tuple[tuple[Source, ...], dict[str, ResolvedSource]]


def mine_web(sources: Sources, out: Path, precision: float) -> MiningResult:
    return mine_corpus(*sources, corpus="web", out=out, precision=precision, progress=NoProgress())


def docstrings_and_comments(package: Path) -> Iterator[str]:
    """Docstrings and comments of at least two lines and 100 characters, without indentation."""
    for path in sorted(package.rglob("*.py")):
        content = path.read_text(encoding="utf-8", errors="replace")
        documents = [match.group(1) for match in DOCSTRING.finditer(content)]
        comments = [match.group(0) for match in COMMENT.finditer(content)]
        documents += [re.sub(r"^[ \t]*#+ ?", "", text, flags=re.MULTILINE) for text in comments]
        for text in documents:
            dedented = re.sub(r"[ \t]*\n[ \t]*", "\n", text.strip())
            if len(dedented) >= 100 and "icense" not in dedented:
                yield dedented


def in_hash_order(documents: set[str]) -> list[str]:
    """The documents in an order that depends on their text alone."""
    return sorted(documents, key=lambda text: Document(text[::-1], RecordLocation("")).sha256)


@pytest.fixture(scope="module")
def kinds() -> tuple[list[str], list[str]]:
    """Documents of sympy, and of the others."""
    site = Path(sysconfig.get_path("purelib"))
    domain = {text for text in docstrings_and_comments(site / "sympy") if len(text) >= 700}
    roots = [site / name for name in OTHERS if (site / name).is_dir()]
    standard = Path(sysconfig.get_path("stdlib"))
    roots += [p for p in sorted(standard.iterdir()) if p.is_dir() and p.name != "site-packages"]
    others = {text for root in roots for text in docstrings_and_comments(root)} - domain
    assert len(others) >= GENERAL + CORPUS
    return in_hash_order(domain), in_hash_order(others)


def corpus(
    folder: Path, kinds: tuple[list[str], list[str]], share: float, general: bool
) -> tuple[set[str], Sources]:
    """Write the sources of an experiment; return the hidden domain documents and the sources."""
    domain, others = kinds
    hidden = domain[: round(CORPUS * share / (1 - share))]
    mixed = in_hash_order({*others[GENERAL : GENERAL + CORPUS], *hidden})
    assert len(mixed) >= 50_000
    names = ["domain", "web"] + ["general"] * general
    jsonl(folder / "domain.jsonl", [{"text": t} for t in domain[len(hidden) :]])
    jsonl(folder / "general.jsonl", [{"text": t} for t in others[:GENERAL]])
    jsonl(folder / "web.jsonl", [{"text": t} for t in mixed])
    sources = tuple(
        Source(name=n, role="domain" if n == "domain" else "general", files=(f"{n}.jsonl",))
        for n in names
    )
    return set(hidden), (sources, {s.name: resolve_source(s, folder=folder) for s in sources})


def mined_documents(out: Path) -> list[str]:
    files = sorted((out / "documents").glob("*.jsonl.gz"))
    return [
        json.loads(line)["text"]
        for f in files
        for line in gzip.decompress(f.read_bytes()).splitlines()
    ]


def true_rates(hidden: set[str], documents: list[str]) -> tuple[float, float]:
    """Precision and recall."""
    right = len(hidden & set(documents))
    return right / max(1, len(documents)), right / len(hidden)


@pytest.fixture(scope="module")
def two_per_cent(
    tmp_path_factory: pytest.TempPathFactory, kinds: tuple[list[str], list[str]]
) -> tuple[Path, set[str], Sources, MiningResult]:
    folder = tmp_path_factory.mktemp("mine")
    hidden, sources = corpus(folder, kinds, 0.02, general=True)
    return folder, hidden, sources, mine_web(sources, folder / "out", 0.92)


def test_what_is_hidden_is_found_at_the_precision_that_is_predicted(
    two_per_cent: tuple[Path, set[str], Sources, MiningResult],
):
    folder, hidden, _, result = two_per_cent
    documents = mined_documents(folder / "out")
    precision, recall = true_rates(hidden, documents)
    print(f"true precision {precision:.3f}, recall {recall:.3f}: {result}")
    assert recall >= 0.9
    assert precision >= 0.9
    assert abs(result.precision - precision) <= 0.05
    assert (
        result.selected
        == len(documents)
        == len((folder / "out" / "exclude.jsonl").read_text().splitlines())
    )


def test_a_second_run_finds_the_same_and_scores_only_what_is_missing(
    two_per_cent: tuple[Path, set[str], Sources, MiningResult],
):
    folder, _, sources, result = two_per_cent
    out = folder / "out"
    before = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.jsonl*")}
    kept, missing = sorted((out / "scores").glob("0*.npy"))[:2]
    stamp = kept.stat().st_mtime_ns
    missing.unlink()
    assert mine_web(sources, out, 0.92) == result
    assert kept.stat().st_mtime_ns == stamp
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*.jsonl*")} == before


def test_labels_take_the_place_of_the_estimate(
    two_per_cent: tuple[Path, set[str], Sources, MiningResult],
):
    folder, hidden, sources, result = two_per_cent
    path = folder / "out" / "sample.jsonl"
    unlabelled = path.read_text()
    rows = [json.loads(line) for line in unlabelled.splitlines()]
    starts = {text[:1000] for text in hidden}
    path.write_text(
        "".join(json.dumps(row | {"label": row["text"] in starts}) + "\n" for row in rows)
    )
    labelled = mine_web(sources, folder / "out", 0.92)
    precision, recall = true_rates(hidden, mined_documents(folder / "out"))
    print(f"true precision {precision:.3f}, recall {recall:.3f}: {labelled}")
    assert f"{len(rows)} labelled documents" in labelled.prevalence_from
    low, high = labelled.prevalence_interval
    assert low < len(hidden) / labelled.documents < high
    assert labelled.labelled_precision is not None
    assert abs(labelled.precision - precision) <= 0.1
    assert json.loads(path.read_text().splitlines()[0])["label"] is not None
    path.write_text(unlabelled)
    assert mine_web(sources, folder / "out", 0.92) == result


def test_a_corpus_without_domain_text_is_refused(
    tmp_path: Path, kinds: tuple[list[str], list[str]]
):
    hidden, sources = corpus(tmp_path, kinds, 0.0, general=True)
    assert not hidden
    with pytest.raises(InvalidInput, match=r"told from none|at most"):
        mine_web(sources, tmp_path / "out", 0.9)


def test_without_other_general_text_the_corpus_stands_for_it(
    tmp_path: Path, kinds: tuple[list[str], list[str]]
):
    hidden, sources = corpus(tmp_path, kinds, 0.02, general=False)
    result = mine_web(sources, tmp_path / "out", 0.9)
    precision, recall = true_rates(hidden, mined_documents(tmp_path / "out"))
    print(f"true precision {precision:.3f}, recall {recall:.3f}: {result}")
    assert "label sample.jsonl" in result.prevalence_from
    assert precision > 0.75
    assert recall > 0.75
