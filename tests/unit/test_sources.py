import json
import os
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from sweepcp.config.source import PythonText, Source
from sweepcp.config.validation import validate
from sweepcp.data.documents import RecordCounts, read_documents
from sweepcp.data.records import split_into_shards
from sweepcp.data.source_files import (
    cached_fingerprint,
    describe_left_out,
    resolve_source,
    source_fingerprint,
)
from sweepcp.errors import InvalidInput, located
from tests.make import jsonl, source


def texts(s: Source, folder: Path) -> list[str]:
    files = resolve_source(s, folder=folder)
    documents = []
    for shard in split_into_shards(s, files):
        documents += [d.text for d in read_documents(s, files, shard, RecordCounts())]
    return documents


def test_documents_come_in_the_order_of_sorted_files(tmp_path: Path):
    jsonl(tmp_path / "b.jsonl", [{"text": "three"}])
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "  "}, {"text": "two"}])
    assert texts(source(), tmp_path) == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("changes", "key", "rule"),
    [
        ({"files": ["none.jsonl"]}, "files", "a file, or a folder of files, below"),
        ({"files": ["a.docx"]}, "files", "ends in one of .jsonl"),
        ({"files": ["empty.jsonl"]}, "files", "these are empty"),
        ({"files": ["loop.jsonl"]}, "files", "leads nowhere, or to itself"),
        ({"files": ["nowhere.jsonl"]}, "files", "a link that leads nowhere"),
        ({"files": ["links"]}, "files", "a link that leads nowhere"),
        ({"files": ["pipe.jsonl"]}, "files", "a file; this is a named pipe"),
        ({"files": ["pipe*"]}, "files", "a file; this is a named pipe"),
        ({"files": ["hidden"]}, "files", "this one is empty"),
        ({"files": ["others"]}, "files", "ends in one of .jsonl"),
        ({"files": ["others/*"]}, "files", "ends in one of .jsonl"),
        ({"files": ["a/b/"]}, "files", "lead back to a folder above them"),
        ({"files": ["round"]}, "files", "lead back to a folder above them"),
        ({"files": ["fine.jsonl", "fine*.jsonl"]}, "files", "a file is named once"),
        (
            {"files": ["fine.jsonl"], "held_out_files": ["./fine.jsonl"]},
            "held_out_files",
            "trained on or held out, not both",
        ),
        (
            {"files": ["fine.jsonl"], "held_out_files": ["none.jsonl"]},
            "held_out_files",
            "a file, or a folder of files, below",
        ),
        ({"files": ["fine.jsonl"], "exclude": "no.jsonl"}, "exclude", "an existing path"),
        ({"files": ["fine.jsonl"], "exclude": "a"}, "exclude", "this is a folder"),
        ({"files": None, "saved": {"path": "no"}}, "saved.path", "an existing path"),
        ({"files": None, "saved": {"path": "fine.jsonl"}}, "saved.path", "this is a file"),
        (
            {"files": None, "python": {"part": "code", "packages": ["no_such_package"]}},
            "python.packages",
            "an importable package",
        ),
    ],
)
def test_unusable_sources_are_refused(
    tmp_path: Path, changes: dict[str, object], key: str, rule: str
):
    (tmp_path / "a.docx").write_text("a")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "again").symlink_to(tmp_path / "round")
    for name in ("a/b", "c", "links", "hidden", "others"):
        (tmp_path / name).mkdir(parents=True)
    # Neither folder is above the other.
    (tmp_path / "a" / "b" / "down").symlink_to(tmp_path / "c")
    (tmp_path / "c" / "down").symlink_to(tmp_path / "a" / "b")
    for link in ("nowhere.jsonl", "links/a.jsonl"):
        (tmp_path / link).symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "hidden" / ".a.jsonl").write_text("{}")
    (tmp_path / "others" / "a.docx").write_text("a")
    jsonl(tmp_path / "round" / "a.jsonl", [{"text": "one"}])
    jsonl(tmp_path / "fine.jsonl", [{"text": "one"}])
    with pytest.raises(InvalidInput) as error, located("x.yaml", "sources.s"):
        resolve_source(source(**changes), folder=tmp_path)
    assert rule in error.value.rule
    assert error.value.file == "x.yaml"
    assert error.value.key == f"sources.s.{key}"
    assert error.value.fix


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}])

    def refuse(self: Path, *_: object, **__: object) -> None:
        # Permissions do not stop root, who may run this.
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InvalidInput, match="Permission denied") as error:
        resolve_source(source(), folder=tmp_path)
    assert str(path) == error.value.found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"saved": {"path": "x"}}, "exactly one of files, saved, hub, python and planned_tokens"),
        ({"field": "body", "template": "{title}"}, "by its field or by a template"),
        ({"template": "{"}, "braces come in pairs"),
        ({"held_out": 0.1, "held_out_files": ["a.jsonl"]}, "the place of held_out"),
        ({"filters": {"keep": "("}}, "not a regular expression"),
        ({"files": None, "hub": {"id": "org/name", "revision": "main"}}, "revision"),
    ],
)
def test_contradictory_sources_are_refused(changes: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        source(**changes)


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, set()),
        ({"template": "{title}"}, {"field"}),
        ({"held_out_files": ["held_out.jsonl"]}, {"held_out"}),
    ],
)
def test_what_a_run_folder_holds_of_a_source_can_be_read_again(
    changes: dict[str, object], left_out: set[str]
):
    """Its defaults are written, too, except those that no source with these settings may state."""
    written = source(**changes)
    content = json.loads(written.model_dump_json())
    assert Source.model_fields.keys() - content.keys() == left_out
    assert validate(Source, content, "experiment.json") == written


