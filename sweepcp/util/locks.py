"""Lock files: one writer of a folder at a time."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweepcp.errors import InvalidInput


@contextmanager
def exclusive_lock(path: Path, rule: str) -> Iterator[None]:
    """Hold the lock file `path`, which stands for its folder.

    The kernel releases the lock when its process ends, so a killed process leaves none behind.

    Raises:
        InvalidInput: Another process holds the lock. The error names that process and states
            `rule`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not "w": opening must not truncate the file in which the holder has written its name.
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise InvalidInput(
                file=path.parent,
                key="--out",
                found=file.read().strip(),
                rule=rule,
                fix="wait until that process has ended, or name another --out",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock file `path`, see `exclusive_lock`."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
