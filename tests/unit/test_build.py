"""From files to token stores: their content, their counts, and builds that are disturbed."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sweepcp.config.source import Source
from sweepcp.data import join, records
from sweepcp.data.build import build_store, is_held_out
from sweepcp.data.documents import Document
from sweepcp.data.encoding import byte_encoder
from sweepcp.data.shards import RecordLocation
from sweepcp.data.source_files import resolve_source
from sweepcp.data.token_store import TokenStore, read_indexed_tokens
from sweepcp.errors import InvalidInput
from sweepcp.models.encoder import load_encoder
from sweepcp.models.loading import byte_tokenizer
from sweepcp.util.progress import NoProgress, Progress
from tests.make import jsonl, source, write_store

BYTES = byte_encoder()
RECORDS = [
    {"text": f"This is document number {n * n}, which says {n} and {n % 7}."} for n in range(400)
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build_bytes(s: Source, folder: Path, progress: Progress | None = None) -> TokenStore:
    """The store of a source with the tokenizer `bytes`."""
    return build_store(
        s,
        resolve_source(s, folder=folder),
        tokenizer_id="bytes",
        make_encoder=lambda: BYTES,
        progress=progress or NoProgress(),
    )


def documents(store: TokenStore) -> list[str]:
    indexed = store.train()
    edges = [int(o) // indexed.tokens.itemsize for o in indexed.offsets] + [len(indexed.tokens)]
    tokens = [indexed.tokens[a:b].tolist() for a, b in pairwise(edges)]
    assert all((t[0], t[-1]) == (256, 257) for t in tokens)
    tokenizer = byte_tokenizer()
    return [str(tokenizer.decode(t[1:-1])) for t in tokens]


def sha256(text: str) -> bytes:
    return Document(text, RecordLocation("")).sha256


def test_a_store_holds_every_document_once_in_the_split_of_its_hash(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    store = build_bytes(source(near_duplicates="keep", held_out=0.1), tmp_path)
    texts = [str(r["text"]) for r in RECORDS]
    trained = [t for t in texts if not is_held_out(sha256(t), 0.1)]
    assert sorted(documents(store)) == sorted(trained)
    assert list(store.held_out_documents()) == [t for t in texts if is_held_out(sha256(t), 0.1)]
    assert store.meta["train"]["bytes"] == sum(len(t) for t in documents(store))
    assert store.tokens == store.meta["train"]["bytes"] + 2 * store.meta["train"]["documents"]
    assert not list(store.path.parent.glob(".building*"))
    assert {p.name for p in store.path.iterdir()} == {
        "train.bin",
        "train.idx",
        "held_out.jsonl",
        "train.hashes",
        "held_out.hashes",
        "store.json",
    }
    for name, expected in store.meta["sha256"].items():
        assert hashlib.sha256((store.path / name).read_bytes()).hexdigest() == expected
    assert set(store.meta["sha256"]) == {"train.bin", "train.idx", "held_out.jsonl"}


def test_documents_of_a_source_are_shuffled(tmp_path: Path):
    """Their order is random: no part of the source comes first, and neighbours are parted."""
    count = 1000
    jsonl(tmp_path / "a.jsonl", [{"text": f"document {n}"} for n in range(count)])
    store = build_bytes(source(near_duplicates="keep", held_out=1e-9), tmp_path)
    order = np.array([int(text.split()[1]) for text in documents(store)])
    assert sorted(order) == list(range(count))
    # Of 250 numbers drawn without replacement from 0 to 999, the mean has a SD of 15.8.
    for quarter in order.reshape(4, -1):
        assert abs(quarter.mean() - (count - 1) / 2) < 4 * 15.8
    # Of random neighbours, one pair on average is in order by chance.
    assert (np.diff(order) == 1).sum() < 6
    assert abs(np.corrcoef(order, np.arange(count))[0, 1]) < 4 / count**0.5


@pytest.mark.parametrize("near_duplicates", ["drop", "keep"])
def test_the_number_of_buckets_does_not_change_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, near_duplicates: str
):
    jsonl(tmp_path / "a.jsonl", RECORDS[:100] + RECORDS[:50])
    contents = []
    for size in (1 << 28, 1000, 1):
        monkeypatch.setattr(join, "BUCKET_BYTES", size)
        monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / str(size)))
        store = build_bytes(source(near_duplicates=near_duplicates), tmp_path)
        contents.append([path.read_bytes() for path in sorted(store.path.iterdir())])
        assert len(documents(store)) == store.meta["train"]["documents"]
    assert contents[0] == contents[1] == contents[2]


def test_hashes_of_documents_are_kept_sorted_by_split(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    store = build_bytes(source(near_duplicates="keep", held_out=0.1), tmp_path)
    for split, texts in (
        ("train", documents(store)),
        ("held_out", list(store.held_out_documents())),
    ):
        expected = sorted(int.from_bytes(sha256(text)[:8], "little") for text in texts)
        assert store.document_hashes(split).tolist() == expected


def test_a_document_keeps_its_split_when_the_corpus_grows_and_the_share_is_met():
    hashes = [sha256(f"document {i}") for i in range(20000)]
    held_out = [value for value in hashes if is_held_out(value, 0.05)]
    assert 0.04 < len(held_out) / len(hashes) < 0.06
    assert all(is_held_out(value, 0.1) for value in held_out)


def test_the_size_of_shards_does_not_change_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jsonl(tmp_path / "a.jsonl", RECORDS + RECORDS[:50])
    contents = []
    for size in (1 << 20, 5000):
        monkeypatch.setattr(records, "SHARD_BYTES", size)
        monkeypatch.setattr(
            "sweepcp.data.build.parallel_map", lambda work, items, address: map(work, items)
        )
        monkeypatch.setenv("SWEEPCP_CACHE", str(tmp_path / str(size)))
        store = build_bytes(source(), tmp_path)
        assert store.meta["near_duplicates"] >= 50
        contents.append(
            [(store.path / n).read_bytes() for n in ("train.bin", "train.idx", "held_out.jsonl")]
        )
    assert contents[0] == contents[1]


def test_the_index_byte_by_byte(tmp_path: Path):
    store = write_store(tmp_path, "a", [[5, 6, 7], [8], [9, 10]])
    assert (store.path / "train.bin").read_bytes() == struct.pack("<6H", 5, 6, 7, 8, 9, 10)
    expected = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 3, 4)
    expected += (
        struct.pack("<3i", 3, 1, 2) + struct.pack("<3q", 0, 6, 8) + struct.pack("<4q", 0, 1, 2, 3)
    )
    assert (store.path / "train.idx").read_bytes() == expected
    indexed = store.train()
    assert indexed.document_starts(0, length=6) == [0, 3, 4]
    assert indexed.document_starts(1, length=3) == [2]
    assert indexed.document_starts(4, length=2) == [0]


@pytest.mark.parametrize("damage", ["magic", "truncated index", "truncated tokens"])
def test_a_damaged_store_is_refused(tmp_path: Path, damage: str):
    store = write_store(tmp_path, "a", [[5, 6, 7], [8], [9, 10]])
    index, tokens = store.path / "train.idx", store.path / "train.bin"
    if damage == "magic":
        index.write_bytes(b"x" + index.read_bytes()[1:])
    elif damage == "truncated index":
        index.write_bytes(index.read_bytes()[:-1])
    else:
        tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(InvalidInput, match="rebuilds it"):
        read_indexed_tokens(store.path / "train")


def test_a_vocabulary_over_65536_is_stored_in_four_bytes(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS[:50])
    s = source()
    small = build_bytes(s, tmp_path)
    large = build_store(
        s,
        resolve_source(s, folder=tmp_path),
        tokenizer_id="large",
        make_encoder=lambda: replace(BYTES, vocab_size=65537),
        progress=NoProgress(),
    )
    assert large.train().tokens.dtype == np.dtype("<i4")
    np.testing.assert_array_equal(large.train().tokens, small.train().tokens)


def test_near_duplicates_are_dropped_and_counted_or_kept(tmp_path: Path):
    text = " ".join(f"word{n}" for n in range(100))
    texts = [text, "other text", text + " more", text.upper()]
    jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts])
    store = build_bytes(source(held_out=1e-9), tmp_path)
    assert sorted(documents(store)) == sorted(texts[:2])
    assert store.meta["near_duplicates"] == 2
    assert store.meta["train"] == {
        "documents": 2,
        "bytes": len(text) + 10,
        "covered": len(text) + 10,
        "tokens": len(text) + 14,
    }
    kept = build_bytes(source(held_out=1e-9, near_duplicates="keep"), tmp_path)
    assert sorted(documents(kept)) == sorted(texts)


def test_held_out_files_are_held_out_whole_and_their_copies_are_not_trained_on(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS[:100])
    jsonl(tmp_path / "valid.json.jsonl", RECORDS[90:110])
    store = build_bytes(
        source(files=["a.jsonl"], held_out_files=["valid.json.jsonl"], near_duplicates="drop"),
        tmp_path,
    )
    texts = [str(r["text"]) for r in RECORDS]
    assert set(store.held_out_documents()) <= set(texts[90:110])
    assert not set(documents(store)) & set(texts[90:110])


def test_tokens_are_those_of_transformers(tmp_path: Path):
    from sweepcp.config.base_model import BaseSpec

    folder = tmp_path / "model"
    byte_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 258}))
    encoder = load_encoder(BaseSpec(path=str(folder), max_lr=1e-3))
    text = "Grüße, <b> 東京 </b>\n\n  x"
    assert encoder.encode([text]) == BYTES.encode([text])
    assert encoder.encode([text])[0] == [
        256,
        *byte_tokenizer()(text, add_special_tokens=False)["input_ids"],
        257,
    ]
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 257}))
    with pytest.raises(
        InvalidInput, match="at most the 257 tokens that the model has embeddings for"
    ):
        load_encoder(BaseSpec(path=str(folder), max_lr=1e-3))


def test_an_unchanged_source_is_not_rebuilt(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    first = build_bytes(source(), tmp_path)
    stamp = (first.path / "store.json").stat().st_mtime_ns
    again = build_store(
        source(weight=3),
        resolve_source(source(), folder=tmp_path),
        tokenizer_id="bytes",
        make_encoder=lambda: pytest.fail("rebuilt"),
        progress=NoProgress(),
    )
    assert (again.path / "store.json").stat().st_mtime_ns == stamp
    jsonl(tmp_path / "a.jsonl", RECORDS[1:])
    assert build_bytes(source(), tmp_path).path != first.path


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path):
    path = jsonl(tmp_path / "a.jsonl", RECORDS)

    class Meddler(NoProgress):
        def update(self, task: str, *, done: int, total: int, detail: str = "") -> None:
            # One byte of the same length.
            path.write_text(path.read_text().replace("document", "documend", 1))

    with pytest.raises(InvalidInput, match="its files changed") as error:
        build_bytes(source(), tmp_path, Meddler())
    assert (error.value.file, error.value.key) == (source().name, f"sources.{source().name}")


def test_a_store_with_too_many_bad_records_is_refused_when_built_and_when_cached(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS[:99]) + "{\n")
    assert build_bytes(source(bad_records=0.01), tmp_path).meta["bad"] == 1
    with pytest.raises(InvalidInput, match=r"1 of 100 records cannot be used: .*a\.jsonl:100"):
        build_bytes(source(bad_records=0.009), tmp_path)


def test_a_killed_build_resumes_with_the_shards_that_are_missing(tmp_path: Path, own_cache: Path):
    """The builder is killed with SIGKILL; its processes go with it; what they finished is kept."""
    script = tmp_path / "slow.py"
    script.write_text(
        """