def test_folders_are_read_whole_and_other_files_are_listed_as_skipped(tmp_path: Path):
    (tmp_path / "d" / "inner").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    jsonl(tmp_path / "d" / "inner" / "a.jsonl", [{"text": "one"}])
    (tmp_path / "d" / "b.txt").write_text("two")
    (tmp_path / "d" / "README.md").write_text("read me")
    (tmp_path / "d" / ".hidden.txt").write_text("no")
    (tmp_path / "elsewhere" / "c.txt").write_text("three")
    (tmp_path / "d" / "link").symlink_to(tmp_path / "elsewhere")
    files = resolve_source(source(files=["d"]), folder=tmp_path)
    assert [p.name for p in files.paths] == ["b.txt", "a.jsonl", "c.txt"]
    assert [p.name for p in files.skipped] == ["README.md"]


def test_python_text_is_split_into_docs_and_code():
    content = {}
    for part in ("docs", "code"):
        s = source(files=None, python={"part": part, "packages": ["json"]})
        content[part] = "\n".join(texts(s, Path()))
    assert "JSON (JavaScript Object Notation)" in content["docs"]
    assert "JSON (JavaScript Object Notation)" not in content["code"]
    assert "def dumps(" in content["code"]
    assert "def dumps(" not in content["docs"]


def test_standard_library_code_does_not_carry_the_documentation():
    paths = resolve_source(source(files=None, python={"part": "code"}), folder=Path()).paths
    assert not [p for p in paths if "pydoc_data" in p.parts or "test" in p.parts]
    assert PythonText(part="code").packages == ("stdlib",)
    docs = resolve_source(source(files=None, python={"part": "docs"}), folder=Path()).paths
    assert docs[-1].parts[-2:] == ("pydoc_data", "topics.py")


def fingerprint(folder: Path, **changes: object) -> str:
    s = source(**changes)
    return source_fingerprint(s, resolve_source(s, folder=folder))


