"""JSON arrays, CSV and TSV: what their records are, where they are, and what is refused."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from sweepcp.data import file_content, records, text_records
from sweepcp.data.documents import Document, RecordCounts, check_bad_records, read_documents
from sweepcp.data.json_array import split_array
from sweepcp.data.records import split_into_shards
from sweepcp.data.source_files import resolve_source, source_fingerprint
from sweepcp.data.token_estimate import estimate_tokens
from sweepcp.errors import InvalidInput
from tests.make import jsonl, source


def read(
    folder: Path, name: str, content: bytes | str, **changes: Any
) -> tuple[list[Document], RecordCounts]:
    """Return the documents of a file with this content, and what became of its records."""
    raw = content.encode() if isinstance(content, str) else content
    (folder / name).write_bytes(raw)
    s = source(**{"files": [name]} | changes)
    files = resolve_source(s, folder=folder)
    counts, documents = RecordCounts(), list[Any]()
    for shard in split_into_shards(s, files):
        documents += read_documents(s, files, shard, counts)
    return documents, counts


def texts(folder: Path, name: str, content: bytes | str, **changes: Any) -> list[str]:
    return [document.text for document in read(folder, name, content, **changes)[0]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[]", []),
        (" [ ]\n", []),
        ('[{"text": "one"}]', ["one"]),
        ('\n[{"text": "one"},{"text": "two"}]', ["one", "two"]),
        ('[{"text": "a]}\\"[,{"}, {"b": [[1, {}]], "text": "\\\\"}]', ['a]}"[,{', "\\"]),
        ('{"text": "one"}\n\n{"text": "two"}\n', ["one", "two"]),
        ("\n \n", None),
    ],
)
def test_json_is_an_array_or_lines(tmp_path: Path, content: str, expected: list[str] | None):
    for chunk in (1, 2, 5, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sweepcp.data.json_array.CHUNK_BYTES", chunk)
            for name, packed in (("a.json", content.encode()), ("a.json.gz", None)):
                packed = packed or gzip.compress(content.encode())
                assert texts(tmp_path, name, packed) == (expected or [])


def test_what_is_no_record_of_an_array_is_a_bad_record_with_its_number(tmp_path: Path):
    elements = ['{"text": "one"}', "3", '{"text": }', '{"text": "%s"}' % ("x" * 900), '{"t": 1}']
    elements += ['{"text": "a", "text": "b"}', '{"text": "\\ud800"}', "[" * 5000 + "]" * 5000]
    content = "[" + ",\n".join([*elements, '{"text": "two"}', '{"text": "\xe9"}']) + ",]"
    documents, counts = read(
        tmp_path, "a.json", content.encode("latin-1"), bad_records=0.9, max_document_bytes=100
    )
    assert [(d.text, str(d.location)) for d in documents] == [
        ("one", f"{tmp_path}/a.json: element 1"),
        ("two", f"{tmp_path}/a.json: element 9"),
    ]
    assert (counts.records, counts.bad) == (11, 9)
    assert "element 4: the text: an element of over 800 bytes" in counts.examples[2]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('[{"text": "one"}', "the end of the file inside its array"),
        ('[{"text": "one"}] [', "text after the end of the array"),
        ('[{"text": "one"}]\0', "text after the end of the array"),
        ('[{"text": "one"}}]', "a brace that closes none"),
        ('[{"text": "one},{"text": "two"}]', "the end of the file inside its array"),
    ],
)
def test_an_array_without_an_end_is_refused(tmp_path: Path, content: str, found: str):
    with pytest.raises(InvalidInput) as error:
        read(tmp_path, "a.json", content, bad_records=1)
    assert error.value.file == f"{tmp_path}/a.json"
    assert found in str(error.value.found)


def test_an_array_is_split_in_the_memory_of_one_element():
    class Endless(io.RawIOBase):
        size = 0

        def read(self, count: int = -1) -> bytes:
            self.size += 1
            return b"[" if self.size == 1 else b'"' + b"x" * 9999 + b'",'

    elements = split_array(Endless(), limit=100)  # type: ignore[arg-type]
    assert [next(elements) for _ in range(3)] == [
        (1, None), (10003, None), (20005, None)
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv", "\t")])
def test_cells_are_text_as_it_stands(tmp_path: Path, name: str, mark: str):
    rows = ["id|text|note", '1|"two\nlines, ""quoted"""|x', "", "02|1e-5|", "3|NA|  "]
    content = "\ufeff" + "\r\n".join(rows).replace("|", mark) + "\r\n"
    documents, counts = read(tmp_path, name, content)
    assert [(d.text, str(d.location)) for d in documents] == [
        ('two\nlines, "quoted"', f"{tmp_path}/{name}:2"),
        ("1e-5", f"{tmp_path}/{name}:5"),
        ("NA", f"{tmp_path}/{name}:6"),
    ]
    assert counts.records == 3
    found = texts(tmp_path, name, content, template="{id}: {text}\n{note}")
    assert found[1:] == ["02: 1e-5", "3: NA"]


