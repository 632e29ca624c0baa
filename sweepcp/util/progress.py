"""Who looks on while trials run."""

from typing import Protocol

from sweepcp.config.space import Point
from sweepcp.runs.trial import Proposer, Trial


class Progress(Protocol):
    """Who looks on while texts and base are prepared."""

    def note(self, text: str) -> None: ...

    def stage(self, name: str, done: int, of: int, text: str) -> None: ...


class Progress(Progress, Progress, Protocol):
    """Who looks on, from the texts to the last trial."""

    def trials(self, finished: int, of: int) -> None: ...


class Progress(Protocol):
    """Told by the driver, in its own process."""

    def trial_started(self, trial_id: str, point: Point, by: Proposer) -> None: ...

    def trial_stepped(self, trial_id: str, step: int, steps: int) -> None: ...

    def trial_finished(self, trial: Trial) -> None: ...
