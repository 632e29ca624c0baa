"""The same record gives the same text in every format that can hold it."""

import gzip
import json
import math
import struct
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from sweepcp.config.source import Source
from sweepcp.data import records
from sweepcp.data.documents import RecordCounts, make_documents, read_documents
from sweepcp.data.records import located_rows, split_into_shards
from sweepcp.data.source_files import ResolvedSource, resolve_source
from sweepcp.data.values import format_value, look_up, parse_written_json
from sweepcp.errors import InvalidInput
from tests.make import source


def read(s: Source, folder: Path, counts: RecordCounts | None = None) -> list[str]:
    files = resolve_source(s, folder=folder)
    counts = counts or RecordCounts()
    texts: list[str] = []
    for shard in split_into_shards(s, files):
        texts += [d.text for d in read_documents(s, files, shard, counts)]
    return texts


def texts_of_table(s: Source, table: pa.Table, counts: RecordCounts | None = None) -> list[str]:
    rows = located_rows([table], s, "table")
    documents = make_documents(s, ResolvedSource(), rows, counts or RecordCounts())
    return [d.text for d in documents]


def texts_of_parquet(folder: Path, table: pa.Table, **changes: object) -> list[str]:
    pa.parquet.write_table(table, folder / "a.parquet", row_group_size=2)
    return read(source(files=["a.parquet"], **changes), folder)


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("19.90", "19.90"),
        ("-0", "-0"),
        ("3.0", "3.0"),
        ("1e-05", "0.00001"),
        ("1E22", "10000000000000000000000"),
        ("1.50e2", "150"),
        ("-2.5e+0001", "-25"),
        ("9223372036854775808123", "9223372036854775808123"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("5e-324", "0." + "0" * 323 + "5"),
        ("NaN", ""),
        ("null", ""),
        ("true", "yes"),
        ('"007"', "007"),
        ('"NaN"', "NaN"),
        ('" 1e5 "', "1e5"),
        ("[1.10, null, NaN, [2e1]]", "1.10, 20"),
        ('{"a": 1.0, "b": null, "c": {"d": false}}', "a: 1.0, c: d: no"),
    ],
)
def test_numbers_of_json_are_as_written_without_an_exponent(literal: str, text: str):
    assert format_value(parse_written_json(literal)) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00001, "0.00001"),
        (1e22, "10000000000000000000000"),
        (math.nan, ""),
        (2**64 - 1, "18446744073709551615"),
        (Decimal("19.90"), "19.90"),
        (Decimal("1E-10"), "0.0000000001"),
        (b"caf\xc3\xa9 ", "café"),
        (date(2024, 1, 5), "2024-01-05"),
        (datetime(2024, 1, 5, 10, tzinfo=UTC), "2024-01-05T10:00:00+00:00"),
        (datetime(2024, 1, 5, 10, 0, 0, 500_000), "2024-01-05T10:00:00.500000"),
        (time(10, 30), "10:30:00"),
    ],
)
def test_typed_values_are_their_shortest_decimal_or_iso_8601(value: object, text: str):
    assert format_value(value) == text


@pytest.mark.parametrize(
    "value",
    [
        math.inf,
        parse_written_json("-Infinity"),
        parse_written_json("1e999"),
        b"caf\xe9",
        timedelta(1),
    ],
)
def test_a_value_without_a_text_is_refused(value: object):
    with pytest.raises(InvalidInput):
        format_value([value])


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_read_the_same_in_json_and_in_python(value: float):
    text = format_value(value)
    assert format_value(parse_written_json(json.dumps(value))) == text
    assert "e" not in text
    assert struct.pack("d", float(text)) == struct.pack("d", value)


@settings(max_examples=25)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_narrow_floats_read_as_their_own_shortest_decimal(values: list[float]):
    table = pa.table({"x": pa.array(values, pa.float32())})
    texts = texts_of_table(source(template="{x}"), table)
    assert [np.float32(text).tobytes() for text in texts] == [
        np.float32(value).tobytes() for value in values
    ]
    shortest = [float(str(np.float32(value))) for value in values]
    assert [format_value(parse_written_json(json.dumps(value))) for value in shortest] == texts


