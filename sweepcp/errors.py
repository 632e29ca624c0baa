"""Errors that end a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Self

SHOWN_CHARACTERS = 200
"""Longer values are cut in messages."""
MAX_PATH = 4096
"""Longer names of files are cut, too; none exists."""


class InvalidInput(Exception):
    """Input that cannot be used. The command line prints it and exits with status 2.

    The message names the file (or the command), the key in it, the value that was found, the
    rule that it breaks, and how to fix it. A command raises it before it writes its output.
    """

    def __init__(
        self, *, file: object = "", key: str = "", found: object, rule: str, fix: str
    ) -> None:
        self.file, self.key, self.found = str(file), key, found
        self.rule, self.fix = rule, fix
        super().__init__(str(self))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions are pickled by their positional arguments, which this one does not take. Worker
        # processes raise it, too.
        return _rebuild, (self.file, self.key, self.found, self.rule, self.fix)

    def __str__(self) -> str:
        found = repr(str(self.found) if isinstance(self.found, PurePath) else self.found)
        parts = (_one_line(self.file, MAX_PATH), _one_line(self.key, SHOWN_CHARACTERS))
        where = ": ".join(part for part in parts if part)
        return (
            f"{where}\n  found: {_one_line(found, SHOWN_CHARACTERS)}"
            f"\n  rule:  {_one_line(self.rule)}\n  fix:   {_one_line(self.fix)}"
        )

    def within(self, file: object, key: str = "") -> Self:
        """Return the error with `file` if it names none, and its key below `key`."""
        inner = ".".join(part for part in (key, self.key) if part)
        return type(self)(
            file=self.file or file,
            key=self.key if self.file else inner,
            found=self.found,
            rule=self.rule,
            fix=self.fix,
        )


def _one_line(text: str, limit: int = 5 * SHOWN_CHARACTERS) -> str:
    """Return a text cut to a limit, with escapes for line ends, control characters and the like."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    if text.isprintable():
        return text
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)


def _rebuild(file: str, key: str, found: object, rule: str, fix: str) -> InvalidInput:
    return InvalidInput(file=file, key=key, found=found, rule=rule, fix=fix)


@contextmanager
def located(file: object, key: str = "") -> Iterator[None]:
    """Name the file, and the key above, of any `InvalidInput` raised inside that names no file.

    Code that checks a value need not know which file it came from:

        with located(path, f"sources.{source.name}"):
            files = resolve_files(source)  # may raise InvalidInput(key="files", ...)
    """
    try:
        yield
    except InvalidInput as error:
        raise error.within(file, key) from None


class BaseNotScored(Exception):
    """The base model cannot be loaded or scored, so trials have no reference; exit status 1."""


class WorkLost(Exception):
    """Processes that a command needs were lost or did not start; exit status 1.

    The same command resumes.
    """


class Diverged(Exception):
    """The loss or the gradient is not finite, or the loss is out of bounds.

    `step` is the training step, or None when a model diverges while it is scored.
    """

    def __init__(self, reason: str, step: int | None = None) -> None:
        self.step = step
        super().__init__(reason)


class OutOfDeviceMemory(Exception):
    """A trial does not fit into the memory of its GPU.

    Its worker's process ends, because the device may be in any state; the search does not.
    """


class Alarmed(Exception):
    """A full run exceeded the bound on general regression. Its state is saved; exit status 3."""


class Stopped(BaseException):
    """A signal ended a search or a full run; exit status 128 + signal.

    Not an `Exception`, so that no library catches it.
    """

    def __init__(self, signal: int) -> None:
        self.signal = signal
        super().__init__(signal)
