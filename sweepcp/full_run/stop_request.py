"""Requests to stop a full run: signals of a scheduler, and a file where no signal arrives."""

import signal
import threading
from pathlib import Path
from types import FrameType

import numpy as np

from sweepcp.errors import Stopped
from sweepcp.full_run.ending import SIGNALS
from sweepcp.training.process_group import ProcessGroup


class StopRequest:
    """The signal that asked this process to stop, if any, on which all ranks then agree.

    It takes over the signals as soon as it is made. A launcher sends SIGTERM to all processes once
    one of them has failed; a process that ended by it, rather than by the kill that follows, would
    end with the status of a run that a scheduler stopped, which is resumed however often.
    """

    def __init__(self, stop_file: Path | None) -> None:
        """Receive signals from now on.

        Args:
            stop_file: A file that may hold the number of a signal, which counts as received.
        """
        self.stop_file, self.received = stop_file, 0
        # Python allows signal handlers in the main thread only; Ray Train calls from another one.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    def agree(self, group: ProcessGroup) -> int:
        """Return a signal that some rank has received, 0 for none; equal on every rank."""
        if group.is_first and self.stop_file is not None and self.stop_file.exists():
            self.received = int(self.stop_file.read_text(encoding="utf-8"))
        # A signal reaches ranks at different times, or only some of them. They have to save the
        # same step, so each step ends with a sum over all ranks.
        received = [float(self.received == number) for number in SIGNALS]
        counts = group.all_reduce_sum(np.array(received))
        return next(
            (int(number) for number, count in zip(SIGNALS, counts, strict=True) if count), 0
        )

    def check(self, group: ProcessGroup) -> None:
        """Raise `Stopped` on every rank if some rank has received a signal."""
        if number := self.agree(group):
            raise Stopped(number)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
