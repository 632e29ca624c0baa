"""TODO console.progress."""

import os
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from sweepcp.config.space import Point
    from sweepcp.runs.trial import Proposer, Trial


STATUS_STYLES = {"done": "green", "stopped": "yellow", "diverged": "magenta", "failed": "red"}


class ConsoleProgress:
    """Progress of a search: bars in a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.fields[title]:<6}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self.bars: dict[str, TaskID] = {}
        self.said: dict[str, float] = {}
        self.of = 0

    def __enter__(self) -> ConsoleProgress:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def note(self, text: str) -> None:
        """One line of its own."""
        self.console.print(Text(f"[{self._clock()}] {text}"), soft_wrap=True)

    def stage(self, name: str, done: int, of: int, text: str) -> None:
        """Move the bar of a stage before the search."""
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(text, total=of, title=name)
        self.progress.update(self.bars[name], completed=done, total=of, description=text)
        if self.progress.disable and text and time.monotonic() - self.said.get(name, -60.0) > 15:
            self.said[name] = time.monotonic()
            self.note(f"{name} {done}/{of}: {text}")

    def trials(self, finished: int, of: int) -> None:
        """Show how many trials there are, and how many a continued run already has."""
        self.of = of
        self.bars["trials"] = self.progress.add_task(
            "", total=of, completed=finished, title="trials"
        )
        if finished:
            self.note(f"{finished} trials are finished and stay; {max(0, of - finished)} to run")

    def trial_started(self, trial_id: str, point: Point, by: Proposer) -> None:
        description = f"{by}: {format_point(point)}"
        self.bars[trial_id] = self.progress.add_task(description, total=1, title=f" {trial_id}")

    def trial_stepped(self, trial_id: str, step: int, steps: int) -> None:
        self.progress.update(self.bars[trial_id], completed=step, total=steps)

    def trial_finished(self, trial: Trial) -> None:
        self.progress.remove_task(self.bars.pop(trial.id))
        self.progress.advance(self.bars["trials"])
        line = Text(f"[{self._clock()}] {trial.id} ")
        line.append(f"{trial.status:<8}", STATUS_STYLES[trial.status])
        if trial.status == "done":
            line.append(f" domain {trial.domain:+6.2f} %  general {trial.general:+6.2f} %")
        line.append(f"  {format_point(trial.point)}  ({trial.proposed_by})")
        if trial.why:
            line.append(f"  {trial.why}", "red")
        self.console.print(line, soft_wrap=True)

    def _clock(self) -> str:
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60}:{seconds % 60:02}"


def format_point(point: Point) -> str:
    return ", ".join(
        f"{k} {v:.4g}" if isinstance(v, (int, float)) else f"{k} {v}" for k, v in point.items()
    )


def make_console() -> Console:
    """The terminal as it is; 110 columns where there is none, so that a log is readable."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=110)
