"""Records and documents: what is read, left out and counted, and refused with file and line."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from sweepcp.config.source import Source
from sweepcp.data import records
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.records import split_into_shards
from sweepcp.data.shards import RecordLocation
from sweepcp.data.source_files import resolve_source
from sweepcp.errors import InvalidInput
from sweepcp.util.files import write_json
from tests.make import jsonl, source

TEXTS = [f"text number {n}" for n in range(200)]
RECORDS: list[dict[str, Any]] = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]


def documents(s: Source, folder: Path, counts: RecordCounts | None = None) -> list[Document]:
    files = resolve_source(s, folder=folder)
    counts = RecordCounts() if counts is None else counts
    result: list[Document] = []
    for shard in split_into_shards(s, files):
        result += read_documents(s, files, shard, counts)
    return result


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content))


@pytest.mark.parametrize(
    "kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "txt", "saved", "split", "hub"]
)
def test_every_kind_of_source_gives_the_same_documents(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    lines = "".join(json.dumps(r) + "\n" for r in RECORDS).encode()
    origin: dict[str, object] = {"files": [f"a.{kind}"]}
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    elif kind == "jsonl.gz":
        # Of two members, as `cat a.gz b.gz` makes it.
        (tmp_path / "a.jsonl.gz").write_bytes(
            gzip.compress(lines[:1000]) + gzip.compress(lines[1000:])
        )
    elif kind == "jsonl.zst":
        (tmp_path / "a.jsonl.zst").write_bytes(zstd(lines))
    elif kind == "parquet":
        pa.parquet.write_table(
            pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=30
        )
    elif kind == "txt":
        (tmp_path / "a.txt").write_text("\n".join(TEXTS))
        origin["unit"] = "line"
    elif kind == "hub":
        # `datasets` reads a local folder of that name in place of the hub.
        (tmp_path / "org" / "name").mkdir(parents=True)
        (tmp_path / "org" / "name" / "train.jsonl").write_bytes(lines)
        monkeypatch.chdir(tmp_path)
        origin = {"files": None, "hub": {"id": "org/name", "revision": "0" * 40}}
    else:
        rows = Dataset.from_list(RECORDS)
        (rows if kind == "saved" else DatasetDict(train=rows)).save_to_disk(tmp_path / "set")
        origin = {
            "files": None,
            "saved": {"path": "set", **({} if kind == "saved" else {"split": "train"})},
        }
    counts = RecordCounts()
    assert [d.text for d in documents(source(**origin), tmp_path, counts)] == TEXTS
    assert (counts.records, counts.bad) == (200, 0)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "txt"])
def test_shards_of_any_size_give_the_same_documents_and_locations(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
):
    if ending == "jsonl":
        (tmp_path / "a.jsonl").write_text(
            "\n".join(json.dumps(r) + "\n" * (r["n"] % 3 == 0) for r in RECORDS)
        )
    elif ending == "txt":
        (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    else:
        pa.parquet.write_table(
            pa.Table.from_pylist(RECORDS), tmp_path / "a.parquet", row_group_size=7
        )
    s = source(files=[f"a.{ending}"], unit="line")
    whole = [(d.text, str(d.location)) for d in documents(s, tmp_path)]
    assert [text for text, _ in whole] == TEXTS
    for size in (1, 17, 38, 39, 100, 1000):
        monkeypatch.setattr(records, "SHARD_BYTES", size)
        assert [(d.text, str(d.location)) for d in documents(s, tmp_path)] == whole


def test_locations_name_file_and_line(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    locations = [str(d.location) for d in documents(source(), tmp_path)]
    assert locations == [f"{tmp_path}/a.jsonl:{n}" for n in range(1, 201)]
    assert str(RecordLocation("org/name", "row", 4, 10)) == "org/name: row 15"


def test_paragraphs_and_files(tmp_path: Path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\n\n \nthree\n")
    assert [d.text for d in documents(source(files=["a.txt"]), tmp_path)] == [
        "one\ntwo\n\n\n \nthree\n"
    ]
    paragraphs = documents(source(files=["a.txt"], unit="paragraph"), tmp_path)
    assert [d.text for d in paragraphs] == ["one\ntwo", "three"]
    assert [str(d.location).rpartition(":")[2] for d in paragraphs] == ["1", "6"]


def test_templates_and_nested_fields_and_counts_of_each_key(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", [{"t": "Lamp", "p": {"eur": 3}}, {"t": "Cup", "p": None}])
    counts = RecordCounts()
    s = source(template="{t}\nPrice: {p.eur} EUR\n{weight}")
    assert [d.text for d in documents(s, tmp_path, counts)] == ["Lamp\nPrice: 3 EUR", "Cup"]
    assert dict(counts.used_keys) == {"t": 2, "p.eur": 1, "weight": 0}


def test_filters_count_what_they_leave_out(tmp_path: Path):
    german = "Der Hund läuft über die Straße und freut sich über das schöne Wetter am Morgen."
    english = "The dog runs across the street and is happy about the lovely weather this morning."
    texts = ["short", english, german, english + " buy now", "x " * 400, "lorem " + english]
    jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts])
    excluded = Document(texts[-1], RecordLocation("")).id
    jsonl(tmp_path / "out.json", [{"id": excluded}])
    filters = {
        "min_chars": 10,
        "max_chars": 500,
        "languages": ["en"],
        "drop": r"buy\s+now",
        "keep": "dog",
    }
    counts = RecordCounts()
    s = source(files=["a.jsonl"], filters=filters, exclude="out.json")
    assert [d.text for d in documents(s, tmp_path, counts)] == [english]
    assert dict(counts.left_out) == {
        "min_chars": 1,
        "max_chars": 1,
        "keep": 1,
        "drop": 1,
        "excluded": 1,
    }
    counts = RecordCounts()
    documents(
        source(files=["a.jsonl"], filters={"languages": ["en"], "min_chars": 50, "max_chars": 500}),
        tmp_path,
        counts,
    )
    assert counts.left_out["language de"] == 1


BAD = [
    (b'{"text": ', "the record", "Expecting value"),
    (b"[1]", "the record", "a list"),
    (b"12", "the record", "a number"),
    (b'"text"', "the record", "text"),
    (b"null", "the record", "null"),
    (b'{"txt": "a", "b": 1}', "text", "txt, b"),
    (b'{"text": 3}', "text", "text"),
    (b'{"text": "caf\xe9"}', "the text", "0xe9"),
    (b'{"text": "a\\u0000b"}', "the text", "NUL byte"),
    (b'{"text": "\\ud800"}', "the text", "surrogate"),
    (b'{"text": "' + b"a" * 60 + b'"}', "the text", "60 bytes"),
    (b'{"text": "' + b"a" * 5000 + b'"}', "the text", "a line of over 400 bytes"),
    (b"[" * 100_000, "the text", "a line of over"),
    (b'{"text": null}', "text", "`text` is null"),
    (b'{"text": NaN}', "text", "`text` is null"),
    (b'{"text": 3.5}', "text", "`text` is a number"),
    (b'{"text": ["a"]}', "text", "`text` is a list"),
    (b'{"text": "a", "text": "b"}', "the record", "the key 'text' occurs twice"),
    (b'{"\\ud83d": "a"}', "text", "\ud83d"),
]


@pytest.mark.parametrize(("line", "key", "found"), BAD)
def test_a_bad_record_is_named_or_skipped_and_counted(
    tmp_path: Path, line: bytes, key: str, found: str
):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(InvalidInput) as error:
        documents(source(max_document_bytes=50), tmp_path)
    assert error.value.file == f"{tmp_path}/a.jsonl:3"
    assert error.value.key == key
    assert found in str(error.value.found)
    assert "`bad_records: 0.4`" in error.value.fix
    counts = RecordCounts()
    s = source(max_document_bytes=50, bad_records=0.4)
    assert [d.text for d in documents(s, tmp_path, counts)] == ["fine", "good"]
    assert (counts.records, counts.bad) == (3, 1)
    assert counts.examples[0].startswith(f"{tmp_path}/a.jsonl:3: {key}")
    write_json(tmp_path / "counts.json", vars(counts))
    check_bad_records(s, counts)
    with pytest.raises(InvalidInput, match="1 of 3 records cannot be used"):
        check_bad_records(source(bad_records=0.3), counts)


def test_a_value_without_a_text_is_a_bad_record(tmp_path: Path):
    deep = '{"t": ' * 70 + "1" + "}" * 70
    lines = ['{"t": 1}', '{"t": -Infinity}', '{"t": 1e99999}', deep, '{"u": 1e9999, "t": 2}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    counts = RecordCounts()
    s = source(template="{t}", bad_records=0.6)
    assert [d.text for d in documents(s, tmp_path, counts)] == ["1", "2"]
    assert counts.bad == 3
    assert counts.examples[0].startswith(f"{tmp_path}/a.jsonl:2: t: -inf (a finite number")


MARKED = b"\xef\xbb\xbf"
LATER_MARK = "\ufeff"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
@pytest.mark.parametrize("unit", ["file", "paragraph", "line"])
def test_a_byte_order_mark_at_the_start_of_a_file_is_no_text(tmp_path: Path, name: str, unit: str):
    text = f"caf\xe9 {LATER_MARK}"
    content = MARKED + (text if name == "a.txt" else json.dumps({"text": text})).encode()
    packers: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": zstd}
    pack = packers.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    s = source(files=[name], unit=unit)
    assert [d.text for d in documents(s, tmp_path)] == [text]
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / name).write_bytes(pack(content.decode().encode(encoding)))
        with pytest.raises(InvalidInput, match="UTF-16") as error:
            documents(source(files=[name], unit=unit, bad_records=1), tmp_path)
        assert error.value.file == f"{tmp_path}/{name}"


def test_lists_of_documents_may_have_a_mark_and_any_separator_of_unicode(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    line = json.dumps({"id": Document(TEXTS[0], RecordLocation("")).id, "place": "a\u2028b\x85"})
    (tmp_path / "out.json").write_bytes(
        MARKED + line.encode().decode("unicode_escape").encode() + b"\r\n\n"
    )
    found = documents(source(exclude="out.json"), tmp_path)
    assert [d.text for d in found] == TEXTS[1:]
    (tmp_path / "utf16.json").write_text(line, encoding="utf-16")
    with pytest.raises(InvalidInput, match="UTF-8 text"):
        documents(source(exclude="utf16.json"), tmp_path)


@pytest.mark.parametrize("changes", [{"files": ["."]}, {"held_out_files": ["a.txt"]}])
def test_a_template_for_a_text_file_is_refused(tmp_path: Path, changes: dict[str, object]):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(InvalidInput, match="records with fields") as error:
        resolve_source(source(**{"template": "{text}"} | changes), folder=tmp_path)
    assert error.value.key == "template"
    with pytest.raises(ValueError, match="modules have no fields"):
        source(files=None, python={"part": "docs"}, template="{text}")


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_archive_is_refused(tmp_path: Path, ending: str, damage: str):
    lines = "".join(
        json.dumps({"text": f"{n * 7919 % 10007} of {n}"}) + "\n" for n in range(20000)
    ).encode()
    content = gzip.compress(lines) if ending == "gz" else zstd(lines)
    half = len(content) // 2
    broken = (
        content[:half]
        if damage == "truncated"
        else content[:half] + b"damaged!" * 4 + content[half + 32 :]
    )
    (tmp_path / f"a.jsonl.{ending}").write_bytes(broken)
    with pytest.raises(InvalidInput) as error:
        documents(source(files=[f"a.jsonl.{ending}"], bad_records=1), tmp_path)
    assert f"a.jsonl.{ending}" in error.value.file
    assert "read to its end" in error.value.rule or "Expecting" in str(error.value.found)


def test_a_template_whose_keys_no_record_has_is_refused(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    with pytest.raises(InvalidInput, match="one of the template's keys") as error:
        documents(source(template="{title}"), tmp_path)
    assert error.value.file == f"{tmp_path}/a.jsonl:1"


def test_a_file_that_is_not_parquet_or_lacks_the_column(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InvalidInput, match="a Parquet file") as error:
        documents(source(files=["a.parquet"]), tmp_path)
    assert error.value.file == f"{tmp_path}/a.parquet"
    pa.parquet.write_table(pa.table({"body": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match="the columns") as error:
        documents(source(files=["a.parquet"]), tmp_path)
    assert error.value.file == f"{tmp_path}/a.parquet"


def test_a_folder_that_datasets_did_not_write(tmp_path: Path):
    (tmp_path / "set").mkdir()
    with pytest.raises(InvalidInput, match="save_to_disk") as error:
        documents(source(files=None, saved={"path": "set"}), tmp_path)
    assert error.value.file == f"{tmp_path}/set"
    assert error.value.key == f"sources.{source().name}.saved"
    DatasetDict(a=Dataset.from_list(RECORDS)).save_to_disk(tmp_path / "several")
    with pytest.raises(InvalidInput, match="several splits: a") as error:
        documents(source(files=None, saved={"path": "several"}), tmp_path)
    assert error.value.key == f"sources.{source().name}.saved.split"
