"""Signals that end a command: SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2."""

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
STOP_SECONDS = 20.0
"""How long a command may take to end after a signal. Schedulers kill it after about 30."""
AGAIN_SECONDS = 0.05
"""After which an interrupt that Python had to ignore, as in a destructor, is raised again."""


class Interrupt(KeyboardInterrupt):
    """Raised by a signal.

    Python ends itself by SIGINT, and not with the exit status that is asked for, once a plain
    `KeyboardInterrupt` has left code that was run by `exec`, as the definition of a `NamedTuple`.
    """


class StopSignals:
    """Ends the command at the first signal, and the process at the second one.

    The first signal raises an `Interrupt`: libraries let a `KeyboardInterrupt` through, while they
    catch or wrap other exceptions. Whatever becomes of it, `received` tells `main` that a signal
    has come. The process ends at once, with the same exit status, at another signal and after
    `STOP_SECONDS`. Every file is replaced atomically, so that loses nothing.

    Handlers are installed while the context is open, and in the main thread only.
    """

    def __init__(self, message: str) -> None:
        """Receive nothing yet.

        Args:
            message: What a process that ends at once writes to standard error.
        """
        self.message = message
        self.received = 0
        """The first signal that has come; 0 before."""
        self.status: int | None = None
        """The exit status, once it is certain. From then on a signal ends the process with it."""
        self.previous: dict[int, Any] = {}
        self.previous_hook = sys.unraisablehook

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # `nohup` has a command ignore SIGHUP, and it is meant. SIGINT is ignored in
                # commands that a script starts in the background; `kill -INT` is meant for them.
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self._receive)
            self.previous_hook, sys.unraisablehook = sys.unraisablehook, self._catch_ignored
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self.previous:
            return
        sys.unraisablehook = self.previous_hook
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.status is not None:
            os._exit(self.status)
        if self.received:
            self._end_process()
        self.received = number
        # Not `threading.Thread`: the signal may have come while its locks are held.
        _thread.start_new_thread(self._end_later, ())
        raise Interrupt

    def _end_later(self) -> None:
        time.sleep(STOP_SECONDS)
        self._end_process()

    def _end_process(self) -> None:
        status = self.status
        if status is None:
            status = 128 + self.received
            show_cursor = "\x1b[?25h" if os.isatty(2) else ""
            # Not `print`: the signal may have come while the stream's lock is held.
            with suppress(OSError):  # the terminal may be gone
                os.write(2, f"{show_cursor}{self.message}\n".encode())
        os._exit(status)

    def _catch_ignored(self, ignored: Any) -> None:
        """Raise an interrupt again that Python had to ignore; print what else is ignored."""
        if issubclass(ignored.exc_type, KeyboardInterrupt) and self.received:
            _thread.start_new_thread(self._raise_again, (self.received,))
            self.received = 0
        elif not self.received:
            self.previous_hook(ignored)

    def _raise_again(self, number: int) -> None:
        time.sleep(AGAIN_SECONDS)
        os.kill(os.getpid(), number)


@contextmanager
def kept_signal_handlers() -> Iterator[None]:
    """Keep the handlers of signals while a library starts that would replace them.

    `ray.init` installs two of its own for SIGTERM, which end the process in their own ways, and its
    library in C++ another one, which prints the stack and aborts.
    """
    real = signal.signal

    def keep(number: int, _handler: Any) -> Any:
        return signal.getsignal(number)

    signal.signal = keep  # type: ignore[assignment]
    try:
        yield
    finally:
        signal.signal = real
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # Python does not know of handlers that libraries in C++ have put before its own.
                if (handler := signal.getsignal(number)) is not None:
                    signal.signal(number, handler)


@contextmanager
def blocked_interrupts() -> Iterator[None]:
    """Hold back SIGINT, so that a process that is started meanwhile never receives it.

    Ctrl-C reaches every process of the group, and one that is still importing would print a
    traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
