"""A random permutation that is evaluated at single positions, so that it costs no memory."""

import hashlib

import numpy as np

ROUNDS = 8
"""Rounds of the Feistel network."""


def permuted_positions(positions: np.ndarray, size: int, key: str) -> np.ndarray:
    """Return the elements at some positions of a permutation of 0 to `size - 1`.

    A Feistel network (Luby and Rackoff 1988, SIAM Journal on Computing 17) permutes the numbers
    below a power of four; a result of `size` or more is permuted again until it is below (cycle
    walking: Black and Rogaway 2002, CT-RSA).

    Args:
        positions: Integers from 0 to `size - 1`, of any shape.
        size: Length of the permutation.
        key: Selects the permutation.

    Returns:
        An int64 array of the shape of `positions`.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    digest = hashlib.sha512(key.encode()).digest()
    # Eight bytes of the digest are one round's key.
    keys = np.frombuffer(digest, dtype=">u8", count=ROUNDS).astype(np.uint64)
    result = positions.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    # Following the cycle of each number until it returns to 0 ... size - 1 permutes these numbers.
    # It takes four evaluations on average at most, as the network's range is at most four times as
    # large.
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, keys)
        outside = result >= size
    return result.astype(np.int64)


def random_keys(first: int, count: int) -> np.ndarray:
    """Return the random keys of the numbers from `first` on; sorting by them shuffles the numbers.

    They are outputs of SplitMix64 from state 0 (Steele, Lea and Flood 2014, OOPSLA). No two numbers
    have the same key.

    Returns:
        Shape (count,), uint64.
    """
    numbers = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return _splitmix64(numbers * np.uint64(0x9E3779B97F4A7C15))


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    """Permute the numbers below 4 ** `half_bits`."""
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_splitmix64(right ^ key) & mask)
    return (left << shift) | right


def _splitmix64(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit integers so that every bit depends on all others.

    The finaliser of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA).
    """
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
