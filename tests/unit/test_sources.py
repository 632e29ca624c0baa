import json
from pathlib import Path

import pytest

from sweepcp.data.sources import PythonText, Source, estimate_bytes, find_files, fingerprint, read
from sweepcp.data.store import is_held_out
from sweepcp.errors import BadInput


def jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def source(**changes: object) -> Source:
    return Source.model_validate_json(json.dumps({"name": "s", "role": "domain", "files": ["*.jsonl"]} | changes))


def test_documents_come_in_the_order_of_sorted_files(tmp_path: Path):
    jsonl(tmp_path / "b.jsonl", [{"text": "three"}])
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "  "}, {"text": "two"}])
    files = find_files(source(), tmp_path, "x.yaml")
    assert list(read(source(), files)) == ["one", "two", "three"]
    assert estimate_bytes(source(), files) == pytest.approx(3 + 2 + 3 + 5, abs=1)


def test_another_field_and_plain_text(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", [{"body": "one"}])
    (tmp_path / "b.txt").write_text("a whole\n\nfile")
    s = source(files=["a.jsonl", "b.txt"], field="body")
    assert list(read(s, find_files(s, tmp_path, "x.yaml"))) == ["one", "a whole\n\nfile"]


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("{", "the record", "Expecting"),
        ('{"txt": "a"}', "text", "txt"),
        ("[1]", "text", "list"),
        ('{"text": 3}', "text", "text"),
    ],
)
def test_a_bad_record_names_file_and_line(tmp_path: Path, line: str, key: str, value: str):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "fine"}])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BadInput) as error:
        list(read(source(), [path]))
    assert error.value.where == f"{path}:2"
    assert error.value.key == key
    assert value in str(error.value.value)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"files": ["none.jsonl"]}, "a file below"),
        ({"files": ["a.csv"]}, "`.jsonl` or `.txt`"),
        ({"files": ["empty.jsonl"]}, "this one is empty"),
        ({"files": None, "python": {"part": "code", "packages": ["no_such_package"]}}, "an importable package"),
    ],
)
def test_unusable_sources_are_refused(tmp_path: Path, changes: dict[str, object], rule: str):
    (tmp_path / "a.csv").write_text("a")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(BadInput) as error:
        find_files(source(**changes), tmp_path, "x.yaml")
    assert rule in error.value.rule
    assert error.value.where == "x.yaml"


def test_python_text_is_split_into_docs_and_code():
    files = {}
    for part in ("docs", "code"):
        s = source(files=None, python={"part": part, "packages": ["json"]})
        files[part] = "\n".join(read(s, find_files(s, Path(), "x.yaml")))
    assert "JSON (JavaScript Object Notation)" in files["docs"]
    assert "JSON (JavaScript Object Notation)" not in files["code"]
    assert "def dumps(" in files["code"]
    assert "def dumps(" not in files["docs"]


def test_standard_library_code_does_not_carry_the_documentation():
    s = source(files=None, python={"part": "code"})
    assert not [p for p in find_files(s, Path(), "x.yaml") if "pydoc_data" in p.parts or "test" in p.parts]
    assert PythonText(part="code").packages == ("stdlib",)


def test_fingerprint_changes_with_the_files_and_the_way_of_reading(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    first = fingerprint(source(), [path])
    assert fingerprint(source(), [path]) == first
    assert fingerprint(source(held_out=0.1), [path]) != first
    jsonl(path, [{"text": "four"}])
    assert fingerprint(source(), [path]) != first


def test_a_document_keeps_its_side_and_the_share_is_met():
    texts = [f"document {i}" for i in range(20000)]
    held = [is_held_out(t, 0.05) for t in texts]
    assert 0.04 < sum(held) / len(held) < 0.06
    assert all(is_held_out(t, 0.1) for t, h in zip(texts, held, strict=True) if h)
