"""Locks of files and folders: one writer at a time, and no lock that outlives its process."""

import errno
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sweepcp.errors import InvalidInput

HELD = (errno.EWOULDBLOCK, errno.EACCES)
"""Errors of a lock that another process holds. Any other error means that the file system has no
locks, as Lustre without the mount option `flock` and some NFS servers."""
HOLDER = re.compile(r"process (\d+) on (.+)")

logger = logging.getLogger(__name__)


@contextmanager
def exclusive_lock(path: Path, rule: str) -> Iterator[None]:
    """Hold the lock file `path`, which stands for its folder.

    The kernel releases the lock when its process ends, so a killed process leaves none behind. On a
    file system without locks, the name of the holder in the file has to do: a process of this
    machine is seen, one of another machine is warned of.

    Raises:
        InvalidInput: Another process holds the lock. The error names that process and states
            `rule`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not "w": opening must not truncate the file in which the holder has written its name.
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        holder = file.read().strip()
        if _is_held(file.fileno(), fcntl.LOCK_EX, holder):
            raise InvalidInput(
                file=path.parent,
                key="--out",
                found=holder,
                rule=rule,
                fix="wait until that process has ended, or name another --out",
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, after waiting until no other process does.

    On a file system without locks, nothing is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        lock(file.fileno())
        yield


def lock(handle: int) -> None:
    """Wait for the lock of an open file or folder; do nothing on a file system without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        logger.debug("no lock: %s", error)


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock file `path`, see `exclusive_lock`."""
    if not path.exists():
        return False
    with path.open(encoding="utf-8") as file:
        return _is_held(file.fileno(), fcntl.LOCK_SH, file.read().strip())


def is_abandoned(path: Path) -> bool:
    """Return whether a file or folder that its user keeps locked has none any more.

    False where that cannot be told.
    """
    try:
        # NFS locks only files that are open for writing.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _is_held(handle: int, operation: int, holder: str) -> bool:
    """Try to lock an open file, and return whether another process holds its lock.

    Args:
        handle: The open file.
        operation: `fcntl.LOCK_EX` or `fcntl.LOCK_SH`.
        holder: What the file says about its last holder; empty if that has released it.
    """
    try:
        fcntl.flock(handle, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in HELD:
            return True
        if operation == fcntl.LOCK_SH:
            return _is_running(holder)
        return _is_held_by_name(holder, error)
    return False


def _is_held_by_name(holder: str, error: OSError) -> bool:
    if _is_running(holder):
        return True
    logger.warning(
        "the file system has no locks (%s): make sure that no other process writes here%s",
        error.strerror,
        f"; the last one was {holder}" if holder else "",
    )
    return False


def _is_running(holder: str) -> bool:
    """Return whether the holder that a lock file names is a process of this machine, and runs."""
    found = HOLDER.fullmatch(holder)
    if found is None or found[2] != socket.gethostname():
        return False
    return int(found[1]) != os.getpid() and Path("/proc", found[1]).exists()
