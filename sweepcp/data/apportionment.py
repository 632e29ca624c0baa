"""Assign the sequences of a mixture to its sources: in exact integers, from any position.

Let source i have the share wᵢ / W. Its j-th sequence is due in the window from slot
⌊(j − 1) W / wᵢ⌋ + 1 to slot ⌈j W / wᵢ⌉, where slots count from 1 and hold one sequence each. An
assignment that keeps to all windows deviates, after every slot, by less than one sequence from
every share. Serving the open window that closes first keeps to all of them (Steiner and Yeomans
1993, Level schedules for mixed-model just-in-time processes, Management Science 39).
"""

from fractions import Fraction

import numpy as np

RESOLUTION = 1 << 46
"""Shares are rounded to multiples of 1 / RESOLUTION."""
LONGEST_WINDOW = 1 << 16
"""Slots searched at once: times a weight, of at most RESOLUTION, they fit into 64 bits."""


class Apportionment:
    """Endless assignment of sequences to shares.

    Continuing from the end of the last call costs about a microsecond per sequence. Any other
    position is sought first, usually in well under a millisecond.
    """

    def __init__(self, shares: list[float]) -> None:
        """Start at the first sequence.

        Args:
            shares: Numbers of at least 0, one of them above 0; they need not sum to 1.
        """
        self.weights = [int(Fraction(share) * RESOLUTION + Fraction(1, 2)) for share in shares]
        self.position = 0
        self.counts = [0] * len(shares)

    def take(self, start: int, *, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Assign the sequences `start` to `start + length - 1`, counted from 0.

        Returns:
            The index of the share that each sequence goes to (int32), and the number of the
            sequence within that share, from 0 (int64). Both have shape (length,).
        """
        if start != self.position:
            self.position, self.counts = start, counts_at(self.weights, start)
        weights, counts, total = self.weights, self.counts, sum(self.weights)
        positive = [index for index, weight in enumerate(weights) if weight]
        opens = {i: counts[i] * total // weights[i] + 1 for i in positive}
        closes = {i: -(-(counts[i] + 1) * total // weights[i]) for i in positive}
        chosen = np.empty(length, dtype=np.int32)
        numbers = np.empty(length, dtype=np.int64)
        for row in range(length):
            slot = start + row + 1
            best, deadline = -1, 0
            # Of windows that close together the first share's is served; `counts_at` relies on it.
            for i in positive:
                if opens[i] <= slot and (best < 0 or closes[i] < deadline):
                    best, deadline = i, closes[i]
            chosen[row], numbers[row] = best, counts[best]
            counts[best] += 1
            opens[best] = counts[best] * total // weights[best] + 1
            closes[best] = -(-(counts[best] + 1) * total // weights[best])
        self.position = start + length
        return chosen, numbers


def counts_at(weights: list[int], slots: int) -> list[int]:
    """Return how many of the first `slots` sequences each weight has been assigned.

    The counts are derived from the windows around slot `slots`; the slots before are not visited.
    """
    total = sum(weights)
    # Every window that has closed by now has been served. Beyond these a weight has at most one
    # open window, because its next one opens when that one closes: each count is known up to one.
    closed = [weight * slots // total for weight in weights]
    open_windows = []
    for index, weight in enumerate(weights):
        if weight * slots % total:
            closes = -(-(closed[index] + 1) * total // weight)
            open_windows.append((closes, index))
    urgent = [index for _, index in sorted(open_windows)]
    counts = list(closed)
    served_before = 0
    # Less urgent windows never delay more urgent ones, so the number served among the n most urgent
    # can be computed for each n alone. Where it grows from n - 1 to n, window n has been served.
    for rank, index in enumerate(urgent, start=1):
        served = _served_count(urgent[:rank], weights=weights, closed=closed, slots=slots)
        counts[index] += served - served_before
        served_before = served
    return counts


def _served_count(urgent: list[int], *, weights: list[int], closed: list[int], slots: int) -> int:
    """Return how many of the open windows of `urgent` have been served after `slots` slots.

    These windows are more urgent than all other open ones. Together with the windows that have
    closed they are served before any other: they form a queue with one server, which serves one
    window per slot. By slot t it has served

        min over 0 ≤ u ≤ t of A(u) + t − u,

    where A(u) counts the windows of the queue that open by slot u (Reich 1958, On the
    integrodifferential equation of Takács, Annals of Mathematical Statistics 29). The closed
    windows have all been served, and are subtracted.

    Args:
        urgent: Indices of weights whose open windows are in the queue.
        weights: All weights.
        closed: Number of closed windows of each weight.
        slots: The time t.
    """
    total = sum(weights)
    spare = slots - sum(closed)
    # The minimum is at most its terms for u = slots and for u = 0.
    fewest = min(len(urgent), spare)
    last, size = slots, 64
    # The minimum is usually near u = slots, so u is searched backwards, in growing chunks.
    while last > 0:
        # By slot u, weight i has opened at least wᵢ u / W windows, which sum to u. Weights outside
        # `urgent` count no more than their closed windows, and so miss at most excess / W of that
        # for any u ≤ last: no term that is left is below spare − excess / W.
        excess = 0
        for index, weight in enumerate(weights):
            if index not in urgent:
                excess += max(0, weight * last - closed[index] * total)
        if fewest <= spare - excess // total:
            break
        size = min(2 * size, LONGEST_WINDOW, last)
        back = np.arange(size, dtype=np.int64)
        served = spare - (last - back)
        for index, weight in enumerate(weights):
            # By slot u = last - back, ⌈wᵢ u / W⌉ windows have opened. wᵢ · last exceeds 64 bits, so
            # it is divided as a Python integer, and only wᵢ · back as an array.
            quotient, remainder = divmod(weight * last, total)
            opened = quotient - (back * weight - remainder) // total
            served += opened if index in urgent else np.minimum(opened, closed[index])
        fewest = min(fewest, int(served.min()))
        last -= size
    return fewest
