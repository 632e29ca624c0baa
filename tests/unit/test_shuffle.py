import numpy as np
import pytest

from sweepcp.data.shuffle import permuted_positions


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 1000, 65536, 100_003])
def test_a_permutation_visits_every_position_once(size: int):
    assert sorted(permuted_positions(np.arange(size), size, "a").tolist()) == list(range(size))


def test_single_positions_are_those_of_the_whole_and_keys_differ():
    whole = permuted_positions(np.arange(1000), 1000, "a")
    np.testing.assert_array_equal(
        permuted_positions(np.array([7, 3, 999]), 1000, "a"), whole[[7, 3, 999]]
    )
    assert (permuted_positions(np.arange(1000), 1000, "b") == whole).mean() < 0.02


def test_all_orders_of_four_are_about_equally_frequent():
    orders = [tuple(permuted_positions(np.arange(4), 4, f"key {k}").tolist()) for k in range(4800)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    # 200 of each are expected, with a standard deviation of 14.
    assert all(140 < count < 260 for count in counts)


def test_a_huge_permutation_needs_no_memory():
    few = permuted_positions(np.arange(10), 10**15, "a")
    assert len(set(few.tolist())) == 10
    assert ((few >= 0) & (few < 10**15)).all()
