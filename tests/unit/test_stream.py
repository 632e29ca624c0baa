from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweepcp.config.recipe import Mixture, SourceShare
from sweepcp.data.stream import IGNORED, MixtureStream, SourceSequences, restarting_positions
from sweepcp.data.token_store import TokenStore
from tests.make import mixture, recipe, write_store


def firsts(source: SourceSequences, numbers: range) -> list[int]:
    tokens = np.zeros((len(numbers), source.seq_len + 1), dtype=np.int64)
    source.read(
        np.array(numbers),
        rows=np.arange(len(numbers)),
        tokens=tokens,
        starts=np.zeros(tokens.shape, dtype=bool),
    )
    return [int(t) for t in tokens[:, 0]]


def test_sequences_cover_each_block_once_an_epoch_in_new_orders(tmp_path: Path):
    store = write_store(tmp_path, "code", [list(range(1, 42))])
    source = SourceSequences(store, seq_len=4, seed=0)
    assert source.blocks == 10
    epochs = [firsts(source, range(e * 10, e * 10 + 10)) for e in range(3)]
    assert all(sorted(e) == list(range(1, 41, 4)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == firsts(SourceSequences(store, seq_len=4, seed=0), range(10))
    assert epochs[0] != firsts(SourceSequences(store, seq_len=4, seed=1), range(10))
    # Blocks are looked up 512 sequences at once.
    assert sorted(firsts(source, range(510, 520))) == list(range(1, 41, 4))
    across = firsts(source, range(5, 15))
    assert across == epochs[0][5:] + epochs[1][:5]


def test_a_fraction_of_a_store_is_the_same_blocks_in_every_epoch(tmp_path: Path):
    store = write_store(tmp_path, "code", [list(range(1, 402))], fraction=0.1)
    source = SourceSequences(store, seq_len=4, seed=0)
    assert (source.blocks, source.all_blocks) == (10, 100)
    first, second = firsts(source, range(10)), firsts(source, range(10, 20))
    assert first != second
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 10
    assert sorted(first) != list(range(1, 41, 4))
    others = firsts(SourceSequences(store, seq_len=4, seed=1), range(10))
    assert sorted(others) != sorted(first)


@pytest.mark.parametrize(("fraction", "blocks"), [(0.014, 1), (0.016, 2), (0.001, 1), (1.0, 100)])
def test_a_fraction_is_of_blocks_to_the_nearest_and_at_least_one(
    tmp_path: Path, fraction: float, blocks: int
):
    store = write_store(tmp_path, "code", [list(range(1, 402))], fraction=fraction)
    assert SourceSequences(store, seq_len=4, seed=0).blocks == blocks


def test_targets_are_the_next_tokens_and_stop_at_documents(tmp_path: Path):
    documents = [[100, 1, 2, 3, 99], [100, 4, 99], [100, 5, 6, 7, 8, 9, 10, 11, 99]]
    store = write_store(tmp_path, "code", documents)
    # Two epochs of the four blocks; documents start within one of them.
    r = recipe(mixture=mixture(0.0), tokens=32)
    seen: set[tuple[int, ...]] = set()
    for batch in MixtureStream(r, [store]).batches():
        for inputs, targets, positions in zip(
            batch.input_ids, batch.targets, batch.position_ids, strict=True
        ):
            assert positions[0] == 0
            for i in range(3):
                following = int(inputs[i + 1])
                assert targets[i] == (IGNORED if following == 100 else following)
                assert positions[i + 1] == (0 if following == 100 else positions[i] + 1)
            seen.add((*inputs.tolist(), int(targets[-1])))
    # The last target is the token after the block, unless a document starts with it.
    assert seen == {
        (100, 1, 2, 3, 99),
        (99, 100, 4, 99, IGNORED),
        (100, 5, 6, 7, 8),
        (8, 9, 10, 11, 99),
    }


def test_crossing_documents_keeps_every_target(tmp_path: Path):
    store = write_store(tmp_path, "code", [[100, 1, 2, 99]] * 10)
    batch = MixtureStream(recipe(mixture=mixture(0.0), cross_documents=True), [store]).batch(1)
    assert (batch.targets != IGNORED).all()
    assert (batch.position_ids == np.arange(4)).all()


@pytest.fixture
def stores(tmp_path: Path) -> list[TokenStore]:
    """Two sources of 25 blocks of four tokens each: ten steps read each of them 0.4 times."""
    return [
        write_store(tmp_path, n, [list(range(o, o + 101))]) for n, o in (("code", 0), ("docs", 500))
    ]


def test_a_batch_is_a_function_of_seed_and_step(stores: list[TokenStore]):
    one, two = MixtureStream(recipe(), stores), MixtureStream(recipe(), stores)
    last = two.batch(10)
    for step in range(1, 11):
        batch = one.batch(step)
    np.testing.assert_array_equal(batch.input_ids, last.input_ids)
    assert not np.array_equal(
        MixtureStream(recipe(seed=1), stores).batch(10).input_ids, last.input_ids
    )


@pytest.mark.parametrize("step", [2, 30, 57, 77])
def test_a_run_resumed_at_any_step_reads_what_an_uninterrupted_one_reads(
    stores: list[TokenStore], step: int
):
    # 80 steps reach the fourth epoch of both sources.
    r = recipe(tokens=8 * 80)
    whole = list(MixtureStream(r, stores).batches())
    resumed = list(MixtureStream(r, stores).batches(first=step))
    assert len(resumed) == 81 - step
    for before, after in zip(whole[step - 1 :], resumed, strict=True):
        np.testing.assert_array_equal(before.input_ids, after.input_ids)
        np.testing.assert_array_equal(before.targets, after.targets)
    seen = np.concatenate([b.input_ids[b.source == 0][:, 0] for b in whole])
    assert sorted(seen[:25]) == sorted(seen[25:50]) == list(range(0, 100, 4))
    assert seen[:25].tolist() != seen[25:50].tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_the_rows_of_all_ranks_are_the_whole_batch(stores: list[TokenStore], world_size: int):
    # Ten sequences per step: 3 and 8 ranks get different numbers of them.
    r = recipe(batch_tokens=40, tokens=400)
    for step in (1, 2, 9):
        whole = MixtureStream(r, stores).batch(step)
        rows = [
            MixtureStream(r, stores).batch(step, rank, world_size) for rank in range(world_size)
        ]
        for name in ("input_ids", "targets", "position_ids", "source"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(b, name) for b in rows]), getattr(whole, name)
            )


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_batches_of_loader_workers_in_turn_are_those_of_the_rank(
    stores: list[TokenStore], workers: int
):
    r = recipe(batch_tokens=40, tokens=400)
    steps = {"first": 3, "rank": 1, "world_size": 2}
    whole = [b.input_ids for b in MixtureStream(r, stores).batches(**steps)]
    turns = [
        MixtureStream(r, stores).batches(**steps, worker=worker, workers=workers)
        for worker in range(workers)
    ]
    for n, expected in enumerate(whole):
        np.testing.assert_array_equal(next(turns[n % workers]).input_ids, expected)
    assert all(next(turn, None) is None for turn in turns)


