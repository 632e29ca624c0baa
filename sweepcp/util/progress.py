"""How long-running work reports its progress."""

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of long-running work, in the process that the user started.

    Messages do not pass through it: modules write those with `logging`.
    """

    def update(self, task: str, *, done: int, total: int, detail: str = "") -> None:
        """Show how far a task is: a stage such as `sources`, or a trial by its id.

        The first call starts the task. `done` and `total` count units of the task's own choice.
        """
        ...

    def finish(self, task: str) -> None:
        """Remove a task that has ended."""
        ...


class NoProgress:
    """Ignores all progress."""

    def update(self, task: str, *, done: int, total: int, detail: str = "") -> None:
        """Do nothing."""

    def finish(self, task: str) -> None:
        """Do nothing."""
