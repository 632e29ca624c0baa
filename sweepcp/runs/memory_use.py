"""GPU memory of the trials of a run: micro batches that did not fit."""

from collections.abc import Iterable
from typing import NamedTuple

from sweepcp.runs.trial import Trial


class Halving(NamedTuple):
    """A trial that ran out of GPU memory and finished at a smaller micro batch."""

    micro_batch: int
    """Sequences per forward pass at its end."""
    trial: str
    """Its id."""

    def __str__(self) -> str:
        return (
            f"GPU memory ran out in trial {self.trial}: it finished with {self.micro_batch} "
            "sequences per forward pass, and trials that start later have no more"
        )


def smallest_halving(trials: Iterable[Trial]) -> Halving | None:
    """Return the first of the trials that were halved to the smallest micro batch."""
    halved = [
        Halving(trial.cost.halved_to, trial.id)
        for trial in trials
        if trial.cost and trial.cost.halved_to
    ]
    return min(halved, default=None)
