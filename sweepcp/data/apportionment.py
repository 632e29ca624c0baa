"""Which source each sequence of a mixture comes from: exact integers, from any position of the stream.

Source `i` of share wᵢ / W is due for its j-th sequence in the window from slot ⌊(j − 1) W / wᵢ⌋ + 1 to slot ⌈j W / wᵢ⌉
(slots count from 1). Whoever keeps to the windows is, after every slot, less than one sequence away from every share,
and serving the open window that closes first keeps to all of them (Steiner and Yeomans 1993, Level schedules for
mixed-model just-in-time processes, Management Science 39).
"""

from fractions import Fraction

import numpy as np

RESOLUTION = 1 << 46
"""Shares are rounded to this fraction of one."""
LONGEST_WINDOW = 1 << 16


class Apportionment:
    """An endless assignment of sequences to shares.

    Shares need not sum to 1, are at least 0, and one is above 0. Reading on from where the last call ended costs about
    a microsecond a sequence; any other position is first sought, usually in well under a millisecond.
    """

    def __init__(self, shares: list[float]) -> None:
        self.weights = [int(Fraction(s) * RESOLUTION + Fraction(1, 2)) for s in shares]
        self.position = 0
        self.given = [0] * len(shares)

    def take(self, start: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """For sequences `start` to `start + length - 1` (from 0): the share each goes to, and its number within it.

        Both have shape (length,); numbers within a share count from 0.
        """
        if start != self.position:
            self.position, self.given = start, counts_at(self.weights, start)
        total, given = sum(self.weights), self.given
        live = [i for i, w in enumerate(self.weights) if w]
        opens = {i: given[i] * total // self.weights[i] + 1 for i in live}
        closes = {i: -(-(given[i] + 1) * total // self.weights[i]) for i in live}
        chosen, number = np.empty(length, dtype=np.int32), np.empty(length, dtype=np.int64)
        for n in range(length):
            slot = start + n + 1
            best, urgency = -1, 0
            for i in live:
                if opens[i] <= slot and (best < 0 or closes[i] < urgency):
                    best, urgency = i, closes[i]
            chosen[n], number[n] = best, given[best]
            given[best] += 1
            opens[best] = given[best] * total // self.weights[best] + 1
            closes[best] = -(-(given[best] + 1) * total // self.weights[best])
        self.position = start + length
        return chosen, number


def counts_at(weights: list[int], slot: int) -> list[int]:
    """How many sequences each weight has been given after `slot` slots, without going through them.

    What is due is given. Of the windows that are open, the most urgent ones are given as far as there was room for
    them, which is counted for ever longer lists of the most urgent.
    """
    total = sum(weights)
    due = [w * slot // total for w in weights]
    open_windows = [
        (-(-(due[i] + 1) * total // w), i) for i, w in enumerate(weights) if w * slot % total
    ]
    urgent = [i for _, i in sorted(open_windows)]
    given, before = list(due), 0
    for rank, i in enumerate(urgent, start=1):
        done = _served_count(urgent[:rank], weights, due, slot)
        given[i] += done - before
        before = done
    return given


def _served_count(urgent: list[int], weights: list[int], due: list[int], slot: int) -> int:
    """How many of the windows in `urgent`, more urgent than all other open ones, have been served after `slot` slots.

    These and all windows that have closed are served before any other: they form a queue with one server, which has by
    then served the least, over all earlier slots u, of what had arrived by u plus the slots since (Reich 1958, On the
    integrodifferential equation of Takács, Annals of Mathematical Statistics 29). `u` is searched backwards, until
    nothing smaller can come.
    """
    total, spare = sum(weights), slot - sum(due)
    best, top, size = min(len(urgent), spare), slot, 64
    while top > 0:
        over = sum(
            max(0, w * top - due[i] * total) for i, w in enumerate(weights) if i not in urgent
        )
        if best <= spare - over // total:
            break
        size = min(2 * size, LONGEST_WINDOW, top)
        back = np.arange(size, dtype=np.int64)
        served = spare - (top - back)
        for i, w in enumerate(weights):
            whole, rest = divmod(w * top, total)
            arrived = whole - (back * w - rest) // total
            served += arrived if i in urgent else np.minimum(arrived, due[i])
        best = min(best, int(served.min()))
        top -= size
    return best