def test_a_row_that_is_no_record_is_a_bad_record_with_its_line(tmp_path: Path):
    rows = [b"id,text", b"1,one", b"2", b"3,two,three", b'4,"a" b', b"5,caf\xe9", b"6,s\0", b'7,"']
    content = b"\n".join([*rows, b'x"', b"8,last"])
    documents, counts = read(tmp_path, "a.csv", content, bad_records=0.9)
    assert [d.text for d in documents] == ["one", "\nx", "last"]
    assert [example.split(": ")[0] for example in counts.examples] == [
        f"{tmp_path}/a.csv:{line}" for line in (3, 4, 5, 6, 7)
    ]


@pytest.mark.parametrize(
    ("content", "place", "rule"),
    [
        ('id,text\n1,"one\n2,two\n', ":2", "quotes come in pairs"),
        ('id,text\n1,"' + "x\n" * 500, ":2", "a row has at most 800 bytes"),
        ("text,text\n1,2\n", "", "names of their own"),
        ("id;text\n1;2\n", "", "one of text"),
        ("id,t\xe9xt\n1,2\n", ":1", "UTF-8 text"),
        ("one\rtwo\rthree", ":1", "quotes are around a whole cell"),
    ],
)
def test_a_table_that_cannot_be_told_is_refused(
    tmp_path: Path, content: str, place: str, rule: str
):
    with pytest.raises(InvalidInput) as error:
        read(tmp_path, "a.csv", content.encode("latin-1"), bad_records=1, max_document_bytes=100)
    assert error.value.file == f"{tmp_path}/a.csv{place}"
    assert rule in error.value.rule


def test_a_long_cell_is_a_document(tmp_path: Path):
    assert texts(tmp_path, "a.csv", "text\n" + "x" * 300_000) == ["x" * 300_000]


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.csv", "a.csv.zst", "a.txt.gz"])
def test_a_sample_of_a_large_file_stands_for_it(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sweepcp.data.token_estimate.SPOT_BYTES", 256)
    monkeypatch.setattr("sweepcp.data.token_estimate.READ_BYTES", 400_000)
    monkeypatch.setattr("sweepcp.data.token_estimate.READ_BYTES_PER_FILE", 400_000)
    rows = [f"word {n * 7919 % 10007} " * (1 + n % 9) for n in range(9000)]
    plain = {
        ".json": json.dumps([{"text": row} for row in rows]),
        ".csv": "text\n" + "".join(f'"{row}"\n' for row in rows),
        ".txt": "\n\n".join(rows),
    }[Path(name).suffixes[0]].encode()
    packed = {".gz": gzip.compress, ".zst": lambda c: bytes(pa.Codec("zstd").compress(c))}
    (tmp_path / name).write_bytes(packed.get(Path(name).suffix, bytes)(plain))
    s = source(files=[name], unit="paragraph", held_out=0.5)
    files = resolve_source(s, folder=tmp_path)
    estimate = estimate_tokens(s, files, lambda found: float(sum(len(t.split()) for t in found)))
    assert estimate == pytest.approx(sum(len(row.split()) for row in rows) / 2, rel=0.1)


@pytest.mark.parametrize("kind", ["array", "lines"])
def test_json_lines_are_cut_into_shards_and_an_array_is_not(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    rows = [json.dumps({"text": f"text {n}"}) for n in range(50)]
    content = "\n".join(rows) if kind == "lines" else f"[{', '.join(rows)}]"
    (tmp_path / "a.json").write_text(content)
    monkeypatch.setattr(records, "SHARD_BYTES", 100)
    files = resolve_source(source(files=["a.json"]), folder=tmp_path)
    shards = split_into_shards(source(files=["a.json"]), files)
    assert (len(shards) > 5) == (kind == "lines")
    assert texts(tmp_path, "a.json", content) == [f"text {n}" for n in range(50)]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", gzip.compress(b"{}"), "gzip data"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "gzip data"),
        ("a.jsonl.gz", b'{"text": "one"}', "data that is not gzip"),
        ("a.jsonl.gz", bytes(pa.Codec("zstd").compress(b"{}")), "zstd data"),
        ("a.txt.zst", gzip.compress(b"{}"), "gzip data"),
        ("a.csv", b"PK\3\4" + bytes(30), "a zip archive"),
        ("a.txt", b"\xfd7zXZ\0", "xz data"),
        ("a.json", "[]".encode("utf-16"), "text in UTF-16"),
    ],
)
def test_content_of_another_format_is_named(tmp_path: Path, name: str, content: bytes, found: str):
    with pytest.raises(InvalidInput, match=found) as error:
        read(tmp_path, name, content, bad_records=1)
    assert error.value.file == f"{tmp_path}/{name}"


def test_a_compressed_file_of_no_bytes_is_refused(tmp_path: Path):
    jsonl(tmp_path / "b.jsonl", [{"text": "one"}])
    with pytest.raises(InvalidInput, match="0 bytes"):
        read(tmp_path, "a.jsonl.gz", b"", files=["."])
    assert texts(tmp_path, "a.jsonl.gz", gzip.compress(b""), files=["."]) == ["one"]


