"""A shuffle that can be asked for single places, so that an epoch of any length costs no memory and no time."""

import hashlib

import numpy as np

ROUNDS = 8


def permuted_positions(places: np.ndarray, size: int, key: str) -> np.ndarray:
    """What stands at `places` of a permutation of 0 to `size - 1` that the key names; same shape as `places`, int64.

    A Feistel network (Luby and Rackoff 1988, SIAM Journal on Computing 17) permutes the next power of four, and a
    result outside is permuted again until it falls inside (Black and Rogaway 2002, CT-RSA).
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    digest = hashlib.sha512(key.encode()).digest()
    keys = [np.uint64(int.from_bytes(digest[8 * n : 8 * n + 8], "big")) for n in range(ROUNDS)]
    result = places.astype(np.uint64)
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        result[outside] = _feistel(result[outside], half, keys)
        outside = result >= size
    return result.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    mask, shift = np.uint64((1 << half) - 1), np.uint64(half)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_splitmix64(right ^ key) & mask)
    return (left << shift) | right


def _splitmix64(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA): every bit depends on every other."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
