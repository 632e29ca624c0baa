"""Damaged files of every kind: what is read is what was written, or it is reported."""

import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

from sweepcp.config.source import Source
from sweepcp.data.dataset_loading import load_saved
from sweepcp.data.documents import RecordCounts, check_bad_records, read_documents
from sweepcp.data.records import split_into_shards
from sweepcp.data.source_files import ResolvedSource
from sweepcp.data.token_estimate import estimate_tokens
from sweepcp.errors import InvalidInput
from tests.make import source

TEXTS = [f"document {n}, caf\xe9: {n * 7919 % 10007}" for n in range(150)]
LINES = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()
ARRAY = json.dumps([{"text": text} for text in TEXTS], indent=1).encode()
ROWS = "".join(f'{n};"{text}"\n' for n, text in enumerate(TEXTS))
CSV = ("number,text\n" + ROWS.replace(";", ",")).encode()
TSV = ("number\ttext\n" + ROWS.replace(";", "\t")).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content))


def in_two(pack: Callable[[bytes], bytes], content: bytes) -> bytes:
    half = len(content) // 2
    return pack(content[:half]) + pack(content[half:])


def parquet(**options: Any) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"text": TEXTS})
    pa.parquet.write_table(table, sink, row_group_size=40, write_page_checksum=True, **options)
    return sink.getvalue()


FILES: dict[str, bytes] = {
    "a.jsonl": LINES,
    "a.jsonl.gz": in_two(gzip.compress, LINES),
    "a.jsonl.zst": in_two(zstd, LINES),
    "a.json": ARRAY,
    "a.json.gz": gzip.compress(ARRAY),
    "b.json.gz": gzip.compress(LINES),
    "a.json.zst": zstd(ARRAY),
    "a.csv": CSV,
    "a.csv.gz": gzip.compress(CSV),
    "a.tsv": TSV,
    "a.tsv.zst": zstd(TSV),
    "a.txt": "\n\n".join(TEXTS).encode(),
    "a.txt.gz": gzip.compress("\n\n".join(TEXTS).encode()),
    "a.parquet": parquet(compression="none"),
    "b.parquet": parquet(compression="zstd", use_dictionary=False, data_page_version="2.0"),
}
EXACT = {".gz", ".parquet"}
"""Formats with checksums, whose content cannot change unnoticed."""


def read(s: Source, files: ResolvedSource) -> tuple[Counter[str], RecordCounts] | InvalidInput:
    """Return the documents that a build would read, or why it would be refused."""
    counts = RecordCounts()
    found: Counter[str] = Counter()
    try:
        for shard in split_into_shards(s, files):
            found.update(d.text for d in read_documents(s, files, shard, counts))
        check_bad_records(s, counts)
        if not found:
            # As `build_stores` does.
            raise InvalidInput(file=s.name, found="0 tokens", rule="more tokens", fix="add text")
    except InvalidInput as refused:
        return refused
    return found, counts


def is_planned(s: Source, files: ResolvedSource) -> bool:
    try:
        estimate_tokens(s, files, lambda texts: float(len(texts)))
    except InvalidInput:
        return False
    return True


def check(s: Source, path: Path, *, is_exact: bool) -> str:
    files = ResolvedSource((path,))
    result = read(s, files)
    # Small sources are sampled whole, so a plan finds what a build finds.
    assert is_planned(s, files) == (not isinstance(result, InvalidInput))
    if isinstance(result, InvalidInput):
        assert s.name in result.file or str(path) in result.file
        assert result.rule
        assert result.fix
        return "refused"
    found, counts = result
    if is_exact:
        assert found <= Counter(TEXTS)
    return "bad records" if counts.bad else "read"


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_as_it_was_written(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(FILES[name])
    s = source(files=[name], unit="paragraph")
    result = read(s, ResolvedSource((tmp_path / name,)))
    assert not isinstance(result, InvalidInput)
    assert result[0] == Counter(TEXTS)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_reported(tmp_path: Path, name: str):
    rng = random.Random(name)
    content, path = FILES[name], tmp_path / name
    s = source(files=[name], unit="paragraph", bad_records=0.5)
    outcomes: set[str] = set()
    for size in [1, 2, 3, len(content) - 2, *rng.sample(range(4, len(content)), 6)]:
        path.write_bytes(content[:size])
        # Of plain text, the last paragraph may be shorter, and nothing shows it.
        outcomes.add(check(s, path, is_exact=name != "a.txt"))
    if path.suffix in (".gz", ".zst", ".parquet", ".json"):
        assert outcomes == {"refused"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["flipped", "overwritten", "appended", "zeros"])
def test_other_damage_is_reported_where_a_checksum_shows_it(tmp_path: Path, name: str, kind: str):
    rng = random.Random(name + kind)
    content, path = FILES[name], tmp_path / name
    s = source(files=[name], unit="paragraph", bad_records=0.5)
    for _ in range(6):
        damaged = bytearray(content)
        place = rng.randrange(len(content))
        if kind == "flipped":
            damaged[place] ^= 1 << rng.randrange(8)
        elif kind == "overwritten":
            damaged[place : place + 30] = rng.randbytes(30)
        elif kind == "appended":
            damaged += rng.randbytes(rng.randrange(1, 40))
        else:
            damaged += bytes(rng.randrange(1, 600))
        path.write_bytes(damaged)
        check(s, path, is_exact=path.suffix in EXACT)


@pytest.mark.parametrize("kind", ["flipped", "truncated"])
def test_a_damaged_saved_data_set_is_refused(tmp_path: Path, kind: str):
    folder = tmp_path / "set"
    Dataset.from_dict({"text": TEXTS}).save_to_disk(folder)
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    rng = random.Random(kind)
    s = source(files=None, saved={"path": "set"}, bad_records=0.5)
    for path, content in files.items():
        for _ in range(8):
            place = rng.randrange(len(content))
            damaged = bytearray(content)
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(content[:place] if kind == "truncated" else damaged)
            load_saved.cache_clear()
            check(s, folder, is_exact=False)
        path.write_bytes(content)