import sys, time
from pathlib import Path
from sweepcp.config.source import Source
from sweepcp.data import build, records
from sweepcp.data.encoding import Encoder, byte_encoder
from sweepcp.data.source_files import resolve_source
from sweepcp.util.progress import NoProgress

encode = Encoder.encode

def encode_slowly(*args):
    time.sleep(0.3)
    return encode(*args)

# In the workers, too: they import this file.
Encoder.encode = encode_slowly

if __name__ == "__main__":
    records.SHARD_BYTES = 2000
    source = Source(name="s", role="domain", files=("*.jsonl",))
    build.build_store(
        source,
        resolve_source(source, folder=Path(sys.argv[1])),
        tokenizer_id="bytes",
        make_encoder=byte_encoder,
        progress=NoProgress(),
    )
"""
    )
    jsonl(tmp_path / "a.jsonl", RECORDS)
    builder = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    until = time.monotonic() + 60
    while len(list(own_cache.glob("stores/.building-*/*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    builder.kill()
    builder.wait()
    time.sleep(1.5)
    assert (
        str(tmp_path)
        not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    )
    kept = {p: p.stat().st_mtime_ns for p in own_cache.glob("stores/.building-*/*.json")}
    assert len(kept) >= 3
    done_shards: list[int] = []

    class Recorder(NoProgress):
        def update(self, task: str, *, done: int, total: int, detail: str = "") -> None:
            done_shards.append(done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD_BYTES", 2000)
        patch.setattr(shutil, "copyfileobj", lambda *_: pytest.fail("stop before the join"))
        with pytest.raises(pytest.fail.Exception):
            build_bytes(source(), tmp_path, Recorder())
        assert {p: p.stat().st_mtime_ns for p in kept} == kept
        assert done_shards[0] >= 3
        patch.undo()
        patch.setattr(records, "SHARD_BYTES", 2000)
        store = build_bytes(source(), tmp_path)
    patch.setenv("SWEEPCP_CACHE", str(tmp_path / "another"))
    undisturbed = build_bytes(source(), tmp_path)
    patch.undo()
    for name in ("train.bin", "train.idx", "held_out.jsonl"):
        assert (store.path / name).read_bytes() == (undisturbed.path / name).read_bytes()


def test_a_build_interrupted_while_it_removes_its_shards_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    unlink = Path.unlink

    def stop_at_tokens(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        if path.suffix == ".tokens":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stop_at_tokens)
        with pytest.raises(KeyboardInterrupt):
            build_bytes(source(), tmp_path)
    assert build_bytes(source(), tmp_path).meta["records"] == len(RECORDS)


def test_a_sample_of_held_out_documents_has_the_smallest_hashes(tmp_path: Path):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    store = build_bytes(source(held_out=0.2), tmp_path)
    held_out = list(store.held_out_documents())
    assert store.sample_held_out(None) == held_out
    assert store.sample_held_out(5) == sorted(held_out, key=sha256)[:5]
    assert len(store.sample_held_out(1000)) == len(held_out)


def test_an_error_in_another_process_arrives_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jsonl(tmp_path / "a.jsonl", RECORDS)
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"txt": "no"}\n')
    monkeypatch.setattr(records, "SHARD_BYTES", 5000)
    with pytest.raises(InvalidInput) as error:
        build_bytes(source(), tmp_path)
    assert error.value.file == f"{tmp_path}/b.jsonl:2"
    assert "set `field:`" in error.value.fix