ROWS: list[dict[str, Any]] = [
    {
        "title": f"Lamp {n}",
        "price": [19.99, None, 1e-05, 3.0, 1e22][n % 5],
        "weight": [0.1, 19.99, 65504.0, 6e-08][n % 4],
        "stock": 2**63 - 1 - n,
        "new": [True, False, None][n % 3],
        "sizes": [[0.1, 19.99], [], None][n % 3],
        "seller": [{"name": "Ann", "stars": 4.7}, {"name": None, "stars": None}, None][n % 3],
        "note": ["a\r\nb", "", " ", "café ❤", "null"][n % 5],
        "meta.title": f"flat {n}",
        "meta": {"title": "nested", "page no": n},
    }
    for n in range(60)
]
TEMPLATE = (
    "{title}\nPrice: {price}\nWeight: {weight}\n{stock}\nNew: {new}\nSizes: {sizes}\n"
    "{seller}\nStars: {seller.stars}\n{note}\n{meta.title}\n{meta.page no}\n{meta}"
)
NUMBERS = pa.struct([("name", pa.string()), ("stars", pa.float32())])
SCHEMA = pa.schema(
    [
        ("title", pa.string()),
        ("price", pa.float64()),
        ("weight", pa.float32()),
        ("stock", pa.uint64()),
        ("new", pa.bool_()),
        ("sizes", pa.list_(pa.float32())),
        ("seller", NUMBERS),
        ("note", pa.string()),
        ("meta.title", pa.string()),
        ("meta", pa.struct([("title", pa.string()), ("page no", pa.int16())])),
    ]
)


@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst", "parquet", "saved", "hub"])
def test_a_record_reads_the_same_in_every_format(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    (tmp_path / "plain.jsonl").write_bytes(lines)
    expected = read(source(files=["plain.jsonl"], template=TEMPLATE), tmp_path)
    assert expected[2].splitlines()[:4] == [
        "Lamp 2",
        "Price: 0.00001",
        "Weight: 65504.0",
        str(2**63 - 3),
    ]
    table = pa.Table.from_pylist(ROWS, SCHEMA)
    origin: dict[str, object] = {"files": [f"a.{kind}"]}
    if kind == "parquet":
        pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=7)
    elif kind == "saved":
        Dataset(table).save_to_disk(tmp_path / "set")
        origin = {"files": None, "saved": {"path": "set"}}
    elif kind == "hub":
        stream = Dataset(table).to_iterable_dataset(num_shards=3)
        monkeypatch.setattr(records, "load_hub", lambda source: stream)
        origin = {"files": None, "hub": {"id": "org/name", "revision": "0" * 40}}
    else:
        content = gzip.compress(lines) if kind == "jsonl.gz" else pa.Codec("zstd").compress(lines)
        (tmp_path / f"a.{kind}").write_bytes(bytes(content))
    assert read(source(template=TEMPLATE, **origin), tmp_path) == expected


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        (pa.array([0.1, None, 19.98], pa.float16()), ["0.1", "19.98"]),
        (pa.array([math.nan, 19.99, None], pa.float32()), ["19.99"]),
        (pa.array([0.1, 0.1], pa.float32()).dictionary_encode(), ["0.1", "0.1"]),
        (pa.array(["a", None, "a"]).dictionary_encode(), ["a", "a"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array(["a", "b"], pa.string_view()), ["a", "b"]),
        (pa.array([b"a", b"b"], pa.large_binary()), ["a", "b"]),
        (pa.array([b"ab"], pa.binary(2)), ["ab"]),
        (pa.array([["a", "b"], []], pa.list_(pa.string())), ["a, b"]),
        (pa.array([[0.1]], pa.list_(pa.float32(), 1)), ["0.1"]),
        (pa.array([[("k", 0.1)]], pa.map_(pa.string(), pa.float32())), ["k: 0.1"]),
        (pa.array([[{"k": 0.1}]], pa.list_(pa.struct([("k", pa.float16())]))), ["k: 0.1"]),
        (pa.array([Decimal("19.90")], pa.decimal128(9, 2)), ["19.90"]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([date(2024, 1, 5)], pa.date32()), ["2024-01-05"]),
        (pa.array([time(10, 30)], pa.time32("s")), ["10:30:00"]),
        (
            pa.array([0, 1500], pa.timestamp("ms", "UTC")),
            ["1970-01-01T00:00:00+00:00", "1970-01-01T00:00:01.500000+00:00"],
        ),
        (pa.array([0], pa.timestamp("ns")), ["1970-01-01T00:00:00"]),
        (pa.array(["1.50", None, '{"a": 2.50}'], pa.json_()), ["1.50", "a: 2.50"]),
    ],
)
def test_columns_of_every_type(column: pa.Array, texts: list[str]):
    s = source(template="{x}", bad_records=1)
    assert texts_of_table(s, pa.table({"x": column})) == texts


