"""Real English text: what sympy's programmers write about mathematics, hidden among what others write about theirs."""

import gzip
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweepcp.data.mine import Mined, mine
from sweepcp.data.read import Document
from sweepcp.data.records import Place
from sweepcp.data.sources import Found, Source, find
from tests.make import jsonl

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
GENERAL, CORPUS = 10_000, 50_000
Sources = tuple[tuple[Source, ...], dict[str, Found]]


def written(package: Path) -> Iterator[str]:
    """Docstrings and comments of two lines and more, of 100 characters and more, without indentation."""
    for path in sorted(package.rglob("*.py")):
        content = path.read_text(encoding="utf-8", errors="replace")
        texts = [m.group(1) for m in DOCSTRING.finditer(content)]
        texts += [re.sub(r"^[ \t]*#+ ?", "", m.group(0), flags=re.MULTILINE) for m in COMMENT.finditer(content)]
        for text in texts:
            short = re.sub(r"[ \t]*\n[ \t]*", "\n", text.strip())
            if len(short) >= 100 and "icense" not in short:
                yield short


def drawn(texts: set[str]) -> list[str]:
    """In an order that the texts themselves decide."""
    return sorted(texts, key=lambda text: Document(text[::-1], Place("")).key)


@pytest.fixture(scope="module")
def kinds() -> tuple[list[str], list[str]]:
    """Documents of sympy, and of the others."""
    site = Path(sysconfig.get_path("purelib"))
    domain = {text for text in written(site / "sympy") if len(text) >= 300}
    roots = [site / name for name in OTHERS if (site / name).is_dir()]
    standard = Path(sysconfig.get_path("stdlib"))
    roots += [p for p in sorted(standard.iterdir()) if p.is_dir() and p.name != "site-packages"]
    others = {text for root in roots for text in written(root)} - domain
    assert len(others) >= GENERAL + CORPUS
    return drawn(domain), drawn(others)


def corpus(folder: Path, kinds: tuple[list[str], list[str]], share: float, general: bool) -> tuple[set[str], Sources]:
    """Write an experiment's texts; also the texts that are hidden."""
    domain, others = kinds
    hidden = domain[: round(CORPUS * share / (1 - share))]
    mixed = drawn({*others[GENERAL : GENERAL + CORPUS], *hidden})
    assert len(mixed) >= 50_000
    names = ["domain", "web"] + ["general"] * general
    jsonl(folder / "domain.jsonl", [{"text": t} for t in domain[len(hidden) :]])
    jsonl(folder / "general.jsonl", [{"text": t} for t in others[:GENERAL]])
    jsonl(folder / "web.jsonl", [{"text": t} for t in mixed])
    sources = tuple(Source(name=n, role="domain" if n == "domain" else "general", files=(f"{n}.jsonl",)) for n in names)
    return set(hidden), (sources, {s.name: find(s, folder, "") for s in sources})


def mined_texts(out: Path) -> list[str]:
    files = sorted((out / "documents").glob("*.jsonl.gz"))
    return [json.loads(line)["text"] for f in files for line in gzip.decompress(f.read_bytes()).splitlines()]


def true_rates(hidden: set[str], texts: list[str]) -> tuple[float, float]:
    """Precision and recall."""
    right = len(hidden & set(texts))
    return right / max(1, len(texts)), right / len(hidden)


@pytest.fixture(scope="module")
def two_per_cent(
    tmp_path_factory: pytest.TempPathFactory, kinds: tuple[list[str], list[str]]
) -> tuple[Path, set[str], Sources, Mined]:
    folder = tmp_path_factory.mktemp("mine")
    hidden, sources = corpus(folder, kinds, 0.02, general=True)
    return folder, hidden, sources, mine(*sources, "web", folder / "out", 0.9)


def test_what_is_hidden_is_found_at_the_precision_that_is_predicted(
    two_per_cent: tuple[Path, set[str], Sources, Mined],
):
    folder, hidden, _, result = two_per_cent
    texts = mined_texts(folder / "out")
    precision, recall = true_rates(hidden, texts)
    print(
        f"precision {precision:.3f}, predicted {result.precision:.3f}; recall {recall:.3f}, predicted {result.recall:.3f}"
    )
    print(
        f"prevalence {len(hidden) / result.documents:.4f}, estimated {result.prevalence:.4f} {result.prevalence_interval}"
    )
    assert recall >= 0.9
    assert precision >= 0.9
    assert abs(result.precision - precision) <= 0.05
    assert result.selected == len(texts) == len((folder / "out" / "exclude.jsonl").read_text().splitlines())