def test_fingerprint_changes_with_the_files_and_the_way_of_reading(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    drop = jsonl(tmp_path / "drop.json", [{"id": "0" * 16}])

    def stamp(**changes: object) -> str:
        return fingerprint(tmp_path, files=["a.jsonl"], **changes)

    first = stamp()
    assert stamp() == stamp(weight=2, max_epochs=1, role="general", bad_records=0.1) == first
    others = [stamp(held_out=0.1), stamp(near_duplicates="keep"), stamp(filters={"min_chars": 3})]
    others += [stamp(exclude="drop.json"), stamp(max_document_bytes=100)]
    drop.write_text(json.dumps({"id": "1" * 16}) + "\n\n")
    others += [stamp(exclude="drop.json")]
    jsonl(path, [{"text": "two"}])
    others += [stamp()]
    jsonl(path, [{"text": "four"}])
    others += [stamp()]
    assert len({first, *others}) == 9


def test_fingerprint_is_of_the_content_wherever_and_whenever_it_was_written(tmp_path: Path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    for name in ("a", "b", "held"):
        jsonl(here / f"{name}.jsonl", [{"text": f"document {name}"}])
    jsonl(here / "drop.json", [{"id": "0" * 16}])
    options: dict[str, object] = {
        "files": ["a.jsonl", "b.jsonl"],
        "held_out_files": ["held.jsonl"],
        "exclude": "drop.json",
    }
    before = fingerprint(here, **options)
    for file in here.iterdir():
        os.utime(file, ns=(1, 1))
    assert fingerprint(here, **options) == before
    # A move, a rename, and other patterns for the same files.
    shutil.move(here, there)
    (there / "held.jsonl").rename(there / "other.jsonl")
    (there / "drop.json").rename(there / "list.jsonl")
    renamed = {"files": ["[ab].jsonl"], "held_out_files": ["o*"], "exclude": "list.jsonl"}
    assert fingerprint(there, **renamed) == before
    others = [
        fingerprint(there, **renamed | {"files": ["b.jsonl", "a.jsonl"]}),
        fingerprint(there, **renamed | {"held_out_files": ["b.jsonl"], "files": ["a.jsonl"]}),
        fingerprint(there, **renamed | {"held_out_files": None}),
        fingerprint(there, **renamed | {"exclude": None}),
    ]
    assert len({before, *others}) == 5


def test_fingerprint_changes_with_the_format_that_a_suffix_states(tmp_path: Path):
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text('{"text": "one"}\n')
    found = {fingerprint(tmp_path, files=[name]) for name in ("a.jsonl", "a.txt")}
    assert len(found) == 2


def test_fingerprint_of_a_saved_data_set_is_of_its_content(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    saved = {"files": None, "saved": {"path": "a"}}
    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "a"))
    before = fingerprint(tmp_path, **saved)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "cache-0123.arrow").write_text("what `datasets` keeps beside it")
    assert fingerprint(tmp_path, **saved | {"saved": {"path": "b"}}) == before
    shutil.rmtree(tmp_path / "a")
    datasets.Dataset.from_dict({"text": ["one", "six"]}).save_to_disk(str(tmp_path / "a"))
    assert fingerprint(tmp_path, **saved) != before


def test_fingerprint_of_a_package_changes_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("one = 1\n")
    python = {"files": None, "python": {"part": "code", "packages": ["some_package"]}}
    before = fingerprint(tmp_path, **python)
    os.utime(package / "__init__.py", ns=(1, 1))
    assert fingerprint(tmp_path, **python) == before
    (package / "__init__.py").write_text("one = 2\n")
    assert fingerprint(tmp_path, **python) != before


