"""What ends a command: its exit status, and what the user is told."""

import os
import re
import shlex
import sys
import tempfile
import traceback

from sweepcp.cli.output import STANDARD_OUTPUT
from sweepcp.cli.rank import launcher_rank
from sweepcp.errors import SHOWN_CHARACTERS, BaseNotScored, InvalidInput, WorkLost

FAILED, INVALID, UNFORESEEN = 1, 2, 70
"""Exit statuses; 70 is EX_SOFTWARE of sysexits.h."""
RESUME = "Finished work is kept. Run the same command to resume."
SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries that are written in Rust, such as safetensors, name an error of the system."""


def describe_failure(error: BaseException) -> tuple[int, str]:
    """Return the exit status of a command that an exception ends, and the message for the user.

    The message is empty where the reader of standard output has gone.
    """
    if isinstance(error, InvalidInput):
        on_rank = "" if launcher_rank() == "0" else f" on rank {launcher_rank()}"
        return INVALID, f"Error{on_rank}: {error}"
    if isinstance(error, BaseNotScored):
        return FAILED, f"Error: the base cannot be scored: {error}"
    if isinstance(error, WorkLost):
        return FAILED, f"Error: {error}. {RESUME}"
    if isinstance(error, MemoryError):
        return FAILED, f"Error: out of memory. {RESUME}"
    if isinstance(error, BrokenPipeError) and error.filename == STANDARD_OUTPUT:
        return FAILED, ""
    if reason := _system_error(error) or _ray_error(error):
        return FAILED, f"Error: {reason}. {RESUME}"
    return UNFORESEEN, _describe_unforeseen(error)


def _system_error(error: BaseException) -> str:
    """Return what the system refused, such as space on a disk; empty for any other error."""
    if isinstance(error, OSError):
        reason = error.strerror or _first_line(error)
        return f"{error.filename}: {reason}" if error.filename else reason
    if found := SYSTEM_ERROR.search(str(error)):
        return os.strerror(int(found[1]))
    return ""


def _ray_error(error: BaseException) -> str:
    """Return what Ray has lost; empty for any other error, and for those of tasks."""
    # By name, because only some commands import Ray.
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    if "ray.exceptions.RayError" in names and "ray.exceptions.RayTaskError" not in names:
        return f"Ray: {_first_line(error).rstrip('.')}"
    return ""


def _describe_unforeseen(error: BaseException) -> str:
    text = f"Error: {type(error).__name__}: {_first_line(error)}"
    lines = [f"$ {shlex.join(sys.argv)}\n", *traceback.format_exception(error)]
    try:
        handle, name = tempfile.mkstemp(prefix="sweepcp-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    except OSError as problem:
        return f"{text} (unforeseen; its traceback cannot be written: {problem})"
    return f"{text} (unforeseen; please report it with {name})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0].strip() if lines else "no message"
    return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 3]}..."
