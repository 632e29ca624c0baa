"""Print the log records of `sweepcp` to the terminal."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

LOGGER = "sweepcp"
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red"}


class ConsoleHandler(logging.Handler):
    """Prints each record as one line that is not wrapped; warnings and errors are coloured."""

    def __init__(self, console: Console, prefix: Callable[[], str]) -> None:
        super().__init__(logging.INFO)
        self.console, self.prefix = console, prefix

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        line = Text(f"{self.prefix()}{record.getMessage()}", STYLES.get(record.levelno, ""))
        self.console.print(line, soft_wrap=True)


@contextmanager
def log_to_console(console: Console, prefix: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Print the package's records of level INFO and above while the context is open.

    Args:
        console: Where to print.
        prefix: Called for each record; its result is printed before the message.
    """
    logger, handler = logging.getLogger(LOGGER), ConsoleHandler(console, prefix)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Libraries install handlers at the root, which would print every record a second time.
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