def test_a_plan_knows_the_fingerprint_of_hashed_files_only(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    files = resolve_source(source(), folder=tmp_path)
    assert cached_fingerprint(source(), files) is None
    assert cached_fingerprint(source(), files) is None
    assert source_fingerprint(source(), files) == cached_fingerprint(source(), files)
    jsonl(tmp_path / "a.jsonl", [{"text": "four"}])
    assert cached_fingerprint(source(), files) is None


@pytest.mark.parametrize(
    ("patterns", "links"),
    [
        (["d"], {"latest.jsonl"}),
        (["d/*.jsonl"], {"latest.jsonl"}),
        (["d/latest.jsonl", "d/part.jsonl", "d/next.jsonl"], {"latest.jsonl"}),
        (["d/part*", "d/l*", "d/n*", "copy.jsonl"], {"latest.jsonl", "copy.jsonl"}),
        (["d", "copy.jsonl"], {"latest.jsonl", "copy.jsonl"}),
    ],
)
def test_a_file_reached_by_links_is_read_once(tmp_path: Path, patterns: list[str], links: set[str]):
    (tmp_path / "d").mkdir()
    part = jsonl(tmp_path / "d" / "part.jsonl", [{"text": "one"}])
    jsonl(tmp_path / "d" / "next.jsonl", [{"text": "two"}])
    (tmp_path / "d" / "latest.jsonl").symlink_to("part.jsonl")
    (tmp_path / "copy.jsonl").hardlink_to(part)
    files = resolve_source(source(files=patterns), folder=tmp_path)
    assert sorted(p.name for p in files.paths) == ["next.jsonl", "part.jsonl"]
    assert {p.name for p in files.repeated} == links


def test_a_link_beside_its_file_changes_no_fingerprint(tmp_path: Path):
    for name in ("a", "b"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    before = fingerprint(tmp_path)
    # It would be read first, if it were read in place of its file.
    (tmp_path / "0.jsonl").symlink_to("b.jsonl")
    assert fingerprint(tmp_path) == before


def test_a_file_is_not_trained_on_and_held_out_by_another_link(tmp_path: Path):
    part = jsonl(tmp_path / "part.jsonl", [{"text": "one"}])
    (tmp_path / "hard.jsonl").hardlink_to(part)
    (tmp_path / "soft.jsonl").symlink_to(part)
    for name in ("hard.jsonl", "soft.jsonl"):
        with pytest.raises(InvalidInput, match="trained on or held out, not both"):
            resolve_source(source(files=["part.jsonl"], held_out_files=[name]), folder=tmp_path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d*.jsonl", {"data.jsonl", "d[1].jsonl"}),
        ("d[1].jsonl", {"d[1].jsonl"}),
        ("[d]ata.jsonl", {"data.jsonl"}),
        ("in[2]/*.jsonl", {"inner.jsonl"}),
        ("in*", {"inner.jsonl", "deep.jsonl"}),
        ("**/d*.jsonl", {"data.jsonl", "d[1].jsonl", "deep.jsonl"}),
        ("in[2]/**", {"inner.jsonl", "deep.jsonl"}),
        (".h*", {".hidden.jsonl"}),
        ("~home.jsonl", {"~home.jsonl"}),
    ],
)
def test_only_what_does_not_exist_is_a_glob(tmp_path: Path, pattern: str, expected: set[str]):
    folder = tmp_path / "run[v2]"
    for name in ("data", "d[1]", ".hidden", "~home", "in[2]/inner", "in[2]/more/deep"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(folder / f"{name}.jsonl", [{"text": name}])
    # A loop that `**` does not follow.
    if pattern.startswith("**"):
        (folder / "in[2]" / "more" / "up").symlink_to(folder)
    files = resolve_source(source(files=[pattern]), folder=folder)
    assert {path.name for path in files.paths} == expected


def test_a_glob_lists_each_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`**` behind `**` finds a folder by as many ways as there are folders above it."""
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    jsonl(deep / "text.jsonl", [{"text": "one"}])
    listed = Path.iterdir
    listings: list[Path] = []

    def count(self: Path) -> object:
        listings.append(self)
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", count)
    files = resolve_source(source(files=["**/**/**/**/*.jsonl"]), folder=tmp_path)
    assert files.paths == (deep / "text.jsonl",)
    assert len(listings) <= 4 * 15 + 5


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "d" / "locked").mkdir(parents=True)
    jsonl(tmp_path / "d" / "a.jsonl", [{"text": "one"}])
    listed = Path.iterdir

    def refuse(self: Path) -> object:
        # Permissions do not stop root, who may run this.
        if self.name == "locked":
            raise PermissionError(13, "Permission denied", str(self))
        return listed(self)

    monkeypatch.setattr(Path, "iterdir", refuse)
    for pattern in ("d", "d/**/*.jsonl"):
        with pytest.raises(InvalidInput, match="Permission denied") as error:
            resolve_source(source(files=[pattern]), folder=tmp_path)
        assert error.value.found == f"{tmp_path}/d/locked"


def test_what_a_source_leaves_out_is_described(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "README.md").write_text("read me")
    assert describe_left_out(resolve_source(source(files=["."]), folder=tmp_path)) == [
        "skipped 1 files of formats that are not read (.md)",
        "a file is read once; left out 1 further links to files that are read (b.jsonl)",
    ]
