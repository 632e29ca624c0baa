"""The estimate of a corpus whose halves differ fourfold in their tokens per byte."""

import gzip
import json
import random
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, SplitDict, SplitInfo

from sweepcp.config.source import Source
from sweepcp.corpora.experiment import load_experiment
from sweepcp.data import records, token_estimate
from sweepcp.data.source_files import resolve_source
from sweepcp.data.token_estimate import estimate_tokens
from sweepcp.errors import InvalidInput
from sweepcp.search.plan import make_plan
from tests.make import jsonl, source

DENSE, SPARSE = "ab ", "abcdefghijk "


def make_documents(count: int, mean: int = 300) -> list[str]:
    """Documents of random lengths; those of the second half have a quarter of the tokens."""
    rng = random.Random(1)
    documents: list[str] = []
    for number in range(count):
        words = 5 + int(rng.expovariate(1 / mean))
        kind = DENSE * 4 if number < count // 2 else SPARSE
        documents.append((kind * words).strip())
    return documents


DOCUMENTS = make_documents(2400)
"""About 9 MB."""


def count_tokens(documents: list[str]) -> float:
    """One token per word, and two per document."""
    return float(sum(document.count(" ") + 3 for document in documents))


def check(s: Source, folder: Path, documents: list[str], tolerance: float = 0.1) -> None:
    estimate = estimate_tokens(s, resolve_source(s, folder=folder), count_tokens)
    expected = count_tokens(documents) * (1 - s.held_out)
    assert estimate == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet", "groups", "txt"])
def test_one_large_file(tmp_path: Path, kind: str):
    path = tmp_path / f"a.{'parquet' if kind == 'groups' else kind}"
    s = source(files=[path.name], unit="paragraph", held_out=0.3)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS).encode()
    if kind == "txt":
        path.write_text("\n\n".join(DOCUMENTS))
    elif path.suffix == ".parquet":
        size = 100 if kind == "groups" else None
        pa.parquet.write_table(pa.table({"text": DOCUMENTS}), path, row_group_size=size)
    elif kind == "jsonl.zst":
        path.write_bytes(bytes(pa.Codec("zstd").compress(lines)))
    else:
        path.write_bytes(gzip.compress(lines, 1) if kind == "jsonl.gz" else lines)
    check(s, tmp_path, DOCUMENTS)


def test_a_saved_data_set(tmp_path: Path):
    Dataset.from_dict({"text": DOCUMENTS}).save_to_disk(tmp_path / "set")
    check(source(files=None, saved={"path": "set"}), tmp_path, DOCUMENTS)


@pytest.mark.parametrize("is_known", [True, False])
def test_a_hub_data_set_whose_rows_are_known_or_not(
    tmp_path: Path, is_known: bool, monkeypatch: pytest.MonkeyPatch
):
    # Of equal shards: a few of them stand for all.
    shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS))
    stream = Dataset.from_dict({"text": shuffled}).to_iterable_dataset(num_shards=4)
    train = SplitInfo("train", num_examples=len(shuffled))
    stream.info.splits = SplitDict({"train": train}) if is_known else None
    for module in (records, token_estimate):
        monkeypatch.setattr(module, "load_hub", lambda source: stream)
    check(source(files=None, hub={"id": "a/b", "revision": "0" * 40}), tmp_path, DOCUMENTS)


def test_files_of_which_every_other_one_differs(tmp_path: Path):
    half = len(DOCUMENTS) // 2
    short = [text[:1200] for text in chain(*zip(DOCUMENTS[:half], DOCUMENTS[half:], strict=True))]
    for number, text in enumerate(short):
        (tmp_path / f"{number:04}.txt").write_text(text)
    check(source(files=["*.txt"]), tmp_path, short)


def test_files_of_different_sizes_and_formats(tmp_path: Path):
    small, half = DOCUMENTS[-20:], len(DOCUMENTS) // 2
    jsonl(tmp_path / "a.jsonl", [{"text": text} for text in DOCUMENTS[:half]])
    jsonl(tmp_path / "b.jsonl", [{"text": text} for text in small])
    pa.parquet.write_table(pa.table({"text": DOCUMENTS[half:]}), tmp_path / "c.parquet")
    check(source(files=["."]), tmp_path, DOCUMENTS + small)


def test_documents_longer_than_a_spot(tmp_path: Path):
    long = make_documents(100, 10_000)
    jsonl(tmp_path / "a.jsonl", [{"text": text} for text in long])
    check(source(files=["a.jsonl"]), tmp_path, long)
    (tmp_path / "books").mkdir()
    for number, text in enumerate(long):
        (tmp_path / "books" / f"{number}.txt").write_text(text)
    check(source(files=["books"]), tmp_path, long)


def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path):
    lines = [json.dumps({"text": text}) for text in DOCUMENTS[:50]]
    content = "\n".join([*lines, "{"]).encode()
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(content))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(content)[:-20])
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 not really")
    for name, place in (("bad.jsonl.gz", ":51"), ("cut.jsonl.gz", ""), ("cut.parquet", "")):
        with pytest.raises(InvalidInput) as error:
            check(source(files=[name]), tmp_path, DOCUMENTS)
        assert error.value.file == f"{tmp_path}/{name}{place}"


@pytest.mark.parametrize("content", ["\n \n\r\n", '{"text": " "}\n'])
def test_a_source_without_documents_is_refused(tmp_path: Path, content: str):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(InvalidInput, match="no documents"):
        check(source(files=["a.jsonl"]), tmp_path, [])


def test_the_plan_counts_epochs_of_a_large_text_in_paragraphs(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n\n".join(DOCUMENTS))
    changes = [
        "sources.python-code.python=null",
        f"sources.python-code.files=[{tmp_path}/a.txt]",
        "sources.python-code.unit=paragraph",
        "target={tokens: 100_000_000, match_repetition: true}",
    ]
    plan = make_plan(*load_experiment("quickstart", changes))
    count = next(count for count in plan.epochs if count.source.name == "python-code")
    # A token per byte, and BOS and EOS.
    tokens = sum(len(text) + 2 for text in DOCUMENTS) * (1 - count.source.held_out)
    assert plan.token_origins["python-code"] == "estimated"
    assert count.tokens == pytest.approx(tokens, rel=0.02)
    assert count.target_first_epochs == pytest.approx(0.5 * 100_000_000 / tokens, rel=0.02)
    assert count.first_epochs == pytest.approx(count.target_first_epochs)
