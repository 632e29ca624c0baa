"""What README and docs say of files, names and commands exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
README_LINES = 120
DIALECT = re.compile(
    r"\b(goes on|go on from|is said|says so|said aloud|anew|torn|looks on|mend(s|ed)?)\b"
)
"""Words of an earlier style, for which CONTRIBUTING.md names better ones."""


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def resolve(dotted: str) -> object:
    """The object of a dotted name: the longest importable module, then its attributes."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            fields = getattr(found, "model_fields", {}) | getattr(found, "__annotations__", {})
            found = fields[name] if name in fields else getattr(found, name)
        return found
    raise ModuleNotFoundError(dotted)


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_exists(page: Path):
    named = re.findall(
        r"`((?:sweepcp|tests|docs|benchmarks|experiments|search_spaces|notebooks|\.ci)/[\w./+-]*)`",
        page.read_text(),
    )
    missing = [path for path in named if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_dotted_name_exists(page: Path):
    for name in re.findall(r"`(sweepcp(?:\.\w+)+)(?:\([^`]*)?`", page.read_text()):
        resolve(name)


def test_the_architecture_page_names_every_package():
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = {path.parent.name for path in (ROOT / "sweepcp").glob("*/__init__.py")}
    assert {name for name in packages if f"sweepcp/{name}/" not in text} == set()


def test_the_site_has_every_page():
    listed = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=page_id)
def test_the_words_are_those_of_the_field(page: Path):
    if page.name != "CONTRIBUTING.md":
        assert [match.group() for match in DIALECT.finditer(page.read_text())] == []


def test_every_entry_of_the_log_opens_with_its_conclusion():
    entries = (ROOT / "experiments" / "LOG.md").read_text().split("\n## ")[1:]
    for entry in entries:
        title, _, body = entry.partition("\n")
        assert body.strip().startswith("**"), title
