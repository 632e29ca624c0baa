import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sweepcp.data.apportionment import Apportionment, counts_at

SHARES = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=1, max_size=8).filter(
    lambda w: sum(w) > 0
)


def normalised(weights: list[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


def deviation(
    shares: list[float], chosen: np.ndarray, start: int = 0, counts: list[int] | None = None
) -> float:
    """The largest distance, over prefixes and shares, between sequences assigned and due."""
    before = counts or [0] * len(shares)
    so_far = np.array(before) + np.cumsum(chosen[:, None] == np.arange(len(shares)), axis=0)
    due = np.arange(start + 1, start + len(chosen) + 1)[:, None] * np.array(shares)
    return float(np.abs(so_far - due).max())


@settings(deadline=None, max_examples=200)
@given(SHARES)
@example([2, 400, 30, 2, 400])
@example([1, 1, 1, 1, 1, 1, 1, 1])
@example([1, 2, 12])
def test_every_prefix_is_within_one_sequence_of_every_share(weights: list[float]):
    shares = normalised(weights)
    chosen, _ = Apportionment(shares).take(0, length=2000)
    assert deviation(shares, chosen) < 1 + 1e-6  # shares are rounded to 2⁻⁴⁶


@settings(deadline=None, max_examples=200)
@given(SHARES, st.integers(0, 1500))
@example([2, 400, 30, 2, 400], 836)
def test_seeking_a_position_gives_what_assigning_all_before_it_gives(
    weights: list[float], position: int
):
    shares = normalised(weights)
    chosen, numbers = Apportionment(shares).take(0, length=1600)
    sought = Apportionment(shares)
    later, later_numbers = sought.take(position, length=50)
    np.testing.assert_array_equal(later, chosen[position : position + 50])
    np.testing.assert_array_equal(later_numbers, numbers[position : position + 50])
    assert sum(counts_at(sought.weights, position)) == position


@settings(deadline=None, max_examples=50)
@given(SHARES)
def test_far_out_the_shares_are_still_met(weights: list[float]):
    shares, far = normalised(weights), 122_000_000
    stream = Apportionment(shares)
    before = counts_at(stream.weights, far)
    chosen, _ = stream.take(far, length=2000)
    assert deviation(shares, chosen, far, before) < 1 + 1e-4


def test_the_first_sequences_by_hand():
    # 1/2, 1/4 and 1/4: windows close at 2, 4, 6, ... and at 4, 8, ...; ties go to the first share
    chosen, numbers = Apportionment([0.5, 0.25, 0.25]).take(0, length=8)
    assert chosen.tolist() == [0, 1, 0, 2, 0, 1, 0, 2]
    assert numbers.tolist() == [0, 0, 1, 0, 2, 1, 3, 1]


@pytest.mark.parametrize("shares", [[1.0], [0.0, 1.0], [0.0, 0.5, 0.0, 0.5]])
def test_shares_of_zero_get_nothing(shares: list[float]):
    chosen, _ = Apportionment(shares).take(0, length=100)
    assert {i for i, s in enumerate(shares) if s} == set(chosen.tolist())
