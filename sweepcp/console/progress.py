"""Show the progress of long-running work in the terminal."""

import os
import time
from contextlib import ExitStack
from typing import Self

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweepcp.console.log import log_to_console
from sweepcp.console.tables import UNBOUNDED

LINES = 25
"""Lines of a console whose width is given; nothing that is printed depends on it."""
SECONDS_BETWEEN_LINES = 15.0
"""How often progress is printed where the output is not a terminal."""
BAR_WIDTH = 30


class TaskLine:
    """A task on one line: as much as there is room for, and no number in part.

    Its name and count come first, then the time elapsed, the bar, and whole words of the detail.
    """

    def __init__(self, task: Task) -> None:
        elapsed = int(task.elapsed or 0)
        clock = f"{elapsed // 3600}:{elapsed // 60 % 60:02}:{elapsed % 60:02}"
        self.count = f"{task.fields['task']:<7} {task.completed:.0f}/{task.total or 0:.0f}"
        self.clock, self.detail = f" {clock}", task.description
        self.bar = ProgressBar(total=task.total, completed=task.completed, width=BAR_WIDTH)

    def __rich_measure__(self, _console: Console, options: ConsoleOptions) -> Measurement:
        """Return the width: all that there is."""
        return Measurement(options.max_width, options.max_width)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the parts that fit."""
        line = Table.grid()
        parts: list[Text | ProgressBar] = [Text(self.count)]
        left = options.max_width - len(self.count)
        if len(self.clock) <= left:
            parts.append(Text(self.clock))
            left -= len(self.clock)
        if left > BAR_WIDTH:
            parts += [Text(" "), self.bar]
            left -= BAR_WIDTH + 1
        detail = ""
        for word in self.detail.split():
            if cell_len(f"{detail} {word} ...") > left:
                detail += " ..." if cell_len(detail) + 4 <= left else ""
                break
            detail += f" {word}"
        line.add_row(*parts, Text(detail, "dim"))
        yield line


class TaskColumn(ProgressColumn):
    """The only column of the progress display: `TaskLine` divides the width itself."""

    def render(self, task: Task) -> TaskLine:
        """Return the line of a task."""
        return TaskLine(task)


class ConsoleProgress:
    """Shows tasks as bars in a terminal, and as lines every few seconds elsewhere.

    While its context is open, log records of the package are printed with the time elapsed.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TaskColumn(),
            console=console,
            disable=not console.is_interactive,
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
            del self.printed[task]

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"[{seconds // 60}:{seconds % 60:02}] "


def make_console() -> Console:
    """Return a console as wide as $COLUMNS or the terminal; files and pipes have no width."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isascii() and columns.isdigit() and int(columns):
        # With a height, rich keeps to the width also where TERM is `dumb`.
        return Console(width=min(int(columns), UNBOUNDED), height=LINES)
    # Rich would take COLUMNS=0 for the width.
    os.environ.pop("COLUMNS", None)
    console = Console()
    return console if console.is_terminal else Console(width=UNBOUNDED, height=LINES)