def test_zstd_may_begin_with_a_frame_without_data(tmp_path: Path):
    frame = b"\x52\x2a\x4d\x18\x04\0\0\0abcd" + bytes(pa.Codec("zstd").compress(b'{"text": "a"}'))
    assert texts(tmp_path, "a.jsonl.zst", frame) == ["a"]


def test_a_file_that_is_gone_or_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.jsonl", "a.parquet", "a.csv"):
        path = tmp_path / name
        path.write_text("text\n1")
        s = source(files=[name])
        files = resolve_source(s, folder=tmp_path)
        shards = split_into_shards(s, files)
        path.unlink()
        for work in (
            lambda s=s, files=files: split_into_shards(s, files),
            lambda s=s, files=files: estimate_tokens(s, files, lambda texts: 1.0),
            lambda s=s, files=files, shards=shards: list(
                read_documents(s, files, shards[0], RecordCounts())
            ),
        ):
            with pytest.raises(InvalidInput, match="No such file") as error:
                work()
            assert error.value.file == str(path)


def test_a_name_that_is_not_utf8_is_read(tmp_path: Path):
    for name, write in (
        (b"caf\xe9.jsonl", lambda p: jsonl(p, [{"text": "one"}, {"text": "two"}])),
        (b"caf\xe9.parquet", lambda p: p.write_bytes(parquet("three"))),
        (b"t\xe9.csv.gz", lambda p: p.write_bytes(gzip.compress(b"text\nfour\n"))),
    ):
        write(tmp_path / os.fsdecode(name))
    s = source(files=["."])
    files = resolve_source(s, folder=tmp_path)
    assert source_fingerprint(s, files)
    assert estimate_tokens(s, files, lambda texts: float(len(texts))) == pytest.approx(4 * 0.95)
    found = []
    for shard in split_into_shards(s, files):
        found += list(read_documents(s, files, shard, RecordCounts()))
    assert [d.text for d in found] == ["one", "two", "three", "four"]
    assert str(found[0].location) == f"{tmp_path}/caf\\udce9.jsonl:1"


def parquet(*rows: str) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({"text": list(rows)}), sink)
    return sink.getvalue()


def test_a_damaged_page_is_found_by_its_checksum(tmp_path: Path):
    sink = io.BytesIO()
    table = pa.table({"text": ["a text that is stored as it is"]})
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    pa.parquet.write_table(table, sink, write_page_checksum=True, **options)
    damaged = sink.getvalue().replace(b"stored", b"stared")
    with pytest.raises(InvalidInput, match="CRC checksum"):
        read(tmp_path, "a.parquet", damaged)


def test_a_paragraph_with_a_bad_line_is_a_bad_record_as_a_whole(tmp_path: Path):
    content = b"one\n\ntwo\ncaf\xe9\nthree\n\n" + b"long " * 30 + b"\nfour\n\nfive"
    documents, counts = read(
        tmp_path, "a.txt", content, unit="paragraph", bad_records=0.5, max_document_bytes=100
    )
    assert [d.text for d in documents] == ["one", "five"]
    assert [e.split(": ")[0][-2:] for e in counts.examples] == [":3", ":7"]


@pytest.mark.parametrize(
    ("bad", "good", "proposed"), [(1, 300, "0.004"), (3, 7, "0.4"), (1, 1, None)]
)
def test_the_proposed_share_of_bad_records_would_pass(
    tmp_path: Path, bad: int, good: int, proposed: str | None
):
    rows = (
        ['{"text": "fine"}'] * (good // 2) + ["{"] * bad + ['{"text": "fine"}'] * (good - good // 2)
    )
    with pytest.raises(InvalidInput) as first:
        read(tmp_path, "a.jsonl", "\n".join(rows))
    _, counts = read(tmp_path, "a.jsonl", "\n".join(rows), bad_records=1)
    with pytest.raises(InvalidInput) as total:
        check_bad_records(source(bad_records=1e-5), counts)
    for error in (first, total):
        assert (f"`bad_records: {proposed}`" in error.value.fix) == (proposed is not None)
    if proposed:
        check_bad_records(source(bad_records=float(proposed)), counts)


def test_a_plan_reads_held_out_files_too(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    (tmp_path / "b.jsonl").write_text("{")
    s = source(files=["a.jsonl"], held_out_files=["b.jsonl"])
    files = resolve_source(s, folder=tmp_path)
    with pytest.raises(InvalidInput) as error:
        estimate_tokens(s, files, lambda texts: 1.0)
    assert error.value.file == f"{tmp_path}/b.jsonl:1"


def test_every_reader_opens_files_in_one_way():
    for module in (records, text_records):
        assert ".open(" not in Path(str(module.__file__)).read_text()
    assert vars(text_records)["open_content"] is file_content.open_content
