"""TODO util.locks."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweepcp.errors import InvalidInput


@contextmanager
def exclusive_lock(path: Path, rule: str) -> Iterator[None]:
    """Hold a folder for writing by the lock file `path` in it; `BadInput` names the holder if another process has it.

    The kernel drops the lock with its process, so a killed one leaves none behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
                fix="wait for it, or name another --out",
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file `path`, see `alone`."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
