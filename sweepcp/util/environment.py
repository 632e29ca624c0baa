"""What a process is started with: its working folder, and variables that hold numbers."""

import os
import sys
from pathlib import Path

from sweepcp.errors import InvalidInput
from sweepcp.util.files import cache_dir


def check_working_folder() -> None:
    """Raise `InvalidInput` if the working folder was removed: libraries look it up everywhere."""
    try:
        Path.cwd()
    except OSError as error:
        raise InvalidInput(
            file="the working folder",
            found=error.strerror,
            rule="a folder that exists; this one was removed or may not be read",
            fix="change to another folder",
        ) from None


def check_docstrings() -> None:
    """Raise `InvalidInput` if the interpreter removes docstrings, which transformers looks up."""
    if sys.flags.optimize >= 2:
        raise InvalidInput(
            file="the interpreter",
            key="python -OO",
            found=f"-{'O' * sys.flags.optimize}",
            rule="an interpreter that keeps docstrings: transformers fails to import models "
            "without them",
            fix="start it without -OO, or with PYTHONOPTIMIZE=1 or less",
        )


def set_home_for_libraries() -> None:
    """Name a home folder for libraries where there is none: the cache folder.

    Ray cannot even be imported without one. Paths that people write have been read by then.
    """
    if os.path.expanduser("~") == "~":  # noqa: PTH111  # `Path` raises
        os.environ["HOME"] = str(cache_dir())


def environment_integer(
    name: str, default: int | None = None, *, low: int, high: int | None = None, fix: str = ""
) -> int:
    """Return the integer that an environment variable holds.

    Args:
        name: The variable.
        default: Its value where it is not set or empty; None if it must be set.
        low: The least value.
        high: The greatest value; None for any.
        fix: What to do about another value.

    Raises:
        InvalidInput: It is not set, or no such integer.
    """
    stated = os.environ.get(name, "")
    if not stated and default is not None:
        return default
    return parse_environment_integer(name, stated, low=low, high=high, fix=fix)


def parse_environment_integer(
    name: str, stated: str, *, low: int, high: int | None = None, fix: str = ""
) -> int:
    """Return the integer of a text from an environment variable, see `environment_integer`."""
    try:
        value = int(stated)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        raise InvalidInput(
            file="the environment",
            key=name,
            found=stated or None,
            rule=f"an integer of at least {low}" + ("" if high is None else f" and at most {high}"),
            fix=fix or f"correct {name}, or unset it",
        )
    return value
