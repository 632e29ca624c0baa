"""Standard streams that the caller has closed, that are full, or whose reader has gone."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STANDARD_OUTPUT = "standard output"
"""Its name in errors, where those of files have a path."""


class StandardOutput(io.TextIOWrapper):
    """Standard output whose errors name it, as those of files name the file."""

    def write(self, text: str) -> int:
        """Write text."""
        with _named_errors():
            return super().write(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with _named_errors():
            super().flush()


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STANDARD_OUTPUT
        raise


def open_standard_streams() -> None:
    """Open the null device for each stream that is closed, and have standard output name errors.

    The next file to be opened would otherwise get the number of a closed stream, and what a library
    or a child process prints would be written into it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # It gets the number of the stream, which is the lowest one that is free.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    stream = sys.stdout
    if type(stream) is io.TextIOWrapper:  # tests and notebooks replace it
        encoding, errors = stream.encoding, stream.errors
        by_line, unbuffered = stream.line_buffering, stream.write_through
        sys.stdout = StandardOutput(
            stream.detach(), encoding, errors, line_buffering=by_line, write_through=unbuffered
        )
        # Which `shutil.get_terminal_size` asks.
        sys.__stdout__ = sys.stdout  # type: ignore[misc]


def flush_output() -> OSError | None:
    """Write what is left of standard output; return the error if that cannot be.

    Nothing is left to be written at the end of the process, where Python would print a traceback.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return error
    return None


def say(message: str) -> None:
    """Write a line to standard error, if anything can be written there."""
    with suppress(OSError):
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
