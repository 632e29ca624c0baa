"""Show the progress of long-running work in the terminal."""

import os
import time
from contextlib import ExitStack
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from sweepcp.console.log import log_to_console

LOG_WIDTH = 110
"""Columns where the output is not a terminal, so that a log file is readable."""
SECONDS_BETWEEN_LINES = 15.0
"""How often progress is printed where the output is not a terminal."""


class ConsoleProgress:
    """Shows tasks as bars in a terminal, and as lines every few seconds elsewhere.

    While its context is open, log records of the package are printed with the time elapsed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.fields[task]:<7}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.started = time.monotonic()
        self.tasks: dict[str, TaskID] = {}
        self.printed: dict[str, float] = {}
        self.exits = ExitStack()

    def __enter__(self) -> Self:
        self.bars.start()
        self.exits.callback(self.bars.stop)
        self.exits.enter_context(log_to_console(self.console, self._clock))
        return self

    def __exit__(self, *_: object) -> None:
        self.exits.close()

    def update(self, task: str, *, done: int, total: int, detail: str = "") -> None:
        """Show how far a task is; the first call starts it."""
        if task not in self.tasks:
            self.tasks[task] = self.bars.add_task(detail, total=total, task=task)
            self.printed[task] = time.monotonic()
        # A description of None leaves the last one in place.
        self.bars.update(self.tasks[task], completed=done, total=total, description=detail or None)
        waited = time.monotonic() - self.printed[task]
        if self.bars.disable and detail and waited > SECONDS_BETWEEN_LINES:
            self.printed[task] = time.monotonic()
            line = f"{self._clock()}{task} {done}/{total}: {detail}"
            self.console.print(Text(line), soft_wrap=True)

    def finish(self, task: str) -> None:
        """Remove the bar of a task."""
        if task in self.tasks:
            self.bars.remove_task(self.tasks.pop(task))

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"[{seconds // 60}:{seconds % 60:02}] "


def make_console() -> Console:
    """Return a console for the terminal, or a wide one where there is no terminal."""
    console = Console()
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(width=LOG_WIDTH)
