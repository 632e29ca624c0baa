import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweepcp.data.store import Store
from sweepcp.data.stream import IGNORED, Sequences, Stream, apportion, positions
from tests.make import mixture, recipe


def deviation(shares: list[float], plan: np.ndarray) -> float:
    """The largest distance, over prefixes and sources, between sequences given and sequences due."""
    given_so_far = np.cumsum(plan[:, None] == np.arange(len(shares)), axis=0)
    due = np.arange(1, len(plan) + 1)[:, None] * np.array(shares)
    return float(np.abs(given_so_far - due).max())


@settings(deadline=None)
@given(st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=1, max_size=8).filter(lambda w: sum(w) > 0))
def test_every_prefix_is_within_one_sequence_of_every_share(weights: list[float]):
    shares = [w / sum(weights) for w in weights]
    assert deviation(shares, apportion(shares, 400)) < 1


def test_five_very_unequal_shares():
    shares = [w / 836 for w in (2, 400, 30, 2, 402)]
    assert deviation(shares, apportion(shares, 5000)) < 1


def test_even_shares_alternate():
    assert apportion([0.5, 0.5], 6).tolist() == [0, 1, 0, 1, 0, 1]


def write_store(folder: Path, name: str, documents: list[list[int]]) -> Store:
    path = folder / name
    path.mkdir()
    np.save(path / "tokens.npy", np.array([t for d in documents for t in d], dtype=np.uint16))
    np.save(path / "starts.npy", np.cumsum([0] + [len(d) for d in documents]))
    (path / "store.json").write_text(json.dumps({"train": {"tokens": sum(map(len, documents))}}))
    return Store(path, name)


def test_sequences_cover_each_block_once_an_epoch_in_new_orders(tmp_path: Path):
    store = write_store(tmp_path, "code", [list(range(1, 42))])
    source = Sequences(store, seq_len=4, seed=0)
    assert source.blocks == 10
    epochs = [[int(source[e * 10 + i][0][0]) for i in range(10)] for e in range(3)]
    assert all(sorted(e) == list(range(1, 41, 4)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [int(Sequences(store, 4, 0)[i][0][0]) for i in range(10)]
    assert epochs[0] != [int(Sequences(store, 4, 1)[i][0][0]) for i in range(10)]


def test_targets_are_the_next_tokens_and_stop_at_documents(tmp_path: Path):
    documents = [[100, 1, 2, 3, 99], [100, 4, 99], [100, 5, 6, 7, 8, 9, 10, 11, 99]]
    store = write_store(tmp_path, "code", documents)
    r = recipe(mixture=mixture(0.0), tokens=32)
    batch = Stream(r, [store]).batch(1)
    for inputs, targets, places in zip(batch.input_ids, batch.targets, batch.position_ids, strict=True):
        for i in range(3):
            following = int(inputs[i + 1])
            assert targets[i] == (IGNORED if following == 100 else following)
            assert places[i + 1] == (0 if following == 100 else places[i] + 1)


def test_crossing_documents_keeps_every_target(tmp_path: Path):
    store = write_store(tmp_path, "code", [[100, 1, 2, 99]] * 10)
    batch = Stream(recipe(mixture=mixture(0.0), cross_documents=True), [store]).batch(1)
    assert (batch.targets != IGNORED).all()
    assert (batch.position_ids == np.arange(4)).all()


def test_a_batch_is_a_function_of_seed_and_step(tmp_path: Path):
    stores = [write_store(tmp_path, n, [list(range(400))]) for n in ("code", "docs")]
    one, two = Stream(recipe(), stores), Stream(recipe(), stores)
    last = two.batch(10)
    for step in range(1, 11):
        batch = one.batch(step)
    np.testing.assert_array_equal(batch.input_ids, last.input_ids)
    assert not np.array_equal(Stream(recipe(seed=1), stores).batch(10).input_ids, last.input_ids)


def test_a_source_shorter_than_a_sequence_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="less than one sequence of 4"):
        Sequences(write_store(tmp_path, "code", [[1, 2, 3]]), 4, 0)


def test_positions_restart_at_documents_and_rows():
    begins = np.array([[True, False, True, False], [False, False, False, True]])
    assert positions(begins).tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
