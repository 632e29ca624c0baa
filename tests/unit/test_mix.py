"""The tokens of a run as a data set: those of the stream, in its order, with labels."""

import json

import numpy as np
import pytest
from datasets import load_from_disk

from sweepcp.data.materialize import document_spans, generate_rows, materialize_mix
from sweepcp.data.stream import IGNORED, MixtureStream
from sweepcp.errors import InvalidInput
from tests.make import recipe, write_store


@pytest.fixture
def stores(tmp_path):
    """Sources of documents of 1 to 29 tokens."""
    rng = np.random.default_rng(1)
    texts = {
        name: [rng.integers(low, low + 9, n).tolist() for n in rng.integers(1, 30, 80)]
        for name, low in SOURCES
    }
    return [write_store(tmp_path, name, documents) for name, documents in texts.items()]


SOURCES = (("code", 10), ("docs", 50))
RECIPE = recipe(tokens=16 * 8 * 4, batch_tokens=16 * 8, seq_len=16)


def test_sequences_are_those_of_the_stream_with_a_label_at_its_own_token(stores):
    rows = list(generate_rows(list(range(1, 5)), RECIPE, tuple(stores), "sequences"))
    stream = MixtureStream(RECIPE, stores)
    batches = [stream.batch(step) for step in range(1, 5)]
    assert np.array_equal(
        [r["input_ids"] for r in rows], np.concatenate([b.input_ids for b in batches])
    )
    labels = np.array([r["labels"] for r in rows])
    assert np.array_equal(labels[:, 1:], np.concatenate([b.targets[:, :-1] for b in batches]))
    assert (labels[:, 0] == IGNORED).all()
    # Documents do begin within sequences.
    assert (np.concatenate([b.targets for b in batches]) == IGNORED).sum() > 20


def test_documents_in_a_row_are_the_sequences(stores):
    rows = list(generate_rows([1, 2], RECIPE, tuple(stores), "documents"))
    stream = MixtureStream(RECIPE, stores)
    tokens = np.concatenate([stream.batch(step).input_ids.ravel() for step in (1, 2)])
    assert np.array_equal(np.concatenate([r["input_ids"] for r in rows]), tokens)
    filled = np.cumsum([len(r["input_ids"]) for r in rows])
    assert {16 * n for n in range(1, 17)} <= set(filled.tolist())
    assert min(len(r["input_ids"]) for r in rows) == 1
    for row in rows:
        ids, labels = row["input_ids"], row["labels"]
        assert np.array_equal(labels, ids) if len(ids) == 1 else np.array_equal(labels[1:], ids[1:])
        assert labels[0] == IGNORED or len(ids) == 1


def test_document_spans_by_hand(stores):
    batch = MixtureStream(RECIPE, stores).batch(1)
    batch.position_ids[0] = [5, 6, 0, 1, 2, 0, 0, *range(1, 10)]
    batch.position_ids[0][0] = 0
    assert document_spans(batch, 0) == [(0, 2), (2, 5), (5, 6), (6, 16)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_mix_on_disk_has_its_tokens_counted_and_is_written_once(stores, tmp_path, workers):
    out = tmp_path / "mix"
    tokens = materialize_mix(RECIPE, stores, out=out, rows="sequences", workers=workers)
    assert sum(tokens.values()) == RECIPE.tokens
    loaded = load_from_disk(str(out))
    assert np.array_equal(
        loaded["input_ids"],
        [r["input_ids"] for r in generate_rows([1, 2, 3, 4], RECIPE, tuple(stores), "sequences")],
    )
    record = json.loads((out / "mix.json").read_text())
    assert (record["rows"], record["tokens"], record["kind"]) == (32, tokens, "sequences")
    assert [path.name for path in tmp_path.iterdir() if "work" in path.name] == []
    with pytest.raises(InvalidInput, match="without a mix"):
        materialize_mix(RECIPE, stores, out=out, rows="sequences", workers=workers)


def test_an_incomplete_mix_is_replaced(stores, tmp_path):
    (tmp_path / "mix").mkdir()
    (tmp_path / "mix" / "data-00000-of-00001.arrow").write_text("truncated")
    materialize_mix(RECIPE, stores, out=tmp_path / "mix", rows="documents", workers=1)
    assert len(load_from_disk(str(tmp_path / "mix"))) > 32


def test_a_folder_of_something_else_is_refused_and_kept(stores, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(InvalidInput, match="a folder that holds thesis"):
        materialize_mix(RECIPE, stores, out=tmp_path / "mine", rows="documents", workers=1)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "text"
