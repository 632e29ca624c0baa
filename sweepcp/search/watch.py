"""Who looks on while trials run."""

from typing import Protocol

from sweepcp.space import Point
from sweepcp.trial import Proposer, Trial


class Watch(Protocol):
    """Told by the driver, in its own process."""

    def trial_started(self, trial_id: str, point: Point, by: Proposer) -> None: ...

    def trial_stepped(self, trial_id: str, step: int, steps: int) -> None: ...

    def trial_finished(self, trial: Trial) -> None: ...