def test_skipped_steps_are_passed_over(stores: list[TokenStore]):
    plain, skipping = (
        MixtureStream(recipe(), stores),
        MixtureStream(recipe(), stores, skipped=(7, 3, 4, 3)),
    )
    for step, stream_step in enumerate([1, 2, 5, 6, 8, 9], start=1):
        assert skipping.stream_step(step) == stream_step
        np.testing.assert_array_equal(
            skipping.batch(step).input_ids, plain.batch(stream_step).input_ids
        )


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1)), min_size=2, max_size=8),
    st.integers(0, 2**31),
)
def test_any_mixture_covers_every_source_once_an_epoch(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float], seed: int
):
    if not sum(weights):
        return
    folder = tmp_path_factory.mktemp("stores")
    names = [f"s{i}" for i in range(len(weights))]
    made = [write_store(folder, name, [list(range(1, 22 + 4 * i))]) for i, name in enumerate(names)]
    portions = tuple(
        SourceShare(source=n, role="domain", language="en", share=w / sum(weights))
        for n, w in zip(names, weights, strict=True)
    )
    r = recipe(mixture=Mixture(portions=portions), tokens=8 * 120, seed=seed)
    batches = list(MixtureStream(r, made).batches())
    chosen = np.concatenate([b.source for b in batches])
    begins = np.concatenate([b.input_ids[:, 0] for b in batches])
    for i in range(len(weights)):
        blocks = 5 + i
        mine = begins[chosen == i].tolist()
        for epoch in range(len(mine) // blocks):
            assert sorted(mine[epoch * blocks : (epoch + 1) * blocks]) == list(
                range(1, 4 * blocks, 4)
            )


def test_a_source_shorter_than_a_sequence_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not more than one sequence of 4"):
        SourceSequences(write_store(tmp_path, "code", [[1, 2, 3]]), seq_len=4, seed=0)


def test_positions_restart_at_documents_and_rows():
    begins = np.array([[True, False, True, False], [False, False, False, True]])
    assert restarting_positions(begins).tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