def test_the_longest_name_that_has_a_value_counts():
    record = {"a.b": {"c": 1}, "a": {"b.c": 2, "b": {"c": 3}}}
    assert look_up(record, "a.b.c") == 1
    assert look_up(record | {"a.b.c": 0}, "a.b.c") == 0
    assert look_up(record | {"a.b.c": math.nan, "a.b": None}, "a.b.c") == 2
    assert look_up({"a": {"b": {"c": 3}}}, "a.b.c") == 3
    assert look_up({"a": "text"}, "a.b") is None


def test_columns_whose_names_have_dots_spaces_or_brackets(tmp_path: Path):
    row = {"meta.title": "flat", "meta": {"title": "nested"}, "price [EUR]": 3, "Long Name": "x"}
    template = "{meta.title}\n{price [EUR]}\n{Long Name}"
    missing = {"meta.title": None, "meta": {"title": "nested"}}
    table = pa.Table.from_pylist([row, missing])
    expected = ["flat\n3\nx", "nested"]
    assert texts_of_parquet(tmp_path, table, template=template) == expected
    lines = json.dumps(row) + "\n" + json.dumps({"meta": {"title": "nested"}}) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    assert read(source(files=["a.jsonl"], template=template), tmp_path) == expected
    for name in ("a.jsonl", "a.parquet"):
        assert read(source(files=[name], field="meta.title"), tmp_path) == ["flat", "nested"]
    nested_only = pa.table({"meta": [{"title": "nested", "other": 1}]})
    assert texts_of_parquet(tmp_path, nested_only, field="meta.title") == ["nested"]


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pytest.raises(InvalidInput, match="columns with names of their own"):
        texts_of_parquet(tmp_path, table)


def test_binary_text_is_read_and_a_row_that_is_not_utf8_is_one_bad_record(tmp_path: Path):
    rows = [f"text {n}".encode() for n in range(300)]
    assert texts_of_parquet(tmp_path, pa.table({"text": rows})) == [r.decode() for r in rows]
    rows[17] = b"caf\xe9"
    for column in (pa.array(rows, pa.binary()), pa.array(rows, pa.binary()).view(pa.string())):
        pa.parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
        counts = RecordCounts()
        s = source(files=["a.parquet"], bad_records=0.05)
        assert len(read(s, tmp_path, counts)) == 299
        assert (counts.records, counts.bad) == (300, 1)
        assert counts.examples[0].startswith(f"{tmp_path}/a.parquet: row 18: text: 'utf-8' codec")
        with pytest.raises(InvalidInput, match="row 18"):
            read(source(files=["a.parquet"]), tmp_path)
        if pa.types.is_string(column.type):
            Dataset(pa.table({"text": column})).save_to_disk(tmp_path / "set")
            saved = source(files=None, saved={"path": "set"}, bad_records=0.05)
            assert len(read(saved, tmp_path)) == 299


def test_a_damaged_page_of_a_parquet_file_is_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(
        pa.table({"text": [f"text {n * 7919 % 10007}" for n in range(5000)]}),
        path,
        compression="snappy",
    )
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match="a Parquet file") as error:
        read(source(files=["a.parquet"], bad_records=1), tmp_path)
    assert error.value.file == str(path)
